"""The time before each line of a log, for what works for hours."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from pillsnap.core.passwords import STAMPED, WithoutPasswords


@contextmanager
def time_stamps() -> Iterator[None]:
    """Within, every line of this process's log starts with the local time."""
    handlers = [(handler, handler.formatter) for handler in logging.getLogger().handlers]
    for handler, _ in handlers:
        handler.setFormatter(WithoutPasswords(*STAMPED))
    try:
        yield
    finally:
        for handler, formatter in handlers:
            handler.setFormatter(formatter)
