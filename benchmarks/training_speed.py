"""What the trainer costs beside a bare PyTorch loop, and whether the images reach it fast enough.

    python benchmarks/training_speed.py
    python benchmarks/training_speed.py --experiment experiments/reference.yaml --set preprocessing.target_size=512

The pictures are noise in a prepared cache of their own: no step of the training asks what they show. The two ways of
each table take turns in one process, a few batches each (the loader: an epoch each): what slows the machine down slows
both. On a busy machine only the processor time says something; take --threads 1 there.
Legend: N batch, H height, W width, C channel, K class.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor

from pillsnap.core.catalog import Catalog, Drug
from pillsnap.core.experiment import ExperimentConfig, parse_override
from pillsnap.core.manifest import ROW_SCHEMA, Manifest
from pillsnap.data.cache import PreparedCache
from pillsnap.training import trainer
from pillsnap.training.backbone import create_net
from pillsnap.training.batches import TrainingData, train_loader
from pillsnap.training.device import Device

CLASSES = 100
VALIDATION_IMAGES = 4
"""As few as can be: the validation is not measured."""
BATCHES_IN_MEMORY = 8
"""Different batches that an epoch from memory goes through again and again."""
EMA_DECAY = 0.995
Batch = tuple[Tensor, Tensor]


class Spent(NamedTuple):
    """A moment, or what lies between two."""

    wall_s: float
    cpu_s: float
    """Of all threads of this process."""

    @classmethod
    def now(cls) -> Spent:
        """When the device has done what it was given."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, before: Spent) -> Spent:
        return Spent(self.wall_s - before.wall_s, self.cpu_s - before.cpu_s)


class MemoryLoader:
    """``length`` batches an epoch of (``image_NHWC_u8``, ``label_N``) that are there already."""

    def __init__(self, config: ExperimentConfig, length: int, cuda: bool) -> None:
        shape = (config.data.batch_size, config.preprocessing.target_size, config.preprocessing.target_size, 3)
        generator = torch.Generator().manual_seed(config.seed)
        self._batches: list[Batch] = []
        for _ in range(min(length, BATCHES_IN_MEMORY)):
            image_NHWC_u8 = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            label_N = torch.randint(0, CLASSES, shape[:1], generator=generator)
            pinned = cuda and config.data.pin_memory
            self._batches.append(
                (image_NHWC_u8.pin_memory(), label_N.pin_memory()) if pinned else (image_NHWC_u8, label_N)
            )
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        return (self._batches[number % len(self._batches)] for number in range(self._length))


class Duel(MemoryLoader):
    """Gives the trainer some batches, times it, and trains the bare loop on the same ones before it goes on."""

    def __init__(self, config: ExperimentConfig, length: int, cuda: bool) -> None:
        super().__init__(config, length, cuda)
        self._bare = BareLoop(config)
        self._block = 10 if cuda else 1  # a GPU works behind the program: wait for it only now and then
        self.pairs: list[tuple[Spent, Spent]] = []

    def __iter__(self) -> Iterator[Batch]:
        batches = list(super().__iter__())
        for start in range(0, len(batches), self._block):
            block = batches[start : start + self._block]
            before = Spent.now()
            yield from block
            ours = Spent.now() - before  # until the trainer asks for the batch after these
            before = Spent.now()
            for batch in block:
                self._bare.step(*batch)
            self.pairs.append((ours, Spent.now() - before))


class TakingTurns:
    """Odd epochs come from the one loader, even ones from the other."""

    def __init__(self, odd: Any, even: Any, sampler: Any) -> None:
        self._odd, self._even, self._sampler = odd, even, sampler
        self.cpu_s: list[float] = []
        """Of this process in each epoch: the steps alone, without validation and checkpoint."""

    def __len__(self) -> int:
        return len(self._odd)

    def __iter__(self) -> Iterator[Batch]:
        before = time.process_time()
        yield from self._odd if self._sampler.epoch % 2 else self._even
        self.cpu_s.append(time.process_time() - before)


class BareLoop:
    """What the trainer does to the weights, as a script would write it down."""

    def __init__(self, config: ExperimentConfig) -> None:
        self._config = config
        self._device = Device.of(config)
        self._where = self._device.torch_device
        net = create_net(config.model, config.preprocessing, CLASSES).backbone
        self._net: Any = net.to(self._where, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self._optimizer = torch.optim.AdamW(
            self._net.parameters(),
            lr=config.training.base_lr,
            betas=config.optimizer.betas,
            eps=config.optimizer.eps,
            weight_decay=config.training.weight_decay,
            fused=True,
        )
        self._scaler = torch.amp.GradScaler(self._where.type, enabled=self._device.needs_scaler)
        decay = config.training.ema_decay
        self._ema = ModelEmaV3(self._net, decay=decay, use_warmup=True) if decay is not None else None
        self._mean = torch.tensor(config.preprocessing.mean, device=self._where).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(config.preprocessing.std, device=self._where).view(1, 3, 1, 1) * 255
        self._step = 0

    def step(self, image_NHWC_u8: Tensor, label_N: Tensor) -> None:
        """Train on one batch."""
        training = self._config.training
        image_NHWC = image_NHWC_u8.to(self._where, non_blocking=True)
        image_NCHW = (image_NHWC.permute(0, 3, 1, 2).float() - self._mean) / self._std
        with self._device.autocast():
            logits_NK = self._net(image_NCHW.contiguous(memory_format=torch.channels_last))
        label_N = label_N.to(self._where, non_blocking=True)
        loss = F.cross_entropy(logits_NK.float(), label_N, label_smoothing=training.label_smoothing)
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        if training.gradient_clip is not None:
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._net.parameters(), training.gradient_clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._ema is not None:
            self._ema.update(self._net, step=self._step)
        self._step += 1


class AfterEpoch:
    """An observer that does one thing after each epoch."""

    def __init__(self, then: Callable[[dict[str, float]], None]) -> None:
        self._then = then

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        """Nothing."""

    def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Do it."""
        self._then(metrics)

    def on_resume(self, epoch: int, step: int) -> None:
        """Nothing: each training here is new."""


def noise_data(config: ExperimentConfig, images: int, folder: Path) -> TrainingData:
    """So many training images of noise, in a memory-mapped file like that of a prepared cache."""
    count, size = images + VALIDATION_IMAGES, config.preprocessing.target_size
    path = folder / f"noise-{size}-{count}.u8"
    rng = np.random.default_rng(config.seed)
    if not path.is_file():
        with path.open("wb") as file:
            for _ in range(count):
                file.write(rng.bytes(size * size * 3))
    drugs = tuple(Drug(kcode=f"K-{990000 + k}", drug_name=f"noise {k}") for k in range(CLASSES))
    label_N = np.arange(count, dtype=np.int64) % CLASSES
    rows = [
        {
            **dict.fromkeys(ROW_SCHEMA.names),
            "path": f"{row:07d}.png",
            "kcode": drugs[label].kcode,
            "label": int(label),
            "split": "train" if row < images else "val",
            "domain": "studio",
            "group": str(row),
            "sha256": "",
        }
        for row, label in enumerate(label_N)
    ]
    catalog = Catalog(version="noise", drugs=drugs)
    manifest = Manifest.build(folder, {"name": "noise"}, pa.Table.from_pylist(rows, ROW_SCHEMA), catalog)
    cache = PreparedCache(folder, np.memmap(path, np.uint8, "r", shape=(count, size, size, 3)))
    row_N = np.arange(count)
    return TrainingData(manifest, cache, label_N, np.zeros(count, np.bool_), row_N[:images], row_N[images:])


def train(
    config: ExperimentConfig,
    data: TrainingData,
    folder: Path,
    loader: Any,
    sampler: Any,
    then: Callable[[dict[str, float]], None],
) -> None:
    """`fit`, fed by this loader; ``then`` gets the figures of each epoch."""
    with (
        mock.patch.object(trainer, "train_loader", return_value=(loader, sampler)),
        tempfile.TemporaryDirectory(dir=folder) as checkpoints,
    ):
        trainer.fit(config, data, Path(checkpoints), AfterEpoch(then))


def duel(config: ExperimentConfig, rounds: int, batches: int, folder: Path) -> list[tuple[Spent, Spent]]:
    """(trainer, bare loop) on the same batches, one pair after the other."""
    plain = config.with_overrides(
        {"training.epochs": rounds + 1, "augmentation.mix_probability": 0, "augmentation.random_erasing": 0}
    )
    data = noise_data(plain, batches * plain.data.batch_size, folder)
    both = Duel(plain, batches, torch.cuda.is_available())
    _, sampler = train_loader(data, plain, cuda=False)
    train(plain, data, folder, both, sampler, lambda _: None)
    return both.pairs[len(both.pairs) // (rounds + 1) :]  # the first epoch warms up


class Fed(NamedTuple):
    """Figures of the whole loop."""

    ratios: list[float]
    """Images/s from the loader over those from memory, once a round."""
    from_memory: float
    """Images/s."""
    loader_alone: float
    """Images/s, nobody training."""
    train_cpu_s: float
    """Processor seconds of training on one image from memory."""
    feed_cpu_s: float
    """Processor seconds of reading, augmenting and batching one image."""


def feed(config: ExperimentConfig, rounds: int, batches: int, folder: Path) -> Fed:
    """Train by turns on what the loader brings and on what is in memory."""
    fed = config.with_overrides({"training.epochs": 2 * (rounds + 1)})
    data = noise_data(fed, batches * fed.data.batch_size, folder)
    cuda = torch.cuda.is_available()
    loader, sampler = train_loader(data, fed, cuda=cuda)
    speeds: list[float] = []
    turns = TakingTurns(loader, MemoryLoader(fed, len(loader), cuda), sampler)
    train(fed, data, folder, turns, sampler, lambda figures: speeds.append(figures["images_per_s"]))
    started = time.perf_counter()
    images = sum(len(label_N) for _, label_N in loader)
    alone = images / (time.perf_counter() - started)
    here, _ = train_loader(data, fed.with_overrides({"data.workers": 0}), cuda=False)
    before = time.process_time()
    for _ in here:
        pass
    feed_cpu_s = (time.process_time() - before) / images
    odd, even = speeds[2::2], speeds[3::2]  # the first of each warms up
    train_cpu_s = statistics.median(turns.cpu_s[3::2]) / images
    ratios = [ours / synthetic for ours, synthetic in zip(odd, even, strict=True)]
    return Fed(ratios, statistics.median(even), alone, train_cpu_s, feed_cpu_s)


def in_words(ratios: Sequence[float]) -> str:
    """Median and middle half."""
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{median:.3f} ({low:.3f}-{high:.3f})"


def print_duel(decay: float | None, pairs: Sequence[tuple[Spent, Spent]]) -> None:
    """One line: with or without an average of the weights."""
    wall = in_words([ours.wall_s / bare.wall_s for ours, bare in pairs])
    cpu = in_words([ours.cpu_s / bare.cpu_s for ours, bare in pairs])
    bare_ms = 1000 * statistics.median(bare.wall_s for _, bare in pairs)
    name = "no EMA" if decay is None else "EMA"
    print(f"  {name:6s}: time {wall}, processor time {cpu}; {len(pairs)} pairs, bare {bare_ms:.1f} ms")


def print_fed(fed: Fed) -> None:
    """What the loader brings beside what is in memory."""
    print("whole loop ÷ synthetic batches, images/s: median (middle half); goal: at least 0.95, on a GPU 0.90")
    print(f"  {in_words(fed.ratios)}; {len(fed.ratios)} rounds, synthetic {fed.from_memory:.1f} images/s")
    print(f"  the loader alone, nobody training: {fed.loader_alone:.0f} images/s")
    bound = fed.train_cpu_s / (fed.train_cpu_s + fed.feed_cpu_s)
    print(
        f"  processor time an image: training {1000 * fed.train_cpu_s:.2f} ms, feeding {1000 * fed.feed_cpu_s:.2f} ms; "
        f"where both share all cores of a CPU, the ratio is {bound:.3f}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, default=Path("experiments/demo.yaml"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the experiment; repeatable")
    parser.add_argument("--rounds", type=int, default=8, help="comparisons of each table, after one that warms up")
    parser.add_argument("--batches", type=int, default=30, help="of an epoch")
    parser.add_argument("--tables", choices=["step", "feed", "both"], default="both")
    parser.add_argument("--threads", type=int, help="of the training; default: PyTorch's own choice")
    parser.add_argument("--folder", type=Path, help="where to write; on the disk that will hold the cache")
    options = parser.parse_args()
    if options.rounds < 2 or options.batches < 1:
        parser.error("--rounds must be at least 2 and --batches at least 1")
    base = {"model.pretrained": False, "model.weights": None, "training.warmup_epochs": 0, "checkpoints.keep_best": 1}
    config = ExperimentConfig.load(options.experiment, {**base, **dict(map(parse_override, options.set))})
    torch.set_num_threads(options.threads or torch.get_num_threads())
    device = Device.of(config)
    print(
        f"{config.model.backbone}, {config.preprocessing.target_size} px, batches of {config.data.batch_size}; "
        f"{device}, {torch.get_num_threads()} threads, {config.data.workers} workers"
    )
    folder = Path(tempfile.mkdtemp(prefix="training-speed-", dir=options.folder))
    try:
        if options.tables != "feed":
            print("trainer ÷ bare loop: median (middle half); goal: at most 1.05")
            for decay in (None, config.training.ema_decay or EMA_DECAY):
                with_ema = config.with_overrides({"training.ema_decay": decay})
                print_duel(decay, duel(with_ema, options.rounds, options.batches, folder))
        if options.tables != "step":
            print_fed(feed(config, options.rounds, options.batches, folder))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
