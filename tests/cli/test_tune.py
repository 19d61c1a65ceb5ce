"""``pillsnap tune``: its lengths of time and numbers, and ``status``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import optuna
import pytest

from pillsnap.cli.duration import Count, Duration
from pillsnap.cli.tune import as_typed

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("text", "seconds"), [("8h", 28800), ("1h30m", 5400), ("45m", 2700), ("90s", 90), ("0.5h", 1800), ("", None)]
)
def test_lengths_of_time(text: str, seconds: float | None) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["8", "h", "8x", "-1h", "0s", "1m1h", "nan"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(click.BadParameter, match="write 8h, 1h30m, 45m or 90s"):
        Duration().convert(text, None, None)


def test_numbers_from_mlflow_run() -> None:
    assert [Count().convert(text, None, None) for text in ("", "3", " 12 ", None)] == [None, 3, 12, None]
    for text in ("0", "-1", "1.5", "many"):
        with pytest.raises(click.BadParameter, match="no whole number from 1"):
            Count().convert(text, None, None)


def test_wrong_options(call: Call) -> None:
    assert call("tune", "--workers", "0")[0] == 2
    assert call("tune", "--wall-clock", "soon")[0] == 2
    assert call("tune", "--max-trials", "some")[0] == 2


def test_status(call: Call, tmp_path: Path) -> None:
    status, _, err = call("tune", "status", "--workspace", tmp_path)
    assert (status, "optuna.db: no such file; begin a study with: pillsnap tune" in err) == (2, True)
    (tmp_path / "tune").mkdir()
    study = optuna.create_study(study_name="night-1", storage=f"sqlite:///{tmp_path}/tune/optuna.db")
    study.tell(study.ask(), 0.75)
    status, out, err = call("tune", "status", "--workspace", tmp_path)
    assert status == 0, err
    assert "study night-1\n  1 trials are over: 1 complete" in out
    assert "best: trial 0, 0.7500" in out
    status, _, err = call("tune", "status", "--workspace", tmp_path, "--study", "other")
    assert (status, "there are: night-1" in err) == (2, True)


@pytest.mark.parametrize("given", [["--storage", "{}"], ["--storage={}"]])
def test_the_command_in_the_best_file_has_no_address(given: list[str]) -> None:
    """A password with a blank, as SQLAlchemy takes it, is no password to whoever looks for one."""
    url = "postgresql://anna:ge heim@host/db"
    shown = as_typed(["tune", *(word.format(url) for word in given), "--data", "d"], url)
    assert "heim" not in shown
    assert shown.endswith("URL --data d")
    assert as_typed(["tune", "--data", "d"], "") == "pillsnap tune --data d"
