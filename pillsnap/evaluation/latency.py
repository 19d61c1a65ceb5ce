"""Time a session as it serves: from the bytes of a photo's file to the answer, one photo at a time.

Knows the clock and the machine; knows nothing of right or wrong.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pillsnap.core.evidence import Latency
from pillsnap.core.images import decode_rgb
from pillsnap.core.manifest import Manifest
from pillsnap.inference.session import PillSession

WARM_UP_RUNS = 20
TIMED_RUNS = 200
MAX_PHOTOS = 40
"""Different photos among the runs; they are held in memory."""

_INSTRUCTIONS = {
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f"},
    "VNNI": {"avx512_vnni", "avx_vnni"},
    "BF16": {"avx512_bf16", "bf16"},
    "AMX": {"amx_int8", "amx_bf16"},
    "DOTPROD": {"asimddp"},
    "I8MM": {"i8mm"},
}
"""As the kernel's flags have them (x86 and Arm)."""


def measure_latency(
    session: PillSession, photos: Sequence[bytes], image: str, runs: int = TIMED_RUNS, warm_up: int = WARM_UP_RUNS
) -> Latency:
    """Time ``runs`` single identifications, going round the photos. ``image`` says what they are."""
    for run in range(warm_up):
        session.identify(photos[run % len(photos)])
    times_ms = []
    for run in range(runs):
        start = time.perf_counter()
        session.identify(photos[run % len(photos)])
        times_ms.append(1000 * (time.perf_counter() - start))
    p50, p95 = np.percentile(times_ms, [50, 95])
    return Latency(
        p50_ms=float(p50),
        p95_ms=float(p95),
        runs=runs,
        image=image,
        threads=session.threads,
        provider=session.provider,
        hardware=hardware_name(),
    )


def choose_photos(manifest: Manifest, rows: pa.Table) -> tuple[list[bytes], str]:
    """Photos to time, spread over ``rows`` (the real ones where there are any), and words on what they are."""
    domains = rows["domain"].to_pylist()
    domain = "real" if "real" in domains else "studio"
    candidates = [index for index, value in enumerate(domains) if value == domain]
    picked = sorted({candidates[i] for i in np.linspace(0, len(candidates) - 1, MAX_PHOTOS).round().astype(int)})
    chosen = rows.take(picked)
    photos = [
        manifest.read_image(path, sha256)
        for path, sha256 in zip(chosen["path"].to_pylist(), chosen["sha256"].to_pylist(), strict=True)
    ]
    height, width = decode_rgb(photos[0], chosen["path"][0].as_py()).shape[:2]
    kilobytes = float(np.median([len(photo) for photo in photos])) / 1e3
    plural = "" if len(photos) == 1 else "s"
    return (
        photos,
        f"{len(photos)} {domain} test image{plural}, the first {width}×{height} px, median {kilobytes:.0f} kB",
    )


def hardware_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor, as the system calls it, with what it computes small numbers by: ``AMD EPYC (AVX2, VNNI)``.

    Clouds call several generations by one name.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []  # not Linux
    first = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    name = first.get("model name") or platform.processor() or platform.machine()
    flags = (first.get("flags") or first.get("Features") or "").split()
    found = [what for what, named in _INSTRUCTIONS.items() if not named.isdisjoint(flags)]
    return f"{name} ({', '.join(found)})" if found else name
