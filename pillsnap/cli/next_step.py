"""The command that comes next, printed so that it can be copied: a path with a blank is quoted."""

from __future__ import annotations

import shlex

import click


def say_next(*words: object, note: str = "", first: str = "next") -> None:
    """Print ``next: pillsnap WORDS``.

    Args:
        words: of the command, without ``pillsnap``; ``<…>`` stays as it is, for the reader to fill in.
        note: behind it, in brackets.
        first: another word in place of "next".
    """
    texts = (str(word) for word in words)
    line = " ".join(text if text.startswith("<") else shlex.quote(text) for text in texts)
    click.echo(f"{first}: pillsnap {line}" + (f"   ({note})" if note else ""))
