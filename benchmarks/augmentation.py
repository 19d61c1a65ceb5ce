"""Where augmentation is cheapest: on the CPU an image at a time, or on the training device a batch at a time.

    python benchmarks/augmentation.py --sizes 64 224 512

Both do the reference configuration's rotation, crop, colour jitter and blur, and every image draws its own values.
``cv2, one process`` is what the package does (`pillsnap.training.augment`), ``cv2, N workers`` is the same behind the
loader of the training, and ``tensors`` is written here with PyTorch's own operators on the device that the training
would use. Where workers and training share the cores, their times add up; where the training runs on a GPU, the
workers' time is hidden as long as they are faster than its steps, and tensors would take time from the steps.
Rounds of all ways take turns; read the ratios. Legend: N batch, H height, W width, C channel.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pillsnap.core.experiment import AugmentationConfig
from pillsnap.training.augment import augment

CONFIG = AugmentationConfig()
_LUMA = (0.299, 0.587, 0.114)


def pictures(count: int, size: int) -> NDArray[np.uint8]:
    """``images_NHWC_u8``: smooth, coloured, noisy; the time of augmentation does not hang on what is on them."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    return np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC) for image in coarse])


class Augmented(Dataset[Tensor]):
    """The package's way, behind a loader."""

    def __init__(self, images_NHWC_u8: NDArray[np.uint8]) -> None:
        self._images = images_NHWC_u8

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> Tensor:
        """One image."""
        return torch.from_numpy(augment(self._images[row], CONFIG, np.random.default_rng(row)))


def augment_batch(image_NHWC_u8: Tensor, config: AugmentationConfig) -> Tensor:
    """The same augmentation on a batch: ``image_NCHW_f32`` on the scale 0..1, each image with values of its own."""
    image = image_NHWC_u8.permute(0, 3, 1, 2).float() / 255
    image = _jitter(_warp(image, config), config).clamp(0, 1)
    return _blur(image, config)


def _uniform(like: Tensor, low: float, high: float) -> Tensor:
    return torch.rand(len(like), device=like.device) * (high - low) + low


def _warp(image: Tensor, config: AugmentationConfig) -> Tensor:
    angle = torch.deg2rad(_uniform(image, -config.rotation_degrees, config.rotation_degrees))
    area = _uniform(image, *config.random_crop.scale)
    low, high = config.random_crop.ratio
    ratio = _uniform(image, math.log(low), math.log(high)).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    right, down = _uniform(image, -1, 1) * (1 - width), _uniform(image, -1, 1) * (1 - height)
    matrix = torch.stack(
        [
            torch.stack([angle.cos() * width, -angle.sin() * height, right], 1),
            torch.stack([angle.sin() * width, angle.cos() * height, down], 1),
        ],
        1,
    )
    grid = F.affine_grid(matrix, list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)


def _jitter(image: Tensor, config: AugmentationConfig) -> Tensor:
    jitter = config.color_jitter
    luma = torch.tensor(_LUMA, device=image.device)
    brightness, contrast, saturation = (
        1 + _uniform(image, -value, value) for value in (jitter.brightness, jitter.contrast, jitter.saturation)
    )
    mean = torch.einsum("nchw,c->n", image, luma) / image[0, 0].numel() * brightness
    eye = torch.eye(3, device=image.device)
    mix = saturation[:, None, None] * eye + (1 - saturation)[:, None, None] * luma.expand(3, 3)
    image = torch.einsum("nij,njhw->nihw", mix * (brightness * contrast)[:, None, None], image)
    image = (image + ((1 - contrast) * mean)[:, None, None, None]).clamp(0, 1)
    return _turn_hue(image, _uniform(image, -jitter.hue, jitter.hue))


def _turn_hue(image: Tensor, turn: Tensor) -> Tensor:
    """Through HSV, as the package does."""
    value, brightest = image.max(1)
    spread = value - image.amin(1)
    red, green, blue = image.unbind(1)
    safe = spread.clamp(min=1e-6)
    hue = torch.where(brightest == 0, (green - blue) / safe, (blue - red) / safe + 2)
    hue = torch.where(brightest == 2, (red - green) / safe + 4, hue) + turn[:, None, None] * 6
    sector = (hue[:, None] + torch.tensor([5.0, 3.0, 1.0], device=image.device)[None, :, None, None]) % 6
    return value[:, None] - spread[:, None] * torch.minimum(sector, 4 - sector).clamp(0, 1)


def _blur(image: Tensor, config: AugmentationConfig) -> Tensor:
    """Two one-dimensional passes, all images in one grouped convolution; the identity where an image draws none."""
    half = config.blur.kernel // 2
    sigma = _uniform(image, *config.blur.sigma)
    offsets = torch.arange(-half, half + 1, device=image.device)
    kernel = (-(offsets**2) / (2 * sigma[:, None] ** 2)).exp()
    kernel = kernel / kernel.sum(1, keepdim=True)
    blurred = torch.rand(len(image), 1, device=image.device) < config.blur.probability
    kernel = torch.where(blurred, kernel, (offsets == 0).float()).repeat_interleave(image.shape[1], 0)
    flat = F.pad(image, (half, half, half, half), mode="reflect").flatten(0, 1)[None]
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=len(kernel))
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=len(kernel))
    return flat.view_as(image)


def check() -> None:
    """Nothing drawn, nothing changed; and a hue turned by a third makes red green."""
    off = AugmentationConfig.model_validate(
        {
            "rotation_degrees": 0,
            "color_jitter": {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0},
            "random_crop": {"scale": [1, 1], "ratio": [1, 1]},
            "blur": {"probability": 0},
        }
    )
    image_NHWC_u8 = torch.from_numpy(pictures(4, 32))
    expected = image_NHWC_u8.permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(augment_batch(image_NHWC_u8, off), expected, atol=1e-4, rtol=0)
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
    torch.testing.assert_close(_turn_hue(red, torch.tensor([1 / 3])), red.roll(1, 1), atol=1e-5, rtol=0)


def ways(size: int, count: int, batch: int, workers: int, device: torch.device) -> dict[str, Callable[[], None]]:
    """Name → one round over ``count`` images."""
    images = pictures(count, size)
    loader = DataLoader(Augmented(images), batch, num_workers=workers, persistent_workers=True)

    def one_process() -> None:
        for row in range(count):
            augment(images[row], CONFIG, np.random.default_rng(row))

    def by_workers() -> None:
        for image in loader:
            image.to(device)

    def tensors() -> None:
        for start in range(0, count, batch):
            augment_batch(torch.from_numpy(images[start : start + batch]).to(device), CONFIG)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return {
        "cv2, one process": one_process,
        f"cv2, {workers} workers": by_workers,
        f"tensors, {device.type}": tensors,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="images/s of augmentation on the CPU and on the training device")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 224, 512])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=4, help="batches a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch on a CPU; 1 compares core with core")
    options = parser.parse_args()
    check()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)  # as in the workers
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{options.workers} workers, device {device}, {torch.get_num_threads()} threads of PyTorch")
    print("| px | way | images/s | ÷ cv2, one process |\n|---|---|---|---|")
    for size in options.sizes:
        count = options.batch * options.batches
        named = ways(size, count, options.batch, options.workers, device)
        seconds: dict[str, list[float]] = {name: [] for name in named}
        for turn in range(options.rounds + 1):  # the first one starts the workers and warms up
            for name, way in named.items():
                started = time.perf_counter()
                way()
                if turn:
                    seconds[name].append(time.perf_counter() - started)
        first = statistics.median(seconds["cv2, one process"])
        for name, times in seconds.items():
            median = statistics.median(times)
            print(f"| {size} | {name} | {count / median:,.0f} | {first / median:.2f} |", flush=True)


if __name__ == "__main__":
    main()
