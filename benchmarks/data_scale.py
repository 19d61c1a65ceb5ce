"""Does preparing a data set stay as fast, and as small, when the data set grows? And how far is reading from cv2?

    python benchmarks/data_scale.py --sizes 1000 10000 100000

Makes trees of real photos (JPEG, varied copies of rendered ones, 100 drugs, names of the capture protocol), prepares
each in a process of its own, and again with nothing changed. In the same run, in turns, it reads the same files with
`cv2.imread` and a resize to 512 px, and as the scan does (digest, decoding, hashes, figures of the audit), on one core;
also studio PNGs of 976 × 1280 and photos of 12 megapixels. Legend: H height, W width, C channel.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pillsnap.core.files import write_json
from pillsnap.data.reading import read_picture
from pillsnap.data.sources import Picture
from pillsnap.synthetic.conditions import choose_real
from pillsnap.synthetic.drugs import PillDesign, design_drugs
from pillsnap.synthetic.render import build_model, render_real

_DRUGS = 100
_TURNS = 5
_ALL = 2_600_000


def base_pictures(count: int = 12) -> list[tuple[PillDesign, NDArray[np.uint8]]]:
    """Rendered photos, BGR."""
    pictures = []
    for design in design_drugs(_DRUGS, 0)[:count]:
        photo, _ = render_real(build_model(design), choose_real(0, design.index, 1)[0], 0)
        pictures.append((design, cv2.cvtColor(photo, cv2.COLOR_RGB2BGR)))
    return pictures


def vary(image_HWC_u8: NDArray[np.uint8], width: int, height: int, seed: int) -> NDArray[np.uint8]:
    """Another picture of it: other clouds of light, place and noise, so that no two are near-duplicates."""
    rng = np.random.default_rng(seed)
    large = cv2.resize(image_HWC_u8, (width, height), interpolation=cv2.INTER_CUBIC)
    light = cv2.resize(rng.integers(-70, 70, (6, 8), np.int16).astype(np.float32), (width, height))
    noise = np.zeros(large.shape[:2], np.int8)
    cv2.setRNGSeed(seed)
    cv2.randn(noise, 0, 3)
    shifted = np.roll(large, tuple(rng.integers(-height // 4, height // 4, 2)), axis=(0, 1))
    return np.clip(shifted + (light + noise)[..., np.newaxis], 0, 255).astype(np.uint8)


def make_tree(root: Path, images: int, width: int, height: int) -> None:
    """``images`` photos of 100 drugs by the capture protocol."""
    bases = base_pictures()
    kcodes = [design.kcode for design in design_drugs(_DRUGS, 0)]
    entries = [{"kcode": kcode, "drug_name": kcode} for kcode in kcodes]
    write_json(root / "drugs.json", {"version": "1", "drugs": entries})

    def write(index: int) -> None:
        kcode, number = kcodes[index % _DRUGS], index // _DRUGS
        cell, turn = number % 30, number // 30
        name = f"{kcode}_{cell % 5}_{cell // 5 % 3}_{cell // 15}_0_90_{turn:03d}_200.jpg"
        picture = vary(bases[index % len(bases)][1], width, height, index)
        path = root / "real_photos" / kcode / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(write, range(images), chunksize=64):
            pass


def prepare(raw: Path, out: Path) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak memory in MiB of ``pillsnap data prepare``."""
    command = [sys.executable, "-m", "pillsnap", "data", "prepare", "--raw", str(raw), "--out", str(out)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{said}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def plain(path: Path) -> None:
    """What every reader must do at least."""
    cv2.resize(cv2.imread(str(path)), (512, 512))


def scanned(path: Path) -> None:
    """What the scan does."""
    fault = read_picture(Picture(path.name, path, path.name[:8], "real")).fault
    if fault:
        raise SystemExit(f"{path}: {fault}")


def against_cv2(files: Sequence[Path]) -> tuple[float, float, float]:
    """Images/s of cv2 alone and of the scan, on one core, and the median of cv2's speed ÷ the scan's, turn by turn."""
    cv2.setNumThreads(1)

    def seconds(read: Callable[[Path], None]) -> float:
        started = time.process_time()
        for path in files:
            read(path)
        return time.process_time() - started

    for path in files:
        path.read_bytes()  # into the page cache
    pairs = [(seconds(plain), seconds(scanned)) for _ in range(_TURNS)]
    ratio = statistics.median(scan / alone for alone, scan in pairs)
    alone, scan = (len(files) / statistics.median(values) for values in zip(*pairs, strict=True))
    return alone, scan, ratio


def large_pictures(folder: Path) -> dict[str, list[Path]]:
    """Studio PNGs and 12-megapixel photos."""
    bases = base_pictures(8)
    kinds = {"PNG 976×1280": (976, 1280, ".png", 24), "JPEG 4000×3000": (4000, 3000, ".jpg", 12)}
    made: dict[str, list[Path]] = {}
    for title, (width, height, suffix, count) in kinds.items():
        for index in range(count):
            design, picture = bases[index % len(bases)]
            path = folder / f"{design.kcode}_{index}{suffix}"
            cv2.imwrite(str(path), vary(picture, width, height, index))
            made.setdefault(title, []).append(path)
    return made


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000], help="pictures of each data set")
    parser.add_argument("--width", type=int, default=640, help="of the photos, in pixels")
    parser.add_argument("--height", type=int, default=480, help="of the photos, in pixels")
    parser.add_argument("--work", type=Path, help="folder for the pictures (default: a temporary one)")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(dir=options.work))
    try:
        print(f"{'images':>8} {'wall s':>8} {'images/s':>9} {'per core':>9} {'peak MiB':>9} {'again s':>8} {'MiB':>6}")
        sample: list[Path] = []
        for images in options.sizes:
            raw, out = work / f"raw{images}", work / f"out{images}"
            make_tree(raw, images, options.width, options.height)
            wall, cpu, peak = prepare(raw, out)
            again, _, peak_again = prepare(raw, out)
            used = json.loads((out / "report.json").read_text())["pictures_used"]
            if used != images:
                raise SystemExit(f"{used} of {images} pictures were used: the benchmark's pictures are no good")
            print(
                f"{images:8d} {wall:8.1f} {images / wall:9.0f} {images / cpu:9.0f} {peak:9.0f} {again:8.1f} "
                f"{peak_again:6.0f}",
                flush=True,
            )
            sample = sorted((raw / "real_photos").rglob("*.jpg"))[:: max(images // 200, 1)][:200]
            if images != options.sizes[-1]:
                shutil.rmtree(raw)
            shutil.rmtree(out)
        kinds = {f"JPEG {options.width}×{options.height}": sample, **large_pictures(work)}
        titles = ("one core", "cv2 images/s", "scan images/s", "scan ÷ cv2, time", "2.6 M on 16 cores")
        print("\n{:16s} {:>13} {:>14} {:>17} {:>18}".format(*titles))
        for title, files in kinds.items():
            alone, scan, ratio = against_cv2(files)
            print(f"{title:16s} {alone:13.0f} {scan:14.0f} {ratio:17.2f} {_ALL / scan / 16 / 3600:16.1f} h")
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
