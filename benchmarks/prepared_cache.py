"""How fast the prepared cache is made, made again and read, and what holds the training up.

    python benchmarks/prepared_cache.py MANIFEST_DIR --size 512

Builds it three times in processes of their own: at once; killed with SIGKILL half-way and started again; and for a
manifest that shares 19 of 20 pictures with a cache that is there. Then reads it as the training does.
Legend: N images.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from pillsnap.core.experiment import ExperimentConfig
from pillsnap.core.manifest import Manifest
from pillsnap.core.preprocessing_spec import PreprocessingSpec
from pillsnap.data.cache import PreparedCache

_SHARED = 0.95


def build(root: Path, size: int, folder: Path, share: float = 1.0, kill_at: float = 2.0) -> tuple[float, float]:
    """Seconds of the build, and MiB by which the process grew; killed where so much of a stage is done."""
    manifest = Manifest.load(root)
    if share < 1:
        summary = {name: value for name, value in manifest.summary.items() if name not in ("hash", "manifest_version")}
        rows = manifest.rows.take(np.flatnonzero(np.random.default_rng(0).random(manifest.rows.num_rows) < share))
        manifest = Manifest.build(root, summary, rows, manifest.catalog)

    def progress(_: str, done: int, total: int) -> None:
        if done > kill_at * total:
            os.kill(os.getpid(), signal.SIGKILL)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    PreparedCache.build(manifest, PreprocessingSpec(target_size=size), folder, progress=progress)
    seconds = time.perf_counter() - started
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def apart(function: Callable[..., tuple[float, float]], *values: object) -> tuple[float, float] | None:
    """Run it in a new process; None where that was killed."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(function, *values).result()
        except BrokenProcessPool:
            return None


def time_builds(root: Path, size: int, folder: Path) -> Path:
    """Print one line for each way; the folder with a whole cache."""
    count = Manifest.load(root).rows.num_rows
    print(f"{count} images of {size} px, {count * size * size * 3 / 2**20:.0f} MiB, {os.cpu_count()} cores")
    seconds, grown = apart(build, root, size, folder / "fresh") or (0, 0)
    print(f"built:                    {seconds:6.1f} s, {count / seconds:6.0f} images/s, memory +{grown:.0f} MiB")
    if apart(build, root, size, folder / "killed", 1.0, 0.5) is not None:
        raise SystemExit("the build was not killed")
    again, _ = apart(build, root, size, folder / "killed") or (0, 0)
    print(f"killed half-way, resumed: {again:6.1f} s, {again / seconds:6.0%} of a whole build")
    apart(build, root, size, folder / "grown", _SHARED)
    more, grown = apart(build, root, size, folder / "grown") or (0, 0)
    print(f"{_SHARED:.0%} copied:               {more:6.1f} s, {more / seconds:6.0%}, memory +{grown:.0f} MiB")
    opened, _ = apart(build, root, size, folder / "fresh") or (0, 0)
    print(f"there already:            {opened:6.3f} s")
    return folder / "fresh"


def time_feed(root: Path, size: int, folder: Path, experiment: Path, workers: int) -> None:
    """Reading alone, augmentation alone, and the training's loader with both."""
    from pillsnap.training.augment import augment
    from pillsnap.training.batches import TrainingData, train_loader

    config = ExperimentConfig.load(
        experiment, {"preprocessing.target_size": size, "data.workers": workers, "data.domain": "all"}
    )
    manifest = Manifest.load(root)
    data = TrainingData.of(manifest, PreparedCache.open(manifest, PreprocessingSpec(target_size=size), folder), config)
    cv2.setNumThreads(1)
    order = np.random.default_rng(0).permutation(data.train_indices)[:600]
    rng = np.random.default_rng(0)
    read_s = augment_s = 0.0
    for row in order:
        started = time.perf_counter()
        image = np.array(data.cache.images_NHWC_u8[row])
        between = time.perf_counter()
        augment(image, config.augmentation, rng)
        read_s, augment_s = read_s + between - started, augment_s + time.perf_counter() - between
    loader, _ = train_loader(data, config, cuda=False)
    for _ in range(2):  # the workers are there at the second
        started = time.perf_counter()
        images = sum(len(labels) for _, labels in loader)
        loader_s = time.perf_counter() - started
    print(f"one core: read {len(order) / read_s:.0f} images/s, augment {len(order) / augment_s:.0f} images/s")
    print(f"train_loader, {workers} workers: {images / loader_s:.0f} images/s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--size", type=int, default=512, help="side of the prepared picture in pixels")
    parser.add_argument("--experiment", type=Path, default=Path("experiments/reference.yaml"))
    parser.add_argument("--workers", type=int, default=2, help="of the training's loader")
    parser.add_argument("--folder", type=Path, help="where to write; on the disk that will hold the cache")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="prepared-cache-", dir=options.folder))
    try:
        time_feed(
            options.manifest,
            options.size,
            time_builds(options.manifest, options.size, folder),
            options.experiment,
            options.workers,
        )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
