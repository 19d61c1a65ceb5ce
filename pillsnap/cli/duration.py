"""Lengths of time as people write them: ``8h``, ``1h30m``, ``90s``."""

from __future__ import annotations

import re
from typing import Any

import click

_PARTS = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


class Duration(click.ParamType[float | None]):
    """An option's value in seconds; an empty text is None (``mlflow run`` passes one)."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """Seconds."""
        if value is None or isinstance(value, float):
            return value
        text = str(value).strip().lower()
        if not text:
            return None
        found = _PARTS.fullmatch(text)
        hours, minutes, seconds = (float(part or 0) for part in found.groups()) if found else (0.0, 0.0, 0.0)
        total_s = hours * 3600 + minutes * 60 + seconds
        if total_s <= 0:
            self.fail(f"{value!r} is no length of time; write 8h, 1h30m, 45m or 90s", param, ctx)
        return total_s


class Count(click.ParamType[int | None]):
    """A whole number from 1; an empty text is None (``mlflow run`` passes one)."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """The number."""
        text = "" if value is None else str(value).strip()
        if not text:
            return None
        if not text.isdecimal() or int(text) < 1:
            self.fail(f"{value!r} is no whole number from 1", param, ctx)
        return int(text)
