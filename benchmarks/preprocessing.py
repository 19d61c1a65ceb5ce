"""How fast, and how true, is the way from a photo's bytes to the model's input?

    python benchmarks/preprocessing.py [--photos FOLDER] [--all] [--runs N]

Knows the four ways that are compared and how pixels are compared; knows no accuracy. Runs are interleaved, so what
else the machine does falls on all of them. Legend: H height, W width, C channel.
"""

from __future__ import annotations

import argparse
import collections
import io
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from pillsnap.core.errors import ImageError
from pillsnap.core.image_header import read_header
from pillsnap.core.image_validator import ImageValidator
from pillsnap.core.images import IMAGE_SUFFIXES, decode_rgb, read_image_bytes, reduction
from pillsnap.core.preprocessing import InferencePreprocessor, UnifiedPreprocessor
from pillsnap.core.preprocessing_spec import REDUCED_TOLERANCE_LEVELS, ClaheSpec, PreprocessingSpec

TARGET = 512
PHONE_SIDE = 3000
"""Short side of a 12-megapixel photo, 4000 × 3000."""
CLIENT_QUALITY = 85
Way = Callable[[bytes], Any]


def literal_opencv(data: bytes) -> Any:
    """The specification's steps as OpenCV's users write them (it turns the picture by its EXIF orientation)."""
    image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return literal_steps(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def literal_pil(data: bytes) -> Any:
    """The same, decoded by PIL."""
    return literal_steps(np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")))


def literal_steps(image_HWC_u8: Any) -> Any:
    """Crop, resize, CLAHE on L."""
    height, width = image_HWC_u8.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    resized = cv2.resize(image_HWC_u8[top : top + side, left : left + side], (TARGET, TARGET))
    lab = cv2.cvtColor(resized, cv2.COLOR_RGB2LAB)
    lab[:, :, 0] = cv2.createCLAHE(2.0, (8, 8)).apply(lab[:, :, 0])
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


WAYS: dict[str, Way] = {
    "literal, OpenCV": literal_opencv,
    "literal, PIL": literal_pil,
    "ours, exact": InferencePreprocessor().prepare_for_model,
    "ours, reduced": InferencePreprocessor(PreprocessingSpec(decoding="reduced")).prepare_for_model,
}


def jpeg(image_HWC_u8: Any, quality: int, orientation: int = 1) -> bytes:
    """4:2:0, as phones write it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(image_HWC_u8).save(buffer, "JPEG", quality=quality, subsampling=2, exif=exif)
    return buffer.getvalue()


def enlarged(image_HWC_u8: Any, noise_levels: float) -> Any:
    """12 megapixels of the same content, with a sensor's noise: 4000 × 3000 out of the middle."""
    height, width = image_HWC_u8.shape[:2]
    scale = max(4000 / width, PHONE_SIDE / height)
    size = max(4000, round(width * scale)), max(PHONE_SIDE, round(height * scale))
    large = cv2.resize(image_HWC_u8, size, interpolation=cv2.INTER_CUBIC)
    top, left = (large.shape[0] - PHONE_SIDE) // 2, (large.shape[1] - 4000) // 2
    cut = large[top : top + PHONE_SIDE, left : left + 4000]
    noise = np.random.default_rng(0).normal(0, noise_levels, cut.shape) if noise_levels else 0
    return np.clip(cut + noise, 0, 255).astype(np.uint8)


def timed(photos: Sequence[bytes], runs: int) -> dict[str, float]:
    """Median milliseconds of each way, interleaved."""
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for run in range(runs + 1):
        for photo in photos:
            for name, way in WAYS.items():
                start = time.perf_counter()
                way(photo)
                if run:  # the first is for the caches
                    times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def print_speed(images: Sequence[Any], runs: int) -> None:
    """The table of times."""
    print("\nFrom bytes to model input, 512 px, CLAHE on: median ms (ratio to literal OpenCV)")
    print(f"{'photo':34}" + "".join(f"{name:>20}" for name in WAYS))
    kinds: dict[str, list[bytes]] = {}
    for noise, quality in ((0, 90), (3, 90), (5, 92), (8, 95)):
        large = [enlarged(image, noise) for image in images[:2]]
        for orientation in (1, 6):
            photos = [jpeg(image, quality, orientation) for image in large]
            megabytes = statistics.mean(len(photo) for photo in photos) / 1e6
            kinds[f"12 MP, {megabytes:.1f} MB, " + ("upright" if orientation == 1 else "EXIF turned")] = photos
    client = [UnifiedPreprocessor(PreprocessingSpec(clahe=ClaheSpec(enabled=False))).to_model_input(i) for i in images]
    kinds["512 px, what the client sends"] = [jpeg(image, CLIENT_QUALITY) for image in client] * 4
    for kind, photos in kinds.items():
        medians = timed(photos, runs)
        first = medians["literal, OpenCV"]
        print(f"{kind:34}" + "".join(f"{value:12.2f} ({first / value:4.2f}×)" for value in medians.values()))


def ssim(one: Any, other: Any) -> float:
    """Structural similarity of the luma, Gaussian window of sigma 1.5 (Wang et al., 2004)."""
    x, y = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64) for image in (one, other))

    def mean(image: Any) -> Any:
        return cv2.GaussianBlur(image, (11, 11), 1.5)

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    both = mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(
        np.mean((2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)))
    )


def difference(one: Any, other: Any) -> tuple[float, float, float, float]:
    """Mean absolute difference and its 99th percentile in levels, PSNR in dB, SSIM."""
    levels = np.abs(one.astype(np.float64) - other)
    psnr = 10 * np.log10(255**2 / max(float(np.mean(levels**2)), 1e-6))
    return float(levels.mean()), float(np.percentile(levels, 99)), float(psnr), ssim(one, other)


def compared(photos: Sequence[bytes], target: int, clahe: bool) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Pairs of ways and how far apart they are, photo by photo."""
    common: dict[str, Any] = {"target_size": target, "clahe": ClaheSpec(enabled=clahe)}
    ways = {
        (decoding, interpolation): InferencePreprocessor(
            PreprocessingSpec(**common, decoding=decoding, interpolation=interpolation)
        )
        for decoding in ("exact", "reduced")
        for interpolation in ("linear", "area")
    }
    shrink = UnifiedPreprocessor(PreprocessingSpec(target_size=target, clahe=ClaheSpec(enabled=False)))
    for photo in photos:
        seen = {key: way.prepare_for_model(photo)[0] for key, way in ways.items()}
        ideal = seen["exact", "area"]
        client = ways["exact", "linear"].prepare_for_model(
            jpeg(shrink.to_model_input(decode_rgb(photo)), CLIENT_QUALITY)
        )[0]
        yield "exact linear to ideal", difference(seen["exact", "linear"], ideal)
        yield "reduced linear to ideal", difference(seen["reduced", "linear"], ideal)
        yield "reduced area to ideal", difference(seen["reduced", "area"], ideal)
        yield "reduced linear to exact linear", difference(seen["reduced", "linear"], seen["exact", "linear"])
        yield "client's photo to exact linear", difference(client, seen["exact", "linear"])
        yield "client's photo to reduced linear", difference(client, seen["reduced", "linear"])


def print_difference(title: str, photos: Sequence[bytes], target: int, clahe: bool = False) -> None:
    """The table of differences: the mean over the photos, and the worst photo."""
    results = collections.defaultdict(list)
    for pair, values in compared(photos, target, clahe):
        results[pair].append(values)
    print(
        f"\n{title}: {len(photos)} photos to {target} px, CLAHE {'on' if clahe else 'off'}; mean (worst) of the photos"
    )
    print(f"{'':34}{'mean levels':>16}{'99 % levels':>16}{'PSNR dB':>16}{'SSIM':>18}")
    for pair, rows in results.items():
        mean, worst, least = np.mean(rows, axis=0), np.max(rows, axis=0), np.min(rows, axis=0)
        print(
            f"{pair:34}{mean[0]:9.2f} ({worst[0]:5.2f}){mean[1]:9.1f} ({worst[1]:5.1f})"
            f"{mean[2]:9.1f} ({least[2]:5.1f}){mean[3]:10.4f} ({least[3]:.4f})"
        )
    if not clahe:
        far = max(np.mean(results[f"reduced {kind} to ideal"], axis=0)[0] for kind in ("linear", "area"))
        verdict = "within" if far <= REDUCED_TOLERANCE_LEVELS else "OUTSIDE"
        print(f"reduced to ideal: {far:.2f} levels, {verdict} the tolerance of {REDUCED_TOLERANCE_LEVELS}")


def resaved(image_HWC_u8: Any) -> tuple[bytes, int]:
    """A photo as JPEG, cut so that it can be reduced, and the target of the ratio 3000 to 512 for it."""
    short = min(image_HWC_u8.shape[:2]) // 16 * 16
    height, width = (short + (length - short) // 32 * 32 for length in image_HWC_u8.shape[:2])
    image = image_HWC_u8[:height, :width]
    return jpeg(image, 92), max(16, round(short * TARGET / PHONE_SIDE))


def print_differences(images: Sequence[Any]) -> None:
    """All tables of differences."""
    by_target = collections.defaultdict(list)
    for image in images:
        photo, target = resaved(image)
        if reduction(read_header(photo), target) > 1:
            by_target[target].append(photo)
    if by_target:
        target, photos = max(by_target.items(), key=lambda pair: len(pair[1]))
        for clahe in (False, True):
            print_difference("Photos as they are, shrunk by the ratio of 3000 to 512", photos, target, clahe)
    large = [jpeg(enlarged(image, 3), 92) for image in images[:8]]
    for clahe in (False, True):
        print_difference("Enlarged to 12 megapixels, with noise of 3 levels", large, TARGET, clahe)


def print_folder(files: Sequence[Path]) -> None:
    """Every file through the validator and the preprocessor."""
    preprocessor, validator = InferencePreprocessor(), ImageValidator()
    outcomes: collections.Counter[str] = collections.Counter()
    seconds = {"validator": 0.0, "preprocessor": 0.0}
    for file in files:
        data = read_image_bytes(file)
        start = time.perf_counter()
        result = validator.validate(data, file.name)
        seconds["validator"] += time.perf_counter() - start
        outcomes.update(["accepted" if result.ok else f"refused: {result.refusals[0].code}"])
        outcomes.update(f"warning: {finding.code}" for finding in result.warnings)
        start = time.perf_counter()
        try:
            preprocessor.prepare_for_model(data, file.name)
            outcomes["prepared"] += 1
        except ImageError as error:
            outcomes[f"not prepared: {error.code}"] += 1
        seconds["preprocessor"] += time.perf_counter() - start
    print(f"\nEvery file: {len(files)}; " + ", ".join(f"{name} {count}" for name, count in outcomes.most_common()))
    for name, value in seconds.items():
        print(f"{name}: {len(files) / value:.0f} images/s, one after the other")


def rendered() -> list[Any]:
    """Phone photos of drawn pills, where no folder is given."""
    from pillsnap.synthetic.conditions import choose_real
    from pillsnap.synthetic.drugs import design_drugs
    from pillsnap.synthetic.render import build_model, render_real

    return [
        render_real(build_model(design), choose_real(0, design.index, 1)[0], 0)[0] for design in design_drugs(24, 0)
    ]


def main() -> None:
    """Read the options, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder of photos; without it, pictures are rendered")
    parser.add_argument("--count", type=int, default=60, help="photos that are compared (default 60)")
    parser.add_argument("--runs", type=int, default=7, help="timed runs of each (default 7)")
    parser.add_argument("--all", action="store_true", help="also push every file of the folder through")
    options = parser.parse_args()
    if options.photos is None:
        images = rendered()
        print("Rendered pictures (give real ones with --photos)")
    else:
        files = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            parser.error(f"{options.photos}: no {', '.join(sorted(IMAGE_SUFFIXES))} in it")
        chosen = files[:: max(1, len(files) // options.count)]
        images = [decode_rgb(read_image_bytes(path), str(path)) for path in chosen]
        print(f"{len(files)} photos, {len(images)} of them compared")
        if options.all:
            print_folder(files)
    print_speed(images, options.runs)
    print_differences(images)


if __name__ == "__main__":
    main()
