"""Which form of the prepared cache feeds a GPU: raw memory map, JPEG, WebP, PNG, or an existing shard format.

    python benchmarks/cache_formats.py --size 512                  # pictures that pillsnap.synthetic draws
    python benchmarks/cache_formats.py --size 512 --photos DIR     # one's own photos

All formats hold the same prepared pictures, and are written and read in turns, in one process with one thread: the
figures are for one core and can be compared. ``webdataset`` (tar shards) and ``lmdb`` are needed here alone
(``pip install webdataset lmdb``); where one is missing, its rows are left out.
Legend: N pictures, H, W size, C channel.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pillsnap.core.errors import ImageError
from pillsnap.core.images import IMAGE_SUFFIXES
from pillsnap.core.preprocessing import InferencePreprocessor
from pillsnap.core.preprocessing_spec import PreprocessingSpec
from pillsnap.synthetic.dataset import DemoSpec, render_dataset

Image = NDArray[np.uint8]
_SHARD = 256
"""Pictures in one tar shard."""
_SCALES = (34_000, 2_600_000)
_ALL_CORES = 16


class Codec:
    """From ``image_HWC_u8`` to bytes and back."""

    def __init__(self, suffix: str, *options: int) -> None:
        self.suffix, self._options = suffix, list(options)

    def encode(self, image_HWC_u8: Image) -> bytes:
        """The compressed picture."""
        return cv2.imencode(self.suffix, image_HWC_u8[..., ::-1], self._options)[1].tobytes()

    def decode(self, data: Any) -> Image:
        """The picture again."""
        return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


JPEG = Codec(".jpg", cv2.IMWRITE_JPEG_QUALITY, 95)
CODECS = {
    "JPEG q95": JPEG,
    "JPEG q95 4:4:4": Codec(
        ".jpg",
        cv2.IMWRITE_JPEG_QUALITY,
        95,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ),
    "WebP q95": Codec(".webp", cv2.IMWRITE_WEBP_QUALITY, 95),
    "WebP lossless": Codec(".webp", cv2.IMWRITE_WEBP_QUALITY, 101),
    "PNG": Codec(".png", cv2.IMWRITE_PNG_COMPRESSION, 1),
}


class RawMap:
    """One file of pixels, read as a memory map: what ``pillsnap.data.cache`` is."""

    def __init__(self, folder: Path, size: int) -> None:
        self._path, self._size = folder / "images.u8", size
        self._stream: Any = self._path.open("wb")

    def add(self, image: Image) -> None:
        """Append."""
        self._stream.write(image.data)

    def finish(self) -> None:
        """Everything is on the disk."""
        _sync(self._stream)

    def read(self, order: NDArray[np.int64]) -> Iterator[Image]:
        """Pictures in this order."""
        images_NHWC_u8 = np.memmap(self._path, np.uint8, "r").reshape(-1, self._size, self._size, 3)
        for row in order:
            yield np.array(images_NHWC_u8[row])


class Packed:
    """Compressed pictures end to end in one file, with a list of where each begins."""

    def __init__(self, folder: Path, codec: Codec) -> None:
        self._path, self._codec, self._starts = folder / "images.pack", codec, [0]
        self._stream: Any = self._path.open("wb")

    def add(self, image: Image) -> None:
        """Append."""
        self._starts.append(self._starts[-1] + self._stream.write(self._codec.encode(image)))

    def finish(self) -> None:
        """Everything is on the disk."""
        _sync(self._stream)

    def read(self, order: NDArray[np.int64]) -> Iterator[Image]:
        """Pictures in this order."""
        with self._path.open("rb") as stream:
            for row in order:
                start, end = self._starts[row], self._starts[row + 1]
                yield self._codec.decode(os.pread(stream.fileno(), end - start, start))


class ArrowIpc:
    """Arrow IPC file, JPEG q95 in a binary column, memory-mapped."""

    def __init__(self, folder: Path, codec: Codec) -> None:
        self._path, self._codec = folder / "images.arrow", codec
        schema = pa.schema([("image", pa.binary())])
        self._writer = pa.ipc.new_file(str(self._path), schema)
        self._schema = schema

    def add(self, image: Image) -> None:
        """Append (one record batch a picture: what is written is out of the memory)."""
        self._writer.write_batch(pa.record_batch([pa.array([self._codec.encode(image)], pa.binary())], self._schema))

    def finish(self) -> None:
        """Everything is on the disk."""
        self._writer.close()
        _sync(self._path.open("rb+"))

    def read(self, order: NDArray[np.int64]) -> Iterator[Image]:
        """Pictures in this order."""
        with pa.memory_map(str(self._path)) as source:
            reader = pa.ipc.open_file(source)
            for row in order:
                yield self._codec.decode(reader.get_batch(int(row)).column(0)[0].as_buffer())


class Lmdb:
    """LMDB with JPEG q95 values."""

    def __init__(self, folder: Path, codec: Codec) -> None:
        self._lmdb = importlib.import_module("lmdb")
        self._path, self._codec, self._count = str(folder / "db"), codec, 0
        self._db = self._lmdb.open(self._path, map_size=2**40, sync=False)
        self._write = self._db.begin(write=True)

    def add(self, image: Image) -> None:
        """Append."""
        self._write.put(b"%09d" % self._count, self._codec.encode(image), append=True)
        self._count += 1

    def finish(self) -> None:
        """Everything is on the disk."""
        self._write.commit()
        self._db.sync(True)
        self._db.close()

    def read(self, order: NDArray[np.int64]) -> Iterator[Image]:
        """Pictures in this order."""
        with (
            self._lmdb.open(self._path, readonly=True, lock=False, readahead=False) as db,
            db.begin(buffers=True) as reading,
        ):
            for row in order:
                yield self._codec.decode(reading.get(b"%09d" % row))


class TarShards:
    """WebDataset: tar shards of JPEG q95. Read from front to back, shuffled in a buffer: not in a given order."""

    def __init__(self, folder: Path, codec: Codec) -> None:
        self._wds = importlib.import_module("webdataset")
        self._folder, self._codec, self._count = folder, codec, 0
        self._writer = self._wds.ShardWriter(f"{folder}/%06d.tar", maxcount=_SHARD, verbose=0)

    def add(self, image: Image) -> None:
        """Append."""
        self._writer.write({"__key__": f"{self._count:09d}", "jpg": self._codec.encode(image)})
        self._count += 1

    def finish(self) -> None:
        """Everything is on the disk."""
        self._writer.close()
        for path in self._folder.iterdir():
            _sync(path.open("rb+"))

    def read(self, order: NDArray[np.int64]) -> Iterator[Image]:
        """As many pictures, in an order of its own."""
        shards = [str(path) for path in sorted(self._folder.iterdir())]
        samples = self._wds.WebDataset(shards, shardshuffle=len(shards), empty_check=False, seed=0).shuffle(_SHARD)
        for sample, _ in zip(samples, order, strict=False):
            yield self._codec.decode(sample["jpg"])


def _sync(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())
    stream.close()


def _folder(root: Path, name: str) -> Path:
    """The folder of a format; made when it is asked for the first time."""
    path = root / "".join(letter for letter in name if letter.isalnum())
    path.mkdir(exist_ok=True)
    return path


def _formats(root: Path, size: int) -> dict[str, Any]:
    raw = "raw memory map"
    formats: dict[str, Any] = {raw: RawMap(_folder(root, raw), size)}
    for name, codec in CODECS.items():
        formats[name] = Packed(_folder(root, name), codec)
    existing = {
        "Arrow IPC, JPEG q95": ("pyarrow", ArrowIpc),
        "LMDB, JPEG q95": ("lmdb", Lmdb),
        "WebDataset tar, JPEG q95": ("webdataset", TarShards),
    }
    for name, (module, make) in existing.items():
        if importlib.util.find_spec(module):
            formats[name] = make(_folder(root, name), JPEG)
        else:
            print(f"{name}: left out, the package {module} is not installed")
    return formats


def _prepared(photos: Path, count: int, size: int) -> Iterator[tuple[Image, float]]:
    """Prepared pictures from all over the folder, and the seconds that preparing took (reading not counted)."""
    paths = sorted(path for path in photos.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise SystemExit(f"{photos}: holds no pictures")
    preprocessor = InferencePreprocessor(PreprocessingSpec(target_size=size))
    for path in np.random.default_rng(0).permutation(np.asarray(paths, object))[:count]:
        data = path.read_bytes()
        started = time.perf_counter()
        try:
            image = preprocessor.prepare_for_model(data, str(path))[0]
        except ImageError as error:
            print(f"left out: {error}")
            continue
        yield image, time.perf_counter() - started


def _build(formats: dict[str, Any], pictures: Iterable[tuple[Image, float]]) -> tuple[Image, float, dict[str, float]]:
    """Write every picture in every format; the pictures, seconds of preparing, seconds of writing by format."""
    images, preparing_s, writing_s = [], 0.0, dict.fromkeys(formats, 0.0)
    for image, seconds in pictures:
        images.append(image)
        preparing_s += seconds
        for name, one in formats.items():
            started = time.perf_counter()
            one.add(image)
            writing_s[name] += time.perf_counter() - started
    for name, one in formats.items():
        started = time.perf_counter()
        one.finish()
        writing_s[name] += time.perf_counter() - started
    return np.stack(images), preparing_s, writing_s


def _read_seconds(formats: dict[str, Any], count: int, rounds: int, root: Path, cold: bool) -> dict[str, float]:
    """Median seconds to read ``count`` pictures in a random order, the formats in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in formats}
    for number in range(rounds):
        order = np.random.default_rng(number).permutation(count)
        for name, one in formats.items():
            if cold:
                _drop_from_page_cache(root)
            started = time.perf_counter()
            for _ in one.read(order):
                pass
            seconds[name].append(time.perf_counter() - started)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def _bytes_on_disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _drop_from_page_cache(root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _error(one: Any, images_NHWC_u8: Image) -> tuple[float, int]:
    """Mean and largest difference from the pixels that went in, in grey levels."""
    mean, worst = 0.0, 0
    for image, got in zip(images_NHWC_u8, one.read(np.arange(len(images_NHWC_u8))), strict=True):
        difference = cv2.absdiff(image, got)
        mean, worst = mean + float(difference.mean()), max(worst, int(difference.max()))
    return mean / len(images_NHWC_u8), worst


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="side of the prepared picture in pixels")
    parser.add_argument("--count", type=int, default=400, help="pictures")
    parser.add_argument("--rounds", type=int, default=3, help="readings of everything; the median is told")
    parser.add_argument("--photos", type=Path, help="folder of photos (default: drawn ones)")
    parser.add_argument("--folder", type=Path, help="where to write; on the disk that will hold the cache")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    root = Path(tempfile.mkdtemp(prefix="cache-formats-", dir=options.folder))
    try:
        photos = options.photos
        if photos is None:
            photos = root / "drawn"
            render_dataset(photos, DemoSpec(drugs=max(2, -(-options.count // 50)), studio_per_drug=20))
        store = root / "store"
        store.mkdir()
        _measure(store, photos, options)
    finally:
        shutil.rmtree(root)


def _measure(store: Path, photos: Path, options: argparse.Namespace) -> None:
    formats = _formats(store, options.size)
    images, preparing_s, writing_s = _build(formats, _prepared(photos, options.count, options.size))
    count = len(images)
    sizes = {name: _bytes_on_disk(_folder(store, name)) / count for name in formats}
    warm_s = _read_seconds(formats, count, options.rounds, store, cold=False)
    cold_s = _read_seconds(formats, count, options.rounds, store, cold=True)
    print(f"{count} pictures of {photos}, {options.size} px; preparing alone {count / preparing_s:.0f} images/s a core")
    print(
        "| format | build images/s a core | KB an image | warm read images/s a core | cold | mean (max) error |"
        + "".join(f" {scale:,}: GB, build min on {_ALL_CORES} cores |" for scale in _SCALES)
    )
    print("|---|---|---|---|---|---|" + "---|" * len(_SCALES))
    for name, one in formats.items():
        build = count / (preparing_s + writing_s[name])
        error = "" if isinstance(one, TarShards) else "{:.2f} ({})".format(*_error(one, images))
        scales = "".join(
            f" {scale * sizes[name] / 1e9:,.1f}, {scale / build / 60 / _ALL_CORES:,.1f} |" for scale in _SCALES
        )
        print(
            f"| {name} | {build:.0f} | {sizes[name] / 1e3:.1f} | {count / warm_s[name]:.0f} | "
            f"{count / cold_s[name]:.0f} | {error} |{scales}"
        )


if __name__ == "__main__":
    main()
