"""What long work says while it lasts, where there is no terminal."""

from __future__ import annotations

import pytest

from pillsnap.cli import progress as progress_module
from pillsnap.cli.progress import Progress


def test_a_line_at_once_one_every_eight_seconds_and_one_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    with Progress() as progress:
        for second in range(25):
            now = 100.0 + second
            progress("rendering", 50 * second, 1200)
        progress("listed", 0, 0)
        progress("listed", 7, 7)
    assert capsys.readouterr().err.splitlines() == [
        "rendering: 0 of 1,200",
        "rendering: 400 of 1,200, 16 s to go",
        "rendering: 800 of 1,200, 8 s to go",
        "rendering: 1,200 of 1,200",
        "listed: 0 of 0",
        "listed: 7 of 7",
    ]
