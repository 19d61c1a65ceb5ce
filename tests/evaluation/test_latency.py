from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pillsnap.evaluation import latency
from pillsnap.evaluation.latency import hardware_name, measure_latency

ZEN_1 = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx avx2\n"
ZEN_4 = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: avx2 avx512f avx512_bf16 avx512_vnni\n"
ARM = "processor\t: 0\nmodel name\t: Neoverse-V1\nFeatures\t: fp asimd asimddp i8mm bf16\n"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (ZEN_1, "AMD EPYC (AVX2)"),
        (ZEN_4 + "\n" + ZEN_1.replace("0", "1"), "AMD EPYC (AVX2, AVX-512, VNNI, BF16)"),  # the first core's
        (ARM, "Neoverse-V1 (BF16, DOTPROD, I8MM)"),
        ("processor\t: 0\nmodel name\t: Old\nflags\t\t: fpu\n", "Old"),
    ],
)
def test_hardware_is_named_with_what_it_computes_small_numbers_by(tmp_path: Path, cpuinfo: str, expected: str) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo, encoding="utf-8")
    assert hardware_name(tmp_path / "cpuinfo") == expected


def test_every_machine_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert hardware_name(tmp_path / "no such file") == "arm64"


def test_percentiles_counted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of 1, 2 … 100 ms behind two of the warm-up that take a second."""
    now, asked = 0.0, []

    def identify(photo: bytes) -> None:
        nonlocal now
        asked.append(photo)
        now += 1.0 if len(asked) <= 2 else (len(asked) - 2) / 1000

    session: Any = SimpleNamespace(identify=identify, threads=2, provider="CPU")
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now)
    found = measure_latency(session, [b"a", b"b", b"c"], "three photos", runs=100, warm_up=2)
    assert found.p50_ms == pytest.approx(50.5)
    assert found.p95_ms == pytest.approx(95.05)
    assert (found.runs, found.threads, found.image) == (100, 2, "three photos")
    assert asked[2:6] == [b"a", b"b", b"c", b"a"]
