from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pillsnap.core.errors import DataError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.data.cache import PreparedCache
from pillsnap.training.batches import AugmentedImages, TrainingData, plain_batches, train_loader

Config = Callable[..., ExperimentConfig]
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # machines of one or two cores


def epochs(data: TrainingData, config: ExperimentConfig, numbers: tuple[int, ...] = (1, 2)) -> list[list[Any]]:
    """All batches of each epoch, through one loader."""
    loader, sampler = train_loader(data, config, cuda=False)
    found = []
    for number in numbers:
        sampler.epoch = number
        found.append([(image.clone(), label.clone()) for image, label in loader])
    return found


def same(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("persistent", [True, False])
def test_images_depend_on_seed_epoch_and_row_only(data: TrainingData, tiny_config: Config, persistent: bool) -> None:
    alone = epochs(data, tiny_config())
    workers = epochs(data, tiny_config({"data.workers": 2, "data.persistent_workers": persistent}))
    assert same(alone[0], workers[0])
    assert same(alone[1], workers[1])
    assert not same(alone[0], alone[1])
    assert same(epochs(data, tiny_config(), (2,))[0], alone[1])
    assert not same(epochs(data, tiny_config({"seed": 2}), (1,))[0], alone[0])


@pytest.mark.timeout(30)
def test_workers_are_deaf_from_their_first_moment_on(data: TrainingData, tiny_config: Config) -> None:
    """Between the fork and its first line a worker has the handlers of the training, whose exception it would print."""
    batches = iter(train_loader(data, tiny_config({"data.workers": 1}), cuda=False)[0])
    status = Path(f"/proc/{batches._workers[0].pid}/status").read_text()
    blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
    assert all(blocked >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_workers_are_forked_without_the_threads_of_opencv(
    data: TrainingData, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenCV's threads stay in the parent: a worker that ends them or counts on them hangs, on some days."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        cv2.warpAffine(np.zeros((2000, 2000, 3), np.uint8), np.eye(2, 3), (2000, 2000))  # starts them
        assert len(epochs(data, tiny_config({"data.workers": 1}), (1,))[0]) == 6
        answer = torch.zeros(1)
        monkeypatch.setattr(AugmentedImages, "__getitem__", lambda *_: (answer + cv2.getNumThreads(), 0))
        batches = epochs(data, tiny_config({"data.workers": 1}), (1,))[0]
        threads = {float(value) for batch, _ in batches for value in batch}
        assert threads == {1}
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


def test_the_same_row_looks_different_every_epoch(
    data: TrainingData, tiny_config: Config, squares: SimpleNamespace
) -> None:
    def by_pixels(config: ExperimentConfig) -> list[set[bytes]]:
        return [{image.numpy().tobytes() for batch, _ in epoch for image in batch} for epoch in epochs(data, config)]

    first, second = by_pixels(tiny_config())
    assert not first & second
    first, second = by_pixels(tiny_config(squares.OFF))
    assert first == second  # only the order is another


def test_another_seed_gives_another_order_and_other_pictures(
    data: TrainingData, tiny_config: Config, squares: SimpleNamespace
) -> None:
    """Each by itself: one of the two alone makes the batches differ."""

    def shown(overrides: dict[str, Any]) -> list[bytes]:
        [epoch] = epochs(data, tiny_config(overrides), (1,))
        return [image.numpy().tobytes() for batch, _ in epoch for image in batch]

    one, other = (shown({**squares.OFF, "seed": seed}) for seed in (1, 2))
    assert one != other
    assert sorted(one) == sorted(other)
    assert not set(shown({"seed": 1})) & set(shown({"seed": 2}))


def test_an_epoch_shows_every_training_image_once(
    data: TrainingData, tiny_config: Config, squares: SimpleNamespace
) -> None:
    first, second = epochs(data, tiny_config(squares.OFF))
    assert [tuple(image.shape) for image, _ in first] == [(16, 32, 32, 3)] * 6
    assert {image.dtype for image, _ in first} == {torch.uint8}
    shown = sorted(image.numpy().tobytes() for batch, _ in first for image in batch)
    assert shown == sorted(np.asarray(data.cache.images_NHWC_u8[row]).tobytes() for row in data.train_indices)
    labels = [torch.cat([label for _, label in epoch]).tolist() for epoch in (first, second)]
    assert labels[0] != labels[1]
    assert sorted(labels[0]) == sorted(labels[1]) == sorted(data.labels_N[data.train_indices].tolist())


def test_labels_stay_with_their_pictures(data: TrainingData, tiny_config: Config, squares: SimpleNamespace) -> None:
    by_pixels = {np.asarray(image).tobytes(): label for image, label in zip(
        data.cache.images_NHWC_u8, data.labels_N, strict=True)}  # fmt: skip
    for batch, labels in epochs(data, tiny_config(squares.OFF), (1,))[0]:
        for image, label in zip(batch, labels, strict=True):
            assert by_pixels[image.numpy().tobytes()] == label


def test_a_last_batch_that_is_not_whole_is_left_out(data: TrainingData, tiny_config: Config) -> None:
    loader, sampler = train_loader(data, tiny_config({"data.batch_size": 36}), cuda=False)
    assert (len(loader), len(sampler)) == (2, 72)


def test_loader_keys_reach_the_loader(data: TrainingData, tiny_config: Config) -> None:
    loader, _ = train_loader(data, tiny_config({"data.workers": 3}), cuda=True)
    assert (loader.num_workers, loader.pin_memory, loader.persistent_workers) == (3, True, True)
    other = {"data.workers": 3, "data.pin_memory": False, "data.persistent_workers": False}
    loader, _ = train_loader(data, tiny_config(other), cuda=True)
    assert (loader.pin_memory, loader.persistent_workers) == (False, False)
    loader, _ = train_loader(data, tiny_config(), cuda=False)
    assert (loader.pin_memory, loader.persistent_workers) == (False, False)


@pytest.mark.parametrize("domain", ["studio", "real"])
def test_domain_narrows_training_and_nothing_else(data: TrainingData, tiny_config: Config, domain: str) -> None:
    narrowed = TrainingData.of(data.manifest, data.cache, tiny_config({"data.domain": domain}))
    domains = np.asarray(data.manifest.rows["domain"].to_pylist())
    assert len(narrowed.train_indices) == 48
    assert set(domains[narrowed.train_indices]) == {domain}
    np.testing.assert_array_equal(narrowed.val_indices, data.val_indices)
    assert set(domains[data.train_indices]) == {"studio", "real"}
    np.testing.assert_array_equal(data.is_real_N, domains == "real")


def test_splits_do_not_mix(data: TrainingData) -> None:
    splits = np.asarray(data.manifest.rows["split"].to_pylist())
    assert set(splits[data.train_indices]) == {"train"}
    assert set(splits[data.val_indices]) == {"val"}


def test_plain_batches_are_the_prepared_pixels_in_order(data: TrainingData) -> None:
    batches = list(plain_batches(data, data.val_indices, 10))
    assert [len(image) for image, _ in batches] == [10, 10, 4]
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in batches]), data.val_indices)
    pixels = torch.cat([image for image, _ in batches]).numpy()
    np.testing.assert_array_equal(pixels, data.cache.images_NHWC_u8[data.val_indices])


def test_too_few_images_are_refused(data: TrainingData, tiny_config: Config) -> None:
    with pytest.raises(DataError, match="48 training images of domain 'studio', fewer than one batch of 64"):
        TrainingData.of(data.manifest, data.cache, tiny_config({"data.domain": "studio", "data.batch_size": 64}))
    with pytest.raises(DataError, match=r"9 training images .* tuning\.train_share higher"):
        train_loader(data.with_train_share(0.1, seed=0), tiny_config(), cuda=False)


def test_an_empty_validation_split_is_refused(tiny_config: Config, squares: SimpleNamespace, tmp_path: Path) -> None:
    manifest = squares.save_squares(tmp_path / "m", {"train": 4})
    cache = PreparedCache.build(manifest, tiny_config().preprocessing, tmp_path / "cache", workers=1)
    with pytest.raises(DataError, match="validation split is empty"):
        TrainingData.of(manifest, cache, tiny_config())


def test_a_share_of_the_training_images_is_seeded(data: TrainingData) -> None:
    half = data.with_train_share(0.5, seed=3)
    assert len(half.train_indices) == 48
    assert set(half.train_indices) < set(data.train_indices)
    np.testing.assert_array_equal(half.train_indices, data.with_train_share(0.5, seed=3).train_indices)
    assert set(half.train_indices) != set(data.with_train_share(0.5, seed=4).train_indices)
    np.testing.assert_array_equal(half.val_indices, data.val_indices)
    assert data.with_train_share(1.0, seed=3) is data
