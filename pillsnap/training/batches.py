"""Batches: from the prepared cache to uint8 tensors, augmented, in an order that the seed decides.

What an image looks like depends on (seed, epoch, index) alone, never on the number of workers.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pillsnap.core.errors import DataError
from pillsnap.core.experiment import AugmentationConfig, ExperimentConfig
from pillsnap.core.interruption import deaf_children
from pillsnap.core.manifest import Manifest
from pillsnap.data.cache import PreparedCache
from pillsnap.training.augment import augment
from pillsnap.training.distributed import ranks, share_of_batches


@dataclass(frozen=True)
class TrainingData:
    """A manifest, its prepared images, and which rows train and validate."""

    manifest: Manifest
    cache: PreparedCache
    labels_N: NDArray[np.int64]
    is_real_N: NDArray[np.bool_]
    train_indices: NDArray[np.int64]
    val_indices: NDArray[np.int64]

    @classmethod
    def of(cls, manifest: Manifest, cache: PreparedCache, config: ExperimentConfig) -> TrainingData:
        """Choose the rows. Raises DataError where nothing is left to train or validate on."""
        split = np.asarray(manifest.rows["split"].to_pylist())
        domain = np.asarray(manifest.rows["domain"].to_pylist())
        in_domain = np.full(len(domain), True) if config.data.domain == "all" else domain == config.data.domain
        train = np.flatnonzero((split == "train") & in_domain)
        val = np.flatnonzero(split == "val")
        if len(train) < config.data.batch_size:
            raise DataError(
                f"{manifest.root}: {len(train)} training images of domain {config.data.domain!r}, fewer than one "
                f"batch of {config.data.batch_size}; set data.batch_size lower or add images"
            )
        if len(val) == 0:
            raise DataError(f"{manifest.root}: the validation split is empty; add images and prepare again")
        return cls(manifest, cache, manifest.labels(manifest.rows), domain == "real", train, val)

    def with_train_share(self, share: float, seed: int) -> TrainingData:
        """A seeded part of the training images; validation stays whole."""
        if share >= 1:
            return self
        count = max(int(len(self.train_indices) * share), 2)
        chosen = np.sort(np.random.default_rng(seed).permutation(self.train_indices)[:count])
        return TrainingData(self.manifest, self.cache, self.labels_N, self.is_real_N, chosen, self.val_indices)


class AugmentedImages(Dataset[tuple[Tensor, int]]):
    """Training images by (epoch, row): ``image_HWC_u8`` augmented, and the label."""

    def __init__(self, data: TrainingData, config: AugmentationConfig, seed: int) -> None:
        self._images = data.cache.images_NHWC_u8
        self._labels = data.labels_N
        self._config = config
        self._seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        """The image of ``row`` as it looks in ``epoch``."""
        epoch, row = key
        rng = np.random.default_rng((self._seed, epoch, row))
        image = augment(np.asarray(self._images[row]), self._config, rng)
        return torch.from_numpy(np.ascontiguousarray(image)), int(self._labels[row])


class EpochSampler(Sampler[tuple[int, int]]):
    """A new seeded order every epoch, of whole updates, of which each process of torchrun takes its share.

    Carries the epoch to the workers, which outlive it.
    """

    def __init__(self, indices: NDArray[np.int64], seed: int, batch_size: int, accumulate: int = 1) -> None:
        self._indices = indices
        self._seed = seed
        self._batch_size = batch_size
        self._whole = len(indices) // (batch_size * accumulate) * batch_size * accumulate
        self.epoch = 0

    def __len__(self) -> int:
        return len(share_of_batches(self._indices[: self._whole], self._batch_size))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(epoch, row) pairs."""
        order = np.random.default_rng((self._seed, self.epoch)).permutation(self._indices)[: self._whole]
        return iter([(self.epoch, int(row)) for row in share_of_batches(order, self._batch_size)])


class _Loader(DataLoader[Any]):
    """A loader whose workers are forked while OpenCV has no threads.

    They would stay in the parent, and a worker that ends them or counts on them waits for ever. The workers inherit
    that OpenCV uses one thread each, and that they are deaf to signals: the training process alone answers to Ctrl-C,
    SIGTERM and SIGHUP, and ends its workers.
    """

    def __iter__(self) -> Any:
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # ends the threads that are there
        try:
            with deaf_children(signal.SIGTERM):
                return super().__iter__()
        finally:
            cv2.setNumThreads(threads)


def train_loader(data: TrainingData, config: ExperimentConfig, cuda: bool) -> tuple[DataLoader[Any], EpochSampler]:
    """The loader of the training split; set ``sampler.epoch`` before each epoch. Raises DataError: not one update."""
    images_per_update = config.data.batch_size * config.training.accumulate
    if len(data.train_indices) < images_per_update:
        raise DataError(
            f"{len(data.train_indices)} training images are fewer than the {images_per_update} of one "
            "training step (data.batch_size times training.accumulate); set these lower, or tuning.train_share higher"
        )
    sampler = EpochSampler(data.train_indices, config.seed, config.data.batch_size, config.training.accumulate)
    loader = _Loader(
        AugmentedImages(data, config.augmentation, config.seed),
        batch_size=config.data.batch_size // ranks().world,
        sampler=sampler,
        num_workers=config.data.workers,
        pin_memory=config.data.pin_memory and cuda,
        persistent_workers=config.data.persistent_workers and config.data.workers > 0,
        drop_last=True,  # a last batch of one image breaks batch norm, an odd one breaks mixup
        worker_init_fn=_prepare_worker,
        # of its own: else the loader draws from the generator of the dropout, once more or less by workers
        generator=torch.Generator().manual_seed(config.seed),
    )
    return loader, sampler


def plain_batches(
    data: TrainingData, indices: NDArray[np.int64], batch_size: int
) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
    """``image_NHWC_u8`` without augmentation, with the rows they are."""
    for start in range(0, len(indices), batch_size):
        rows = indices[start : start + batch_size]
        yield torch.from_numpy(np.ascontiguousarray(data.cache.images_NHWC_u8[rows])), rows


def _prepare_worker(worker: int) -> None:
    # Python's thread that hands tensors over prints a traceback when the training process is gone; what fails in a
    # worker itself reaches the training process on another way.
    sys.excepthook = lambda *_: None
