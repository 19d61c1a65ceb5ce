"""Texts that may be shown or logged: addresses keep their user's name and lose their password."""

from __future__ import annotations

import logging
import re

# Up to the last @ before a slash, as addresses are read; and, as SQLAlchemy reads them, up to the first @ after one (a
# port before the slash is no password).
_IN_ADDRESS = re.compile(r"(://[^\s:/@]*):(?:[^\s/?#]*@|(?!\d+/)[^\s@]*@)")
_NAMES = r"[\w-]*(?:password|passwd|pwd|token|secret|signature|access_key|api_key)"
_IN_QUERY = re.compile(rf"([?&]{_NAMES}=)[^&\s'\")]*", re.IGNORECASE)


def hide_passwords(text: str) -> str:
    """Every password of an address in a text as ``***``: ``postgresql://anna:***@host/db``."""
    return _IN_QUERY.sub(r"\1***", _IN_ADDRESS.sub(r"\1:***@", text))


STAMPED = ("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S")
"""Arguments of `WithoutPasswords` for a log of many hours: local time before each line."""


class WithoutPasswords(logging.Formatter):
    """Of a log: whoever writes to it, a library too, what an address holds of a password is not said."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, with its traceback where there is one."""
        return hide_passwords(super().format(record))
