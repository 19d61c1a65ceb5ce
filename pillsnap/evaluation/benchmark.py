"""Time bundles beside each other: by threads, by batch, and by the stages of one photo.

The stages are those of `PillSession.answer`, one by one. Several bundles take turns, a few runs each, so that a slow
moment of the machine falls on all of them. Knows the clock and the machine; knows nothing of right or wrong.
Legend: H height, W width, C channel.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

import pillsnap
from pillsnap.clients.phone import PhoneClient
from pillsnap.core.cpu import usable_cores
from pillsnap.core.errors import ConfigError
from pillsnap.core.files import sha256_bytes
from pillsnap.core.image_header import read_header
from pillsnap.evaluation.latency import hardware_name
from pillsnap.inference.session import PillSession

STAGES = ("decode", "crop + resize", "CLAHE", "inference", "rest")
"""Of one photo, in their order; ``rest`` is the ranking."""
WHOLE = "whole"
"""From the photo's bytes to the top 5."""
TOP = 5
TURN = 5
"""Runs of a bundle before the next one has its turn."""
_BIG = (3024, 4032)
"""Height and width of a 12-megapixel photo."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Photo:
    """A file to time."""

    name: str
    data: bytes

    @property
    def words(self) -> str:
        """Name and size, for the table."""
        header = read_header(self.data, self.name)
        return f"{self.name} ({header.width}×{header.height} {header.format.upper()}, {len(self.data) / 1e3:.0f} kB)"


@dataclass(frozen=True)
class Timing:
    """Milliseconds of something that was done ``runs`` times."""

    bundle: str
    threads: int
    what: str
    """A stage, or the whole."""
    photo: str
    """Empty where only the model was timed."""
    batch: int
    runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    least_ms: float


@dataclass(frozen=True)
class Benchmark:
    """All timings, and what they were taken on."""

    bundles: tuple[dict[str, object], ...]
    photos: tuple[dict[str, object], ...]
    timings: tuple[Timing, ...]
    warm_up: int
    hardware: str = field(default_factory=hardware_name)
    cores: int = field(default_factory=usable_cores)
    environment: dict[str, str] = field(
        default_factory=lambda: {
            "pillsnap": pillsnap.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "system": platform.platform(),
        }
    )

    def report(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def markdown(self) -> str:
        """What it was measured on, and a table with one line a timing."""
        engines = "; ".join(
            f"{b['name']}: {b['precision']}, {b['provider']} ({b['library']} {b['version']})" for b in self.bundles
        )
        lines = [
            f"{self.hardware}, {self.cores} cores. {engines}.",
            "",
            "| bundle | threads | batch | what | photo | p50 ms | p95 ms | p99 ms | least |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {t.bundle} | {t.threads} | {t.batch} | {t.what} | {t.photo} | {t.p50_ms:.1f} | {t.p95_ms:.1f} | "
            f"{t.p99_ms:.1f} | {t.least_ms:.1f} |"
            for t in self.timings
        ]
        return "\n".join(lines)


def run_benchmark(
    bundles: Sequence[Path],
    photos: Sequence[Photo],
    *,
    threads: Sequence[int] | None = None,
    batches: Sequence[int] = (1, 8),
    runs: int = 100,
    warm_up: int = 10,
    progress: Progress | None = None,
) -> Benchmark:
    """Time ``bundles`` beside each other.

    Args:
        bundles: ``.onnx`` files.
        photos: timed one at a time, from their bytes to the top 5; none: only the model is timed.
        threads: within one inference; by default 1, 2, 4 … up to the cores that this process may use.
        batches: images at once, for the model alone.
        runs: of each figure; of a batch of N a Nth part, at least `TURN`.
        warm_up: runs before, not counted.
        progress: called with what is timed, turns done, and turns in all.

    Raises:
        BundleError: no bundle, or its engine is not here.
        ImageError: a photo cannot be decoded.
        ConfigError: no bundle, no runs, or one bundle twice.
    """
    if not bundles or runs < 1 or warm_up < 0:
        raise ConfigError(f"a benchmark needs a bundle and at least 1 run ({len(bundles)} bundles, {runs} runs)")
    if len({bundle.resolve() for bundle in bundles}) < len(bundles):
        raise ConfigError("a benchmark compares bundles with each other, and one is named twice; leave it out")
    names = _short_names(bundles)
    taken: list[Timing] = []
    facts: list[dict[str, object]] = []
    for count in threads or _doubling(usable_cores()):
        sessions = dict(zip(names, [PillSession.load(bundle, threads=count) for bundle in bundles], strict=True))
        facts = [_facts(name, session) for name, session in sessions.items()]
        threads_words = f"{count} thread{'s' * (count != 1)}"
        for photo in photos:
            clocks = {name: _photo_clock(session, photo) for name, session in sessions.items()}
            tell = _teller(progress, f"{photo.name}, {threads_words}, runs")
            for name, rows in _in_turns(clocks, runs, warm_up, tell).items():
                for what in (WHOLE, *STAGES):
                    taken.append(_timing(name, count, what, photo.words, 1, [row[what] for row in rows]))
        for batch in batches:
            clocks = {name: _batch_clock(session, batch) for name, session in sessions.items()}
            tell = _teller(progress, f"the model alone, batch {batch}, {threads_words}, runs")
            for name, rows in _in_turns(clocks, max(TURN, runs // batch), warm_up, tell).items():
                taken.append(_timing(name, count, "inference", "", batch, [row["inference"] for row in rows]))
    seen = [{"name": p.words, "bytes": len(p.data), "sha256": sha256_bytes(p.data)} for p in photos]
    return Benchmark(tuple(facts), tuple(seen), tuple(taken), warm_up)


def time_stages(session: PillSession, photo: bytes, name: str = "image") -> dict[str, float]:
    """Milliseconds of each of `STAGES` and of the `WHOLE`, of one photo. Raises ImageError, BundleError."""
    preprocessor = session.preprocessor
    ticks = [time.perf_counter()]
    image_HWC_u8, _ = preprocessor.decode_examined(photo, name)
    ticks.append(time.perf_counter())
    square_HWC_u8 = preprocessor.preprocessor.crop_and_resize(image_HWC_u8)
    ticks.append(time.perf_counter())
    equalised_HWC_u8 = preprocessor.preprocessor.equalise(square_HWC_u8)
    ticks.append(time.perf_counter())
    probabilities_K = session.predict(equalised_HWC_u8[np.newaxis]).probabilities_NK[0]
    ticks.append(time.perf_counter())
    session.rank(probabilities_K, TOP)
    ticks.append(time.perf_counter())
    stages = {stage: 1000 * (b - a) for stage, a, b in zip(STAGES, ticks, ticks[1:], strict=False)}
    return {**stages, WHOLE: 1000 * (ticks[-1] - ticks[0])}


def drawn_photos() -> tuple[Photo, Photo]:
    """A 12-megapixel JPEG of a drawn pill, and what the phone makes of it. Always the same bytes."""
    height, width = _BIG
    rng = np.random.default_rng(0)
    coarse = rng.integers(90, 170, (height // 64, width // 64, 3), np.uint8)
    image_HWC_u8: NDArray[np.uint8] = np.asarray(
        cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8
    )
    grain = rng.integers(0, 12, (height, width, 1), np.uint8)
    image_HWC_u8 = np.asarray(cv2.add(image_HWC_u8, np.repeat(grain, 3, axis=2)), np.uint8)
    centre = (width // 2, height // 2)
    cv2.ellipse(image_HWC_u8, centre, (900, 560), 20, 0, 360, (225, 232, 240), -1, cv2.LINE_AA)
    cv2.putText(image_HWC_u8, "PS 512", (centre[0] - 520, centre[1] + 90), 0, 9, (90, 90, 110), 30, cv2.LINE_AA)
    done, buffer = cv2.imencode(".jpg", image_HWC_u8, [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert done
    big = buffer.tobytes()
    return Photo("client", PhoneClient().prepare(big)), Photo("camera", big)


def _photo_clock(session: PillSession, photo: Photo) -> Callable[[], dict[str, float]]:
    return lambda: time_stages(session, photo.data, photo.name)


def _batch_clock(session: PillSession, batch: int) -> Callable[[], dict[str, float]]:
    side = session.metadata.preprocessing.target_size
    image_NHWC_u8 = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)

    def clock() -> dict[str, float]:
        start = time.perf_counter()
        session.predict(image_NHWC_u8)
        return {"inference": 1000 * (time.perf_counter() - start)}

    return clock


def _in_turns(
    clocks: dict[str, Callable[[], dict[str, float]]], runs: int, warm_up: int, tell: Callable[[int, int], None]
) -> dict[str, list[dict[str, float]]]:
    for clock in clocks.values():
        for _ in range(warm_up):
            clock()
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in clocks}
    for turn in range(0, runs, TURN):
        for name, clock in clocks.items():
            clock()  # the caches are the former one's
            taken[name] += [clock() for _ in range(min(TURN, runs - turn))]
        tell(min(turn + TURN, runs), runs)
    return taken


def _timing(bundle: str, threads: int, what: str, photo: str, batch: int, times_ms: list[float]) -> Timing:
    p50, p95, p99 = (round(float(value), 3) for value in np.percentile(times_ms, [50, 95, 99]))
    return Timing(bundle, threads, what, photo, batch, len(times_ms), p50, p95, p99, round(min(times_ms), 3))


def _facts(name: str, session: PillSession) -> dict[str, object]:
    return {
        "name": name,
        "sha256": session.sha256,
        "size_mb": session.size_bytes / 1e6,
        "backbone": session.metadata.provenance.backbone,
        "input_px": session.metadata.preprocessing.target_size,
        "precision": session.metadata.precision,
        "engine": session.engine.name,
        "provider": session.provider,
        "library": session.engine.library,
        "version": session.engine.version,
    }


def _short_names(bundles: Sequence[Path]) -> list[str]:
    names = [bundle.stem for bundle in bundles]
    return names if len(set(names)) == len(names) else [str(bundle) for bundle in bundles]


def _doubling(cores: int) -> list[int]:
    return sorted({cores, *(2**exponent for exponent in range(cores.bit_length()) if 2**exponent <= cores)})


def _teller(progress: Progress | None, what: str) -> Callable[[int, int], None]:
    return (lambda done, total: progress(what, done, total)) if progress else (lambda done, total: None)
