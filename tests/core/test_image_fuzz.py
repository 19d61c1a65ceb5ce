"""Damaged pictures, ten thousand in the long run. The mutations and the doors stand in ``image_fuzzer.py``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).with_name("image_fuzzer.py")
SEED = 0
PEAK_GROWTH_MIB = 768
"""The largest picture that is let in takes 183 MiB as RGB, three times as much where it is a progressive JPEG, and
183 MiB more while it is turned."""


def run(*options):
    command = [sys.executable, str(FUZZER), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=500, check=False)


@pytest.mark.parametrize("cases", [200, pytest.param(10_000, marks=pytest.mark.long)])
def test_damaged_pictures_are_refused_and_nothing_else_happens(tmp_path, capsys, cases):
    """In a process of its own: no crash of native code, no other exception, no hang, no runaway memory."""
    case_file = tmp_path / "case"
    done = run("--seed", SEED, "--count", cases, "--case-file", case_file)
    if done.returncode != 0:
        case = int.from_bytes(case_file.read_bytes(), "little")
        again = f"python {FUZZER.name} --seed {SEED} --first {case} --count 1"
        pytest.fail(f"status {done.returncode} in case {case}; again with: {again}\n{done.stderr[-3000:]}")
    report = json.loads(done.stdout)
    with capsys.disabled():
        print(f"\n{report}")
    assert report["cases"] == sum(report["counts"].values()) == cases
    assert report["counts"]["accepted"] > cases / 20, "mutations that are all refused at once test little"
    assert {"truncated", "undecodable", "unsupported_format", "too_many_pixels"} <= report["counts"].keys()
    assert report["peak_growth_mib"] < PEAK_GROWTH_MIB


def test_a_case_is_the_same_each_time():
    first, again = (json.loads(run("--first", 40, "--count", 30).stdout)["counts"] for _ in range(2))
    assert first == again
