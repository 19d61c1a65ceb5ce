from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pillsnap.core.errors import ConfigError, TrainingError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.data.cache import PreparedCache
from pillsnap.training.batches import TrainingData
from pillsnap.training.checkpoint import Checkpoint
from pillsnap.training.device import Device
from pillsnap.training.mixing import create_mixup
from pillsnap.training.trainer import _Trainer, fit, weighted_loss

Config = Callable[..., ExperimentConfig]
Build = Callable[[dict[str, Any]], _Trainer]
QUIET = SimpleNamespace(on_step=lambda *_: None, on_epoch=lambda *_: None, on_resume=lambda *_: None)
ONLY_MIXUP = {"augmentation.mix_probability": 1, "augmentation.mixup_alpha": 1, "augmentation.cutmix_alpha": 0}
ONLY_CUTMIX = {"augmentation.mix_probability": 1, "augmentation.mixup_alpha": 0, "augmentation.cutmix_alpha": 1}


def first_batch(trainer: _Trainer) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight images of class 0 and eight of the others: classes of unequal weight."""
    data = trainer._data
    rows = data.train_indices[np.argsort(data.labels_N[data.train_indices], kind="stable")][8:24]
    return torch.from_numpy(data.cache.images_NHWC_u8[rows]), torch.from_numpy(data.labels_N[rows])


def seen_by_the_net(trainer: _Trainer, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """One update; the pixels that the backbone got and the target that the loss got."""
    seen: dict[str, torch.Tensor] = {}
    cross_entropy = F.cross_entropy

    def spy(logits: torch.Tensor, target: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        seen["target"] = target.clone()
        return cross_entropy(logits, target, **kwargs)

    hook = trainer._net.backbone.register_forward_pre_hook(lambda _, args: seen.update(image=args[0].clone()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "cross_entropy", spy)
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        trainer._update(*first_batch(trainer))
    hook.remove()
    return seen["image"], seen["target"]


def flat_weights(state: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.flatten().double() for _, value in sorted(state.items())])


# --- the whole training


def test_it_learns(trained: SimpleNamespace) -> None:
    history = trained.result.history
    assert [entry["epoch"] for entry in history] == list(range(1, 9))
    assert history[-1]["val_loss"] < 0.7 * history[0]["val_loss"]
    assert trained.result.best_metrics["val_top1"] >= 0.7  # chance is 1/6
    assert trained.result.best_metrics["val_top5"] >= trained.result.best_metrics["val_top1"]


def test_metrics_are_whole_and_the_observer_hears_them(trained: SimpleNamespace) -> None:
    keys = {
        "train_loss", "lr", "images_per_s", "train_s", "val_s", "val_loss", "val_top1", "val_top5", "val_real_top1",
        "val_studio_top1",
    }  # fmt: skip
    for epoch, metrics in trained.seen.epochs:
        assert metrics.keys() == keys
        assert metrics["val_top1"] == pytest.approx((metrics["val_real_top1"] + metrics["val_studio_top1"]) / 2)
        assert {"epoch": epoch, **metrics} == trained.result.history[epoch - 1]
    assert [epoch for epoch, _ in trained.seen.epochs] == list(range(1, 9))


def test_steps_are_logged_every_n_updates(trained: SimpleNamespace) -> None:
    assert [step for step, _ in trained.seen.steps] == list(range(4, 49, 4))  # 8 epochs of 6 updates
    for _, metrics in trained.seen.steps:
        assert metrics.keys() == {"step_loss", "step_lr", "step_images_per_s"}


def test_the_rate_ends_at_its_minimum(trained: SimpleNamespace) -> None:
    rates = [entry["lr"] for entry in trained.result.history]
    assert rates[0] == pytest.approx(trained.config.training.base_lr)  # one epoch of warm-up
    assert rates[-1] == pytest.approx(trained.config.training.min_lr)
    assert rates == sorted(rates, reverse=True)


def test_the_first_update_is_made_at_the_lowest_rate(trainer: Build) -> None:
    built = trainer({"training.warmup_epochs": 1, "schedule.warmup_factor": 0.01})
    rates = []
    step = built._optimizer.step
    built._optimizer.step = lambda *args, **kwargs: (rates.append(built._lr()), step(*args, **kwargs))[1]  # type: ignore[method-assign]
    built._train_epoch(1)
    assert rates[0] == pytest.approx(0.01 * 0.01)
    assert rates == sorted(rates)
    assert built._lr() == pytest.approx(0.01)


def test_each_epoch_has_an_order_of_its_own(trainer: Build) -> None:
    built = trainer({})
    shown: list[list[int]] = []
    update = built._update
    built._update = lambda image, label_N: (shown[-1].extend(label_N.tolist()), update(image, label_N))[1]  # type: ignore[method-assign]
    for epoch in (1, 2):
        shown.append([])
        built._train_epoch(epoch)
    assert sorted(shown[0]) == sorted(shown[1])
    assert shown[0] != shown[1]


def test_same_seed_same_weights_other_seed_others(data: TrainingData, tiny_config: Config, tmp_path: Path) -> None:
    """Bit by bit, with all that is random switched on, however the global generators stood before."""

    def train(name: str, overrides: dict[str, Any]) -> torch.Tensor:
        torch.rand(len(name))
        np.random.rand(len(name))  # noqa: NPY002
        random.random()
        config = tiny_config({"augmentation.random_erasing": 0.9, "training.ema_decay": 0.9, **overrides})
        result = fit(config, data, tmp_path / name, QUIET)
        return flat_weights(Checkpoint.load(tmp_path / name / "last.pt").state_dict), result

    first, result = train("a", {})
    again, result_again = train("again", {})
    assert torch.equal(first, again)
    keys = ("train_loss", "val_loss", "val_top1")
    assert [[e[k] for k in keys] for e in result.history] == [[e[k] for k in keys] for e in result_again.history]
    assert not torch.equal(first, train("other", {"seed": 2})[0])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_number_of_workers_changes_nothing(data: TrainingData, tiny_config: Config, tmp_path: Path) -> None:
    def train(workers: int) -> torch.Tensor:
        config = tiny_config({"data.workers": workers, "model.drop_rate": 0.5})
        fit(config, data, tmp_path / str(workers), QUIET)
        return flat_weights(Checkpoint.load(tmp_path / str(workers) / "last.pt").state_dict)

    assert torch.equal(train(0), train(2))


def test_a_loss_that_is_no_number_ends_the_training(data: TrainingData, tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config({"training.base_lr": 1e38, "training.gradient_clip": None, "training.warmup_epochs": 0})
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) after \d+ updates; lower training\.base_lr"):
        fit(config, data, tmp_path / "c", QUIET)
    assert not (tmp_path / "c").exists()


def test_a_loss_that_is_no_number_is_seen_when_it_is_logged(trainer: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    built = trainer({"logging.every_steps": 2})
    monkeypatch.setattr(F, "cross_entropy", lambda logits, *_, **__: logits.sum() * float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan after 2 updates"):
        built._train_epoch(1)


def test_an_observer_may_end_the_training(data: TrainingData, tiny_config: Config, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(*_: Any) -> None:
        raise Stop

    with pytest.raises(Stop):
        fit(tiny_config(), data, tmp_path, SimpleNamespace(on_step=stop, on_epoch=stop))
    assert not (tmp_path / "last.pt").exists(), "an epoch that was not told whole is told again"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried"),
            r"^out of memory \(CUDA out of memory. Tried\).*accumulate",
        ),
        (MemoryError("8 GiB"), r"^out of memory \(8 GiB\)"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), r"pid 7.*lower data\.workers"),
    ],
)
def test_a_full_memory_is_said_to_be_that(
    data: TrainingData,
    tiny_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    said: str,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(_Trainer, "_train_epoch", fail)
    with pytest.raises(TrainingError, match=said):
        fit(tiny_config(), data, tmp_path, QUIET)


# --- one update


def test_plain_loss_is_the_weighted_cross_entropy(trainer: Build) -> None:
    built = trainer({})
    image, label_N = first_batch(built)
    weights_K = torch.tensor([3.0, 1, 1, 1, 1, 1]) / (8 / 6)  # of the catalog, mean 1
    with torch.no_grad():
        log_p = built._net.train()(image).log_softmax(1)[torch.arange(16), label_N]
    expected = -(weights_K[label_N] * log_p).sum() / 16
    assert float(built._update(image, label_N)["loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(-log_p.mean()) != pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_batch_that_is_mixed_with_nothing_has_the_plain_loss(trainer: Build, smoothing: float) -> None:
    """Mixed or not, a batch is one and the same problem: the weights count as much in both."""
    losses = []
    for mixing in ({}, ONLY_MIXUP):
        built = trainer({**mixing, "training.label_smoothing": smoothing})
        if built._mixup is not None:
            built._mixup._params_per_batch = lambda: (1.0, False)  # all of the image itself
        losses.append(float(built._update(*first_batch(built))["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_one_hot_targets_have_the_loss_of_their_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_NK = torch.randn((40, 5), generator=generator)
    label_N = torch.randint(0, 5, (40,), generator=generator)
    weights_K = torch.tensor([4.0, 0.5, 0.25, 0.25, 0.0])
    one_hot_NK = F.one_hot(label_N, 5).float()
    hard, soft = (float(weighted_loss(logits_NK, target, weights_K, 0.2)) for target in (label_N, one_hot_NK))
    assert hard == pytest.approx(soft, rel=1e-5)


@pytest.mark.parametrize("soft", [False, True])
def test_a_batch_of_one_class_feels_its_weight(soft: bool) -> None:
    logits_NK, label_N = torch.eye(4)[:, :3], torch.ones(4, dtype=torch.int64)
    target = F.one_hot(label_N, 3).float() if soft else label_N
    once, thrice = (float(weighted_loss(logits_NK, target, torch.tensor([1.0, w, 1.0]), 0.0)) for w in (1, 3))
    assert thrice == pytest.approx(3 * once)


def test_a_retired_class_neither_weighs_nor_answers(squares: SimpleNamespace, tmp_path: Path) -> None:
    manifest = squares.save_squares(tmp_path / "m", {"train": 4, "val": 2, "test": 1}, (3.0, 1.0, 100.0), retired=(2,))
    config = squares.tiny_config(squares.PLAIN)
    cache = PreparedCache.build(manifest, config.preprocessing, tmp_path / "cache", workers=1)
    built = _Trainer(config, TrainingData.of(manifest, cache, config), tmp_path, QUIET)
    torch.testing.assert_close(built._class_weights_K, torch.tensor([3.0, 1, 0, 1, 1, 1]) / (7 / 5))
    before = built._validate()
    with torch.no_grad():
        built._net.get_parameter("backbone.fc.bias")[2] = 1e4
    assert built._validate() == before
    assert np.isfinite(float(built._update(*first_batch(built))["loss"]))


def test_class_weights_change_the_weights(
    squares: SimpleNamespace, data: TrainingData, trainer: Build, tmp_path: Path
) -> None:
    manifest = squares.save_squares(tmp_path / "m")  # the same pictures, all classes of weight 1
    config = squares.tiny_config(squares.PLAIN)
    cache = PreparedCache.build(manifest, config.preprocessing, tmp_path / "cache", workers=1)
    neutral = _Trainer(config, TrainingData.of(manifest, cache, config), tmp_path, QUIET)
    weighted = trainer({})
    for built in (neutral, weighted):
        built._train_epoch(1)
    np.testing.assert_array_equal(cache.images_NHWC_u8, data.cache.images_NHWC_u8)
    assert not torch.equal(flat_weights(neutral._net.state_dict()), flat_weights(weighted._net.state_dict()))


@pytest.mark.parametrize("mixing", [{}, ONLY_MIXUP], ids=["hard targets", "mixed targets"])
def test_label_smoothing_is_in_the_loss(trainer: Build, mixing: dict[str, Any]) -> None:
    """A smoothed loss is (1 - s) · loss + s · mean over the classes: linear in s."""
    losses = []
    for smoothing in (0, 0.25, 0.5):
        built = trainer({**mixing, "training.label_smoothing": smoothing})
        built._class_weights_K = torch.ones(6)
        np.random.seed(0)  # noqa: NPY002
        losses.append(float(built._update(*first_batch(built))["loss"]))
    assert losses[1] - losses[0] == pytest.approx(losses[2] - losses[1], rel=1e-3)
    assert abs(losses[2] - losses[0]) > 1e-3


@pytest.mark.parametrize("scaled", [False, True])
def test_the_true_gradient_is_clipped(trainer: Build, monkeypatch: pytest.MonkeyPatch, scaled: bool) -> None:
    if scaled:  # as with fp16: the loss is multiplied by 65,536 and the gradient must be divided before it is clipped
        monkeypatch.setattr(Device, "needs_scaler", property(lambda self: True))

    def norm_after_an_update(clip: float | None) -> float:
        built = trainer({"training.gradient_clip": clip})
        built._update(*first_batch(built))
        return float(torch.linalg.vector_norm(flat_weights({n: p.grad for n, p in built._net.named_parameters()})))

    assert norm_after_an_update(0.01) == pytest.approx(0.01, rel=1e-3)
    if not scaled:
        free = norm_after_an_update(None)
        assert free > 0.1
        assert norm_after_an_update(1e6) == pytest.approx(free, rel=1e-5)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_mixed_precision_in_training_and_validation(
    trainer: Build, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype | None
) -> None:
    monkeypatch.setattr("pillsnap.training.device._cpu_computes_bf16", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    built = trainer({"training.mixed_precision": dtype is not None})
    seen: list[torch.dtype] = []
    built._net.backbone.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    loss = built._update(*first_batch(built))["loss"]
    built._validate()
    assert set(seen) == {dtype or torch.float32}
    assert loss.dtype == torch.float32
    assert {parameter.dtype for parameter in built._net.parameters()} == {torch.float32}


# --- the average of the weights


def test_the_average_is_what_is_validated_and_saved(data: TrainingData, tiny_config: Config, tmp_path: Path) -> None:
    built = _Trainer(tiny_config({"training.ema_decay": 0.9}), data, tmp_path, QUIET)
    history = built.fit().history
    saved = Checkpoint.load(tmp_path / "last.pt").state_dict
    assert built._ema is not None
    average = built._ema.module.state_dict()
    assert all(torch.equal(saved[key], value) for key, value in average.items())
    assert not torch.equal(saved["backbone.fc.weight"], built._net.state_dict()["backbone.fc.weight"])
    with torch.no_grad():
        for parameter in built._net.parameters():
            parameter.zero_()  # the net itself must not matter
    assert built._validate()["val_loss"] == history[-1]["val_loss"]


@pytest.mark.parametrize(
    ("decay", "share"), [(0.3, 0.3), pytest.param(0.999, 1 - 3 ** (-2 / 3), id="too high for the first updates")]
)
def test_the_average_follows_its_decay(trainer: Build, decay: float, share: float) -> None:
    """After few updates a high decay would still hold the random weights of the start: it grows up to its value."""
    built = trainer({"training.ema_decay": decay})
    for _ in range(4):
        before = built._judged_net().state_dict()["backbone.fc.weight"].clone()
        built._update(*first_batch(built))
        built._step += 1
    now = built._net.state_dict()["backbone.fc.weight"]
    expected = share * before + (1 - share) * now
    torch.testing.assert_close(built._judged_net().state_dict()["backbone.fc.weight"], expected)


def test_without_an_average_the_net_itself_is_judged(trainer: Build) -> None:
    built = trainer({"training.ema_decay": None})
    assert built._judged_net() is built._net


# --- mixing and erasing


def test_off_nothing_touches_the_pixels(trainer: Build) -> None:
    built = trainer({})
    image, target = seen_by_the_net(built)
    pixels, label_N = first_batch(built)
    torch.testing.assert_close(image, built._net.normalize(pixels), rtol=0, atol=0)
    assert torch.equal(target, label_N)


@pytest.mark.parametrize("mixing", [ONLY_MIXUP, ONLY_CUTMIX], ids=["mixup", "cutmix"])
def test_mixing_changes_pixels_and_targets(trainer: Build, mixing: dict[str, Any]) -> None:
    built = trainer(mixing)
    image, target = seen_by_the_net(built)
    pixels, label_N = first_batch(built)
    plain = built._net.normalize(pixels)
    assert not torch.equal(image, plain)
    assert target.shape == (16, 6)
    torch.testing.assert_close(target.sum(1), torch.ones(16))
    share = float(target[0, label_N[0]])  # the first image is mixed with the last, of another class
    assert 0 < share < 1
    assert float(target[0, label_N[-1]]) == pytest.approx(1 - share, abs=1e-5)
    if mixing is ONLY_MIXUP:
        torch.testing.assert_close(image, share * plain + (1 - share) * plain.flip(0), rtol=0, atol=1e-4)
    else:
        pasted = (image == plain.flip(0)).all(dim=1)
        kept = (image == plain).all(dim=1)
        assert torch.all(pasted | kept)
        assert float((~kept[0]).float().mean()) == pytest.approx(1 - share, abs=0.02)


@pytest.mark.parametrize(
    "off",
    [{"augmentation.mix_probability": 0}, {"augmentation.mixup_alpha": 0, "augmentation.cutmix_alpha": 0}],
    ids=["probability 0", "both alphas 0"],
)
def test_mixing_switched_off_is_off(trainer: Build, off: dict[str, Any]) -> None:
    built = trainer({**ONLY_MIXUP, "augmentation.cutmix_alpha": 1, **off})
    for seed in range(8):
        image, target = seen_by_the_net(built, seed)
        assert target.ndim == 1
        assert torch.equal(image, built._net.normalize(first_batch(built)[0]))


def test_mix_probability_is_the_share_of_the_batches(trainer: Build) -> None:
    built = trainer({**ONLY_MIXUP, "augmentation.mix_probability": 0.5})
    targets = [seen_by_the_net(built, seed)[1] for seed in range(40)]
    mixed = sum(bool((target.max(1).values < 0.999).any()) for target in targets)
    assert 10 <= mixed <= 30


@pytest.mark.parametrize("minmax", [(0.1, 0.3), (0.6, 0.9)])
def test_cutmix_boxes_have_the_given_sides(tiny_config: Config, minmax: tuple[float, float]) -> None:
    mixup = create_mixup(tiny_config({**ONLY_CUTMIX, "augmentation.cutmix_minmax": list(minmax)}), 6)
    assert mixup is not None
    plain = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 32, 32)
    np.random.seed(0)  # noqa: NPY002
    for _ in range(50):
        image, _ = mixup(plain.clone(), torch.tensor([0, 1]))
        rows, columns = np.nonzero(image[0, 0].numpy())
        for side in (np.ptp(rows) + 1, np.ptp(columns) + 1):
            assert int(32 * minmax[0]) <= side <= 32 * minmax[1]


def test_the_cutmix_range_does_not_switch_cutmix_on(tiny_config: Config) -> None:
    mixup = create_mixup(tiny_config({**ONLY_MIXUP, "augmentation.cutmix_minmax": [0.1, 1.0]}), 6)
    assert mixup is not None
    assert (mixup.cutmix_alpha, mixup.cutmix_minmax) == (0, None)


@pytest.mark.parametrize("minmax", [[0.5, 0.5], [0.5, 0.51], [0.5, 1.5]])
def test_a_cutmix_range_without_a_box_is_misconfigured(tiny_config: Config, minmax: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"augmentation\.cutmix_minmax"):
        create_mixup(tiny_config({**ONLY_CUTMIX, "augmentation.cutmix_minmax": minmax}), 6)


def test_random_erasing_erases_its_share_of_the_images(trainer: Build) -> None:
    def erased(probability: float) -> float:
        built = trainer({"augmentation.random_erasing": probability})
        plain = built._net.normalize(first_batch(built)[0])
        seen = torch.cat([(seen_by_the_net(built, seed)[0] != plain).flatten(1).any(1) for seed in range(6)])
        return float(seen.float().mean())

    assert erased(0) == 0
    assert 0.25 < erased(0.5) < 0.75
    assert erased(1) == 1


# --- validation


def test_validation_is_never_augmented(trainer: Build, squares: SimpleNamespace) -> None:
    loud = {
        "augmentation.rotation_degrees": 180,
        "augmentation.random_crop.scale": [0.1, 0.2],
        "augmentation.blur.probability": 1,
        "augmentation.random_erasing": 1,
        **ONLY_MIXUP,
        "training.label_smoothing": 0.5,
    }
    found = []
    for overrides in ({}, loud):
        built = trainer(overrides)
        seen: list[torch.Tensor] = []
        built._net.backbone.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        metrics = built._validate()
        prepared = torch.from_numpy(built._data.cache.images_NHWC_u8[built._data.val_indices])
        assert torch.equal(torch.cat(seen), built._net.normalize(prepared))
        assert metrics == built._validate()
        found.append(metrics)
    assert found[0] == found[1]


def test_validation_metrics_by_hand(trainer: Build) -> None:
    built = trainer({})
    data = built._data
    with torch.inference_mode():
        logits_NK = built._net.eval()(torch.from_numpy(data.cache.images_NHWC_u8[data.val_indices])).numpy()
    label_N = data.labels_N[data.val_indices]
    right_N = logits_NK.argmax(1) == label_N
    rank_N = (logits_NK > logits_NK[np.arange(len(label_N)), label_N][:, None]).sum(1)
    real_N = data.is_real_N[data.val_indices]
    metrics = built._validate()
    assert metrics["val_top1"] == pytest.approx(right_N.mean())
    assert metrics["val_top5"] == pytest.approx((rank_N < 5).mean())
    assert metrics["val_real_top1"] == pytest.approx(right_N[real_N].mean())
    assert metrics["val_studio_top1"] == pytest.approx(right_N[~real_N].mean())
    assert built._net.training is False
    built._train_epoch(1)
    assert built._net.training is True
