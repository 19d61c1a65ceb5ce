from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pillsnap.core.errors import TrainingError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.training.backbone import create_net
from pillsnap.training.checkpoint import Checkpoint, CheckpointKeeper


class Foreign:
    """A pickle that runs code where it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("foreign-code-ran").touch, ())


@pytest.fixture
def checkpoint(tiny_config: Callable[..., ExperimentConfig]) -> Checkpoint:
    config = tiny_config()
    state = create_net(config.model, config.preprocessing, 6).state_dict()
    kcodes = tuple(f"K-{i:06d}" for i in range(6))
    return Checkpoint(config, kcodes, "f" * 64, 3, {"val_top1": 0.5, "val_loss": 1.25}, state)


@pytest.fixture
def add(checkpoint: Checkpoint, tmp_path: Path) -> Callable[..., bool]:
    """``add(keeper, epoch, top1, loss)``."""

    def call(keeper: CheckpointKeeper, epoch: int, top1: float, loss: float = 1.0) -> bool:
        metrics = {"val_top1": top1, "val_loss": loss}
        return keeper.add(Checkpoint(checkpoint.config, checkpoint.kcodes, "f" * 64, epoch, metrics, {}))

    return call


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_comes_back_as_it_was(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "deep" / "a.pt")
    loaded = Checkpoint.load(tmp_path / "deep" / "a.pt")
    assert (loaded.config, loaded.kcodes, loaded.manifest_hash) == (checkpoint.config, checkpoint.kcodes, "f" * 64)
    assert (loaded.epoch, loaded.metrics) == (3, {"val_top1": 0.5, "val_loss": 1.25})
    assert loaded.state_dict.keys() == checkpoint.state_dict.keys()
    assert all(torch.equal(loaded.state_dict[key], value) for key, value in checkpoint.state_dict.items())
    assert names(tmp_path / "deep") == ["a.pt"]


def test_builds_its_net_without_the_pretrained_weights(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = checkpoint.config.model.model_copy(update={"pretrained": True, "weights": str(tmp_path / "gone.pth")})
    config = checkpoint.config.model_copy(update={"model": model})
    net = Checkpoint(config, checkpoint.kcodes, "", 1, {}, checkpoint.state_dict).build_net()
    assert not net.training
    assert torch.equal(net.state_dict()["backbone.fc.weight"], checkpoint.state_dict["backbone.fc.weight"])


def test_loads_without_running_foreign_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "config": Foreign()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Foreign()))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(TrainingError, match=f"{name}: is not a checkpoint"):
            Checkpoint.load(tmp_path / name)
    assert not (tmp_path / "foreign-code-ran").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"]a.", b"\x80\x02q\x00.", b"PK\x05\x06" + b"\0" * 18, b'{"a": 1}'])
def test_foreign_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(TrainingError, match=r"a\.pt: is not a checkpoint"):
        Checkpoint.load(tmp_path / "a.pt")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"gone\.pt: no such checkpoint; train one with: pillsnap train"):
        Checkpoint.load(tmp_path / "gone.pt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "not a PillSnap checkpoint of format 1"),
        ({"format": None}, "not a PillSnap checkpoint of format 1"),
        ({"config": {"unknown": 1}}, "incomplete .*unknown key"),
        ({"kcodes": 3}, "incomplete"),
        ({"epoch": ...}, "incomplete"),
    ],
)
def test_other_formats_are_refused(
    checkpoint: Checkpoint, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    checkpoint.save(tmp_path / "a.pt")
    raw = {**torch.load(tmp_path / "a.pt", weights_only=True), **changes}
    torch.save({key: value for key, value in raw.items() if value is not ...}, tmp_path / "a.pt")
    with pytest.raises(TrainingError, match=message):
        Checkpoint.load(tmp_path / "a.pt")


def test_weights_alone_are_no_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for content in (checkpoint.state_dict, [1, 2], torch.zeros(3)):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(TrainingError, match="not a PillSnap checkpoint"):
            Checkpoint.load(tmp_path / "a.pt")


def test_damage_is_seen_wherever_it_is(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.integers(0, len(whole), 40):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        (tmp_path / "a.pt").write_bytes(damaged)
        try:
            loaded = Checkpoint.load(tmp_path / "a.pt")
        except TrainingError:
            refused += 1
        else:  # between the archive's members: nothing that counts
            assert all(torch.equal(loaded.state_dict[key], value) for key, value in checkpoint.state_dict.items())
    assert refused > 20
    for length in (1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.pt").write_bytes(whole[:length])
        with pytest.raises(TrainingError, match="damaged"):
            Checkpoint.load(tmp_path / "a.pt")


def test_the_sha256_is_in_the_file_and_is_looked_at(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Also where the zip archive's own checksums would fit, as after an exchange of the whole content."""
    path = tmp_path / "a.pt"
    checkpoint.save(path)
    with zipfile.ZipFile(path) as archive:
        seal = archive.comment
    whole = path.read_bytes()
    assert seal == b"sha256:" + hashlib.sha256(whole[: -len(seal)]).hexdigest().encode()
    replace(checkpoint, epoch=4).save(path)
    path.write_bytes(path.read_bytes()[: -len(seal)] + seal)
    with pytest.raises(TrainingError, match=r"damaged \(its sha256 is not the one that was written"):
        Checkpoint.load(path)


def test_files_without_a_seal_are_read_too(checkpoint: Checkpoint, tmp_path: Path) -> None:
    torch.save(checkpoint.document(), tmp_path / "old.pt")
    assert Checkpoint.load(tmp_path / "old.pt").epoch == 3
    whole = (tmp_path / "old.pt").read_bytes()
    middle = len(whole) // 2
    (tmp_path / "old.pt").write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(TrainingError, match="damaged"):
        Checkpoint.load(tmp_path / "old.pt")


def test_weights_of_another_net_are_refused(checkpoint: Checkpoint) -> None:
    fewer = checkpoint.kcodes[:4]
    for kcodes, state in ((fewer, checkpoint.state_dict), (checkpoint.kcodes, {}), (checkpoint.kcodes, [])):
        other = Checkpoint(checkpoint.config, kcodes, "", 1, {}, state)  # type: ignore[arg-type]
        with pytest.raises(TrainingError, match="weights do not fit resnet18"):
            other.build_net()


def test_a_failed_save_leaves_the_former_file(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()

    def full_disk(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full_disk)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(tmp_path / "a.pt")
    assert (tmp_path / "a.pt").read_bytes() == before
    assert names(tmp_path) == ["a.pt"]


def test_keeps_the_best_the_last_and_every_nth(add: Callable[..., bool], tmp_path: Path) -> None:
    keeper = CheckpointKeeper(tmp_path, every_epochs=2, keep_best=2)
    assert [add(keeper, epoch, top1) for epoch, top1 in enumerate([0.1, 0.5, 0.3, 0.2, 0.6], 1)] == [
        True, True, False, False, True,
    ]  # fmt: skip
    expected = ["best-002.pt", "best-005.pt", "epoch-002.pt", "epoch-004.pt", "last.pt", "previous.pt"]
    assert names(tmp_path) == expected
    assert keeper.best.name == "best-005.pt"
    assert Checkpoint.load(tmp_path / "last.pt").epoch == 5
    assert Checkpoint.load(tmp_path / "previous.pt").epoch == 4
    assert Checkpoint.load(tmp_path / "epoch-004.pt").epoch == 4
    assert Checkpoint.load(tmp_path / "best-002.pt").metrics["val_top1"] == 0.5


def test_of_equal_top1_the_lower_loss_is_better(add: Callable[..., bool], tmp_path: Path) -> None:
    keeper = CheckpointKeeper(tmp_path, every_epochs=100, keep_best=1)
    assert add(keeper, 1, 0.5, 1.0)
    assert add(keeper, 2, 0.5, 0.9)
    assert not add(keeper, 3, 0.5, 0.95)
    assert names(tmp_path) == ["best-002.pt", "last.pt", "previous.pt"]


def test_what_a_killed_process_left_is_tidied_up(add: Callable[..., bool], tmp_path: Path) -> None:
    for name in (".last.pt.x1.part", "best-007.pt", "epoch-009.pt", "best-notes.txt", "mine.pt"):
        (tmp_path / name).write_text("left")
    add(CheckpointKeeper(tmp_path, every_epochs=100, keep_best=1), 1, 0.5)
    assert names(tmp_path) == ["best-001.pt", "best-notes.txt", "last.pt", "mine.pt"]


@pytest.mark.parametrize("keep_best", [1, 3])
def test_of_two_equal_ones_the_earlier_stays_the_best(add: Callable[..., bool], tmp_path: Path, keep_best: int) -> None:
    keeper = CheckpointKeeper(tmp_path, every_epochs=100, keep_best=keep_best)
    assert add(keeper, 1, 0.5)
    assert not add(keeper, 2, 0.5)  # True would name an epoch that is not that of the file
    assert keeper.best.name == "best-001.pt"


def test_a_training_leaves_these_files(trained: SimpleNamespace) -> None:
    best = sorted((entry for entry in trained.result.history), key=lambda e: (-e["val_top1"], e["val_loss"]))[:2]
    expected = {f"best-{entry['epoch']:03d}.pt" for entry in best}
    assert set(names(trained.folder)) == expected | {"epoch-003.pt", "epoch-006.pt", "last.pt", "previous.pt"}
    assert trained.result.best_checkpoint.name == f"best-{trained.result.best_epoch:03d}.pt"
    loaded = Checkpoint.load(trained.result.best_checkpoint)
    assert (loaded.epoch, loaded.config) == (trained.result.best_epoch, trained.config)
    assert loaded.metrics == trained.result.best_metrics
