"""A student and its teacher: what is learned, what the teacher sees, and what is refused."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pillsnap.core.bundle import RETIRED_LOGIT
from pillsnap.core.errors import TrainingError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.core.files import sha256_file
from pillsnap.data.cache import PreparedCache
from pillsnap.training.backbone import create_net
from pillsnap.training.batches import TrainingData
from pillsnap.training.checkpoint import Checkpoint
from pillsnap.training.device import Device
from pillsnap.training.distillation import Teacher, distillation_loss, load_teacher, teacher_file
from pillsnap.training.sealed import load_sealed
from pillsnap.training.trainer import _Trainer, fit

Config = Callable[..., ExperimentConfig]
Build = Callable[[dict[str, Any]], _Trainer]
MakeTeacher = Callable[..., Path]
QUIET = SimpleNamespace(on_step=lambda *_: None, on_epoch=lambda *_: None, on_resume=lambda *_: None)
CPU = Device(torch.device("cpu"), None)


@pytest.fixture
def make_teacher(tiny_config: Config, data: TrainingData, tmp_path: Path) -> MakeTeacher:
    """``make_teacher({dotted: value}, kcodes)``: the checkpoint of a net with weights of its own."""

    def make(overrides: dict[str, Any] | None = None, kcodes: tuple[str, ...] = (), name: str = "teacher.pt") -> Path:
        config = tiny_config(overrides)
        kcodes = kcodes or data.manifest.catalog.kcodes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(77)
            state = create_net(config.model, config.preprocessing, len(kcodes)).state_dict()
        Checkpoint(config, kcodes, data.manifest.hash, 3, {"val_top1": 0.5, "val_loss": 1.0}, state).save(
            tmp_path / name
        )
        return tmp_path / name

    return make


def taught(teacher: Path | str, **values: float) -> dict[str, Any]:
    """The overrides of the section ``distillation``."""
    return {"distillation.teacher": str(teacher)} | {f"distillation.{key}": value for key, value in values.items()}


def first_batch(trainer: _Trainer) -> tuple[torch.Tensor, torch.Tensor]:
    data = trainer._data
    rows = data.train_indices[::6]
    return torch.from_numpy(data.cache.images_NHWC_u8[rows]), torch.from_numpy(data.labels_N[rows])


def teacher_of(built: _Trainer) -> Teacher:
    assert built._teacher is not None
    return built._teacher


# --- the loss


def test_the_loss_by_hand() -> None:
    """At T = 2 the teacher says (3/4, 1/4), the student (1/2, 1/2); and in the second row both say the same."""
    teacher_NK = torch.tensor([[2 * math.log(3), 0.0], [5.0, 1.0]])
    student_NK = torch.tensor([[1.0, 1.0], [4.0, 0.0]])
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    found = distillation_loss(student_NK, teacher_NK, temperature=2.0)
    assert float(found) == pytest.approx(4 * (divergence + 0) / 2, rel=1e-5)
    assert float(found) == pytest.approx(0.261624, rel=1e-4)
    assert float(distillation_loss(teacher_NK, teacher_NK, 2.0)) == pytest.approx(0, abs=1e-6)


def test_its_gradient_keeps_its_size_as_the_temperature_grows() -> None:
    """Hinton et al.: at a high temperature it is (net - teacher) / K, for logits without a mean."""
    teacher_NK = torch.tensor([[1.0, -1.0, 0.0]])
    gradients = []
    for temperature in (50.0, 100.0):
        student_NK = torch.tensor([[0.5, 0.5, -1.0]], requires_grad=True)
        distillation_loss(student_NK, teacher_NK, temperature).backward()
        gradients.append(student_NK.grad)
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.tensor([[-0.5, 1.5, -1.0]]) / 3, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_training_learns_by_the_weighted_sum(trainer: Build, make_teacher: MakeTeacher, weight: float) -> None:
    path = make_teacher()
    plain = trainer({})
    plain_loss = plain._update(*first_batch(plain))
    assert plain_loss.keys() == {"loss"}
    built = trainer(taught(path, weight=weight, temperature=3))
    image, label_N = first_batch(built)
    with torch.no_grad():
        mean, std = (built._net.mean, built._net.std)  # the norms' statistics move, the answers in training do not
        assert torch.equal(built._net.normalize(image), (image.permute(0, 3, 1, 2).float() - mean) / std)
        logits_NK = built._net.train()(image)
        expected = distillation_loss(logits_NK, Checkpoint.load(path).build_net()(image), 3.0)
    losses = {key: float(value) for key, value in built._update(image, label_N).items()}
    assert losses["label_loss"] == pytest.approx(float(plain_loss["loss"]), rel=1e-5)
    assert losses["distillation_loss"] == pytest.approx(float(expected), rel=1e-4)
    assert losses["loss"] == pytest.approx(
        (1 - weight) * losses["label_loss"] + weight * losses["distillation_loss"], rel=1e-5
    )
    gradients = [parameter.grad for parameter in built._net.parameters()]
    if weight == 0:
        plain_gradients = [parameter.grad for parameter in plain._net.parameters()]
        for ours, theirs in zip(gradients, plain_gradients, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_the_parts_are_told_by_step_and_epoch(
    data: TrainingData, tiny_config: Config, make_teacher: MakeTeacher, tmp_path: Path
) -> None:
    told: list[dict[str, float]] = []
    observer = SimpleNamespace(on_step=lambda _, m: told.append(m), on_epoch=lambda _, m: told.append(m))
    config = tiny_config(taught(make_teacher(), weight=0.25) | {"logging.every_steps": 3, "training.epochs": 1})
    fit(config.with_overrides({"training.warmup_epochs": 0}), data, tmp_path / "c", observer)
    assert len(told) == 3  # six updates, one epoch
    for metrics, kind in zip(told, ("step", "step", "train"), strict=True):
        labels, teacher = metrics[f"{kind}_label_loss"], metrics[f"{kind}_distillation_loss"]
        assert labels != pytest.approx(teacher, rel=0.01)
        assert metrics[f"{kind}_loss"] == pytest.approx(0.75 * labels + 0.25 * teacher, rel=1e-4)


# --- what is learned


@pytest.fixture(scope="module")
def wrongly_labelled(data: TrainingData) -> TrainingData:
    """The training images with the label of the next class; validation as it is."""
    labels_N = data.labels_N.copy()
    labels_N[data.train_indices] = (labels_N[data.train_indices] + 1) % 6
    return replace(data, labels_N=labels_N)


@pytest.mark.parametrize(("weight", "follows"), [(1.0, "teacher"), (0.0, "labels")])
def test_it_learns_what_its_teacher_says(
    wrongly_labelled: TrainingData,
    tiny_config: Config,
    squares: SimpleNamespace,
    trained: SimpleNamespace,
    tmp_path: Path,
    weight: float,
    follows: str,
) -> None:
    """Taught by the teacher alone it is right about pictures whose label was always wrong."""
    config = tiny_config(
        {
            **squares.PLAIN,
            **taught(trained.result.best_checkpoint, weight=weight, temperature=2),
            "training.epochs": 8,
            "training.warmup_epochs": 1,
        }
    )
    result = fit(config, wrongly_labelled, tmp_path, QUIET)
    image = torch.from_numpy(wrongly_labelled.cache.images_NHWC_u8[wrongly_labelled.val_indices])
    label_N = torch.from_numpy(wrongly_labelled.labels_N[wrongly_labelled.val_indices])
    with torch.inference_mode():
        answer_N = Checkpoint.load(tmp_path / "last.pt").build_net()(image).argmax(1)
        teacher_N = Checkpoint.load(trained.result.best_checkpoint).build_net()(image).argmax(1)
    wrong_N = (label_N + 1) % 6
    agreement = {"teacher": (answer_N == teacher_N).float().mean(), "labels": (answer_N == wrong_N).float().mean()}
    assert float(agreement.pop(follows)) >= 0.75, agreement
    assert float(next(iter(agreement.values()))) <= 0.25
    first, last = result.history[0], result.history[-1]
    assert (last["train_distillation_loss"] < 0.5 * first["train_distillation_loss"]) == (follows == "teacher")


def test_the_student_starts_as_without_a_teacher(trainer: Build, make_teacher: MakeTeacher) -> None:
    found = []
    for overrides in ({}, taught(make_teacher())):
        built = trainer({"model.drop_rate": 0.5, **overrides})
        state = torch.cat([value.flatten().double() for value in built._net.state_dict().values()])
        found.append((state, torch.rand(3), np.random.rand(3)))  # noqa: NPY002
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert np.array_equal(found[0][2], found[1][2])


def test_making_the_teacher_draws_nothing(data: TrainingData, tiny_config: Config, make_teacher: MakeTeacher) -> None:
    config, state = tiny_config(taught(make_teacher())), torch.get_rng_state()
    assert Teacher.of(config, data.manifest, CPU) is not None
    assert torch.equal(torch.get_rng_state(), state)


def test_the_teacher_is_frozen_and_no_part_of_the_student(
    data: TrainingData, tiny_config: Config, make_teacher: MakeTeacher, tmp_path: Path
) -> None:
    path = make_teacher({"model.drop_rate": 0.9, "model.drop_path_rate": 0.9})
    config = tiny_config(taught(path) | {"training.ema_decay": 0.9})
    built = _Trainer(config, data, tmp_path / "c", QUIET)
    net = teacher_of(built)._net
    answers = [teacher_of(built).answers(torch.ones(4, 3, 32, 32)) for _ in range(2)]
    assert torch.equal(*answers), "in evaluation mode nothing is dropped"
    assert not answers[0].requires_grad
    built.fit()
    expected = Checkpoint.load(path).state_dict
    assert net.state_dict().keys() == expected.keys()
    assert all(torch.equal(net.state_dict()[key], value) for key, value in expected.items()), "statistics of norms too"
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in net.parameters())
    optimized = {id(parameter) for group in built._optimizer.param_groups for parameter in group["params"]}
    assert optimized == {id(parameter) for parameter in built._net.parameters()}
    plain = create_net(config.model, config.preprocessing, 6).state_dict()
    for name in ("last.pt", "best-001.pt"):
        if (tmp_path / "c" / name).is_file():
            saved = load_sealed(tmp_path / "c" / name)
            assert {key: value.shape for key, value in saved["state_dict"].items()} == {
                key: value.shape for key, value in plain.items()
            }
            assert saved["teacher_sha256"] == sha256_file(path)
    assert load_sealed(tmp_path / "c" / "last.pt")["net"].keys() == plain.keys()
    assert Checkpoint.load(tmp_path / "c" / "last.pt").teacher_sha256 == sha256_file(path)


# --- what the teacher sees


def seen_by_both(built: _Trainer) -> tuple[torch.Tensor, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}
    built._net.backbone.register_forward_pre_hook(lambda _, args: seen.update(student=args[0].clone()))
    teacher_of(built)._net.backbone.register_forward_pre_hook(lambda _, args: seen.update(teacher=args[0].clone()))
    built._update(*first_batch(built))
    return seen["student"], seen["teacher"]


MIXED_AND_ERASED = {
    "augmentation.mix_probability": 1,
    "augmentation.mixup_alpha": 1,
    "augmentation.cutmix_alpha": 1,
    "augmentation.random_erasing": 1,
}


def test_it_sees_the_very_same_mixed_and_erased_pictures(trainer: Build, make_teacher: MakeTeacher) -> None:
    built = trainer(taught(make_teacher()) | MIXED_AND_ERASED)
    student, teacher = seen_by_both(built)
    assert torch.equal(student, teacher)
    assert not torch.allclose(student, built._net.normalize(first_batch(built)[0]), atol=0.1)
    assert teacher.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size_px", [48, 16])
def test_it_sees_them_in_its_own_size_and_normalisation(
    trainer: Build, make_teacher: MakeTeacher, size_px: int
) -> None:
    own = {"preprocessing.target_size": size_px, "preprocessing.mean": [0.5, 0.4, 0.3]}
    path = make_teacher({**own, "preprocessing.std": [0.5, 0.6, 0.7]})
    built = trainer(taught(path))
    _, teacher = seen_by_both(built)
    pixels = first_batch(built)[0].permute(0, 3, 1, 2).float()
    pixels = F.interpolate(pixels, (size_px, size_px), mode="bilinear", antialias=size_px < 32)
    expected = Checkpoint.load(path).build_net().normalize(pixels.permute(0, 2, 3, 1))
    assert teacher.shape == (16, 3, size_px, size_px)
    torch.testing.assert_close(teacher, expected, rtol=0, atol=1e-4)


def test_it_answers_in_the_precision_of_the_student(
    trainer: Build, make_teacher: MakeTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pillsnap.training.device._cpu_computes_bf16", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    built = trainer(taught(make_teacher()) | {"training.mixed_precision": True})
    seen: list[torch.dtype] = []
    teacher_of(built)._net.backbone.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    losses = built._update(*first_batch(built))
    assert seen == [torch.bfloat16]
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_retired_drugs_are_no_answers(
    squares: SimpleNamespace, tiny_config: Config, make_teacher: MakeTeacher, tmp_path: Path
) -> None:
    manifest = squares.save_squares(tmp_path / "m", retired=(2,))
    config = tiny_config(taught(make_teacher(), weight=1) | {"training.warmup_epochs": 0, "training.epochs": 1})
    cache = PreparedCache.build(manifest, config.preprocessing, tmp_path / "cache", workers=1)
    built = _Trainer(config, TrainingData.of(manifest, cache, config), tmp_path / "c", QUIET)
    answers = teacher_of(built).answers(torch.ones(4, 3, 32, 32))
    assert torch.equal(answers[:, 2], torch.full((4,), RETIRED_LOGIT))
    assert np.isfinite(built._train_epoch(1)["train_loss"])


# --- which teacher


def test_the_folder_of_a_run_stands_for_its_best_checkpoint(trained: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(trained.folder)
    assert teacher_file(str(trained.folder)) == trained.result.best_checkpoint
    found = teacher_file(str(tmp_path / "run"))
    assert found.resolve() == trained.result.best_checkpoint.resolve()
    assert load_sealed(trained.folder / "last.pt")["best_epochs"][0] == trained.result.best_epoch
    with pytest.raises(TrainingError, match=r"distillation\.teacher: .*is not the folder of a training .*\.pt file"):
        teacher_file(str(tmp_path))


def test_its_record(data: TrainingData, tiny_config: Config, make_teacher: MakeTeacher) -> None:
    path = make_teacher()
    found = load_teacher(tiny_config(taught(path)), data.manifest)
    assert found is not None
    record = found[1]
    assert (record.source, record.sha256, record.backbone, record.epoch) == (
        str(path), sha256_file(path), "resnet18", 3,
    )  # fmt: skip
    assert record.manifest_hash == data.manifest.hash
    assert load_teacher(tiny_config(), data.manifest) is None
    assert Teacher.of(tiny_config(), data.manifest, CPU) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k: k[:4], r"the teacher has 4 classes, the data set 6; the teacher does not know K-990005, K-990006"),
        (lambda k: (*k, "K-000001"), r"7 classes, the data set 6; the data set does not have the teacher's K-000001"),
        (lambda k: (k[1], k[0], *k[2:]), r"the order differs from class 0 on"),
        (lambda k: (*k[:5], "K-000001"), r"does not know K-990006; the data set does not have the teacher's K-000001"),
    ],
)
def test_a_teacher_of_other_drugs_is_refused(
    trainer: Build,
    data: TrainingData,
    make_teacher: MakeTeacher,
    change: Callable[[tuple[str, ...]], tuple[str, ...]],
    message: str,
) -> None:
    path = make_teacher(None, change(data.manifest.catalog.kcodes))
    with pytest.raises(TrainingError, match=message) as error:
        trainer(taught(path))
    assert str(error.value).startswith(f"distillation.teacher: {path} does not answer with the drugs of this data set")


def test_a_teacher_that_is_none_is_refused_before_anything_is_trained(
    data: TrainingData, tiny_config: Config, tmp_path: Path
) -> None:
    def refused(teacher: str, message: str) -> None:
        with pytest.raises(TrainingError, match=message):
            fit(tiny_config(taught(teacher)), data, tmp_path / "c", QUIET)
        assert not (tmp_path / "c").exists()

    refused(str(tmp_path / "none.pt"), r"distillation\.teacher: .*none\.pt: no such file")
    refused("models:/pillsnap@champion", r"distillation\.teacher: models:/pillsnap@champion stands for a checkpoint")
    refused("runs:/abc", r"the commands fetch")
    refused("bundle.onnx", r"the commands fetch")
    torch.save({"fc.weight": torch.ones(2)}, tmp_path / "foreign.pt")
    refused(str(tmp_path / "foreign.pt"), r"foreign\.pt: is not a PillSnap checkpoint")
    (tmp_path / "damaged.pt").write_bytes(b"PK half of it")
    refused(str(tmp_path / "damaged.pt"), r"damaged\.pt: is not a checkpoint")


def test_other_pictures_and_other_data_are_said_in_the_log(
    data: TrainingData, tiny_config: Config, make_teacher: MakeTeacher, caplog: pytest.LogCaptureFixture
) -> None:
    size = {"preprocessing.target_size": 48, "preprocessing.mean": [0.5, 0.5, 0.5]}
    with caplog.at_level(logging.INFO):
        path = make_teacher(size)
        Teacher.of(tiny_config(taught(path)), data.manifest, CPU)
        assert f"taught by {path} (sha256 {sha256_file(path)[:12]}): resnet18 at 48 px" in caplog.text
        assert "WARNING" not in caplog.text, "size and normalisation are brought to the teacher's"
        other = make_teacher({"preprocessing.interpolation": "area", "preprocessing.clahe.enabled": True})
        Teacher.of(tiny_config(taught(other)), data.manifest, CPU)
        assert "prepared in another way (preprocessing.interpolation, preprocessing.clahe)" in caplog.text
        replace(Checkpoint.load(path), manifest_hash="b" * 64).save(path)
        Teacher.of(tiny_config(taught(path)), data.manifest, CPU)
        assert "the teacher was trained on other data (manifest bbbbbbbbbbbb)" in caplog.text


def test_whose_pictures_are_in_the_weights_is_handed_on(
    trainer: Build, data: TrainingData, make_teacher: MakeTeacher, tmp_path: Path
) -> None:
    """A test picture that the teacher's teacher has seen is known to this net, too."""
    path, weights = make_teacher(), tmp_path / "weights.pt"
    replace(Checkpoint.load(path), manifest_hash="b" * 64, also_learned_from=("c" * 64,)).save(path)
    replace(Checkpoint.load(path), manifest_hash=data.manifest.hash, also_learned_from=("d" * 64,)).save(weights)
    started = {"model.pretrained": True, "model.weights": str(weights)}
    made = trainer({**taught(path), **started})._checkpoint(1, {})
    assert made.also_learned_from == ("d" * 64, "b" * 64, "c" * 64)
    made.save(tmp_path / "made.pt")
    assert Checkpoint.load(tmp_path / "made.pt").learned_from == (data.manifest.hash, *made.also_learned_from)
    assert trainer({})._checkpoint(1, {}).learned_from == (data.manifest.hash,)


def test_a_checkpoint_of_an_older_version_names_no_teacher(make_teacher: MakeTeacher, tmp_path: Path) -> None:
    raw = load_sealed(make_teacher())
    assert raw.pop("teacher_sha256") == ""
    assert raw.pop("also_learned_from") == []
    torch.save(raw, tmp_path / "old.pt")
    assert Checkpoint.load(tmp_path / "old.pt").teacher_sha256 == ""
