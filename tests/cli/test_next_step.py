from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from pillsnap.cli.next_step import say_next


def test_a_command_can_be_copied_whatever_its_paths_are_called(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("/data/알약 사진/a'b.onnx")
    say_next("evaluate", path, "--manifest", "plain", "--out", "<folder>", note="a note")
    line = capsys.readouterr().out
    assert line.startswith("next: pillsnap evaluate ")
    assert line.endswith(" --manifest plain --out <folder>   (a note)\n")
    assert shlex.split(line)[2:4] == ["evaluate", str(path)]
    say_next("registry", "register", 7, first="then")
    assert capsys.readouterr().out == "then: pillsnap registry register 7\n"
