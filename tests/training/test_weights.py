from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from pillsnap.core.errors import TrainingError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.core.files import sha256_file
from pillsnap.training.backbone import CLASSIFIER_STD, create_net
from pillsnap.training.batches import TrainingData
from pillsnap.training.checkpoint import Checkpoint
from pillsnap.training.trainer import _Trainer, fit
from pillsnap.training.weights import StartWeights, create_started_net

Config = Callable[..., ExperimentConfig]
KCODES = tuple(f"K-{number:06d}" for number in range(6))
HASH = "a" * 64


@pytest.fixture
def former(tiny_config: Config, tmp_path: Path) -> Callable[..., Path]:
    """``former({dotted: value}, kcodes)``: the checkpoint of a training whose weights no random start has."""

    def make(overrides: dict[str, Any] | None = None, kcodes: tuple[str, ...] = KCODES) -> Path:
        config = tiny_config(overrides)
        torch.manual_seed(77)
        state = create_net(config.model, config.preprocessing, len(kcodes)).state_dict()
        state = {key: value + 0.25 if value.is_floating_point() else value + 9 for key, value in state.items()}
        path = tmp_path / "former.pt"
        Checkpoint(config, kcodes, HASH, 3, {"val_top1": 0.5, "val_loss": 1.0}, state).save(path)
        return path

    return make


def started(
    config: ExperimentConfig, kcodes: tuple[str, ...] = KCODES, seed: int = 5
) -> tuple[dict[str, torch.Tensor], StartWeights]:
    torch.manual_seed(seed)
    net, weights = create_started_net(config, kcodes, HASH)
    return net.state_dict(), weights


def from_file(tiny_config: Config, path: Path, overrides: dict[str, Any] | None = None) -> ExperimentConfig:
    return tiny_config({"model.pretrained": True, "model.weights": str(path), **(overrides or {})})


def test_a_former_training_is_taken_over_whole(tiny_config: Config, former: Callable[..., Path]) -> None:
    path = former()
    state, weights = started(from_file(tiny_config, path))
    expected = Checkpoint.load(path).state_dict
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())  # norms' statistics too
    assert weights == StartWeights(str(path), sha256_file(path), "kept", HASH, (HASH,))


def test_the_head_follows_the_kcodes(tiny_config: Config, former: Callable[..., Path]) -> None:
    """Other places and other drugs: what was learned of a drug goes where that drug is now."""
    path = former()
    kcodes = ("K-999999", KCODES[4], KCODES[0])
    state, weights = started(from_file(tiny_config, path), kcodes)
    theirs = Checkpoint.load(path).state_dict
    for name in ("backbone.fc.weight", "backbone.fc.bias"):
        assert torch.equal(state[name][1], theirs[name][4])
        assert torch.equal(state[name][2], theirs[name][0])
        assert state[name][0].abs().max() <= 5 * CLASSIFIER_STD  # a new drug starts small
    assert torch.equal(state["backbone.conv1.weight"], theirs["backbone.conv1.weight"])
    assert weights.head == "2 of 3 drugs kept"


def test_a_head_of_other_drugs_is_new(tiny_config: Config, former: Callable[..., Path]) -> None:
    others = tuple(f"K-{number:06d}" for number in range(50, 56))
    state, weights = started(from_file(tiny_config, former()), others)
    assert state["backbone.fc.weight"].abs().max() <= 5 * CLASSIFIER_STD
    assert weights.head == "new"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.kwargs.channels": [8, 16, 32, 48]}, r"layer4\.0\.conv1\.weight is \[48, 32, 3, 3\], not \[64, 32"),
        ({"model.kwargs.layers": [1, 1, 1, 2]}, r"layer4\.1\.conv1\.weight is not of this net.* and \d+ more"),
        ({"model.backbone": "resnet50"}, r"is missing|is not of this net"),
    ],
)
def test_what_does_not_fit_is_named(
    tiny_config: Config, former: Callable[..., Path], overrides: dict[str, Any], message: str
) -> None:
    path = former(overrides)
    with pytest.raises(TrainingError, match=message) as error:
        started(from_file(tiny_config, path))
    assert str(error.value).startswith(f"model.weights: {path} does not fit resnet18: ")
    assert "Set model.backbone and model.kwargs" in str(error.value)


def test_a_deeper_net_does_not_keep_its_new_layers_random(tiny_config: Config, former: Callable[..., Path]) -> None:
    with pytest.raises(TrainingError, match=r"layer4\.1\.conv1\.weight is missing"):
        started(from_file(tiny_config, former(), {"model.kwargs.layers": [1, 1, 1, 2]}))


def test_missing_foreign_and_damaged_files_are_refused(tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"model\.weights: .*none\.pt: no such file"):
        started(from_file(tiny_config, tmp_path / "none.pt"))
    torch.save({"fc.weight": torch.ones(2)}, tmp_path / "foreign.pt")
    with pytest.raises(TrainingError, match=r"foreign\.pt: is not a PillSnap checkpoint"):
        started(from_file(tiny_config, tmp_path / "foreign.pt"))
    (tmp_path / "damaged.pt").write_bytes(b"PK half of it")
    with pytest.raises(TrainingError, match=r"damaged\.pt: is not a checkpoint"):
        started(from_file(tiny_config, tmp_path / "damaged.pt"))


@pytest.mark.parametrize("uri", ["runs:/abc", "models:/pillsnap@champion", "bundle.onnx"])
def test_what_the_commands_fetch_is_not_taken_for_a_file(tiny_config: Config, uri: str) -> None:
    with pytest.raises(TrainingError, match=r"stands for a checkpoint that the commands fetch"):
        started(tiny_config({"model.pretrained": True, "model.weights": uri}))


def test_other_statistics_and_other_data_are_said_in_the_log(
    tiny_config: Config, former: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    config = from_file(tiny_config, former())
    with caplog.at_level(logging.WARNING):
        create_started_net(config, KCODES, HASH)
        assert not caplog.text
        create_started_net(config.with_overrides({"preprocessing.std": [0.5, 0.5, 0.5]}), KCODES, HASH)
        assert "made with mean (0.485, 0.456, 0.406)" in caplog.text
        caplog.clear()
        create_started_net(config, KCODES, "b" * 64)
        assert "was trained on other data (manifest aaaaaaaaaaaa)" in caplog.text


def test_timms_weights_are_recorded_by_their_digest(tiny_config: Config, tmp_path: Path) -> None:
    _, random = started(tiny_config())
    assert random == StartWeights("random", "", "new")
    config = tiny_config()
    torch.manual_seed(77)
    weights = create_net(config.model, config.preprocessing, 6).backbone.state_dict()
    weights = {key: value + 0.25 if value.is_floating_point() else value for key, value in weights.items()}
    save_file(weights, tmp_path / "w.safetensors")
    _, loaded = started(from_file(tiny_config, tmp_path / "w.safetensors"))
    sha256 = sha256_file(tmp_path / "w.safetensors")
    assert (loaded.sha256, loaded.head) == (sha256, "new")
    assert loaded.first_weights == {"source": "file w.safetensors", "sha256": sha256, "license": ""}


def test_the_hubs_weights_are_recorded_by_name_and_digest(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    build, digests = timm.create_model, []

    def published(name: str, pretrained: bool, **arguments: Any) -> torch.nn.Module:
        net = build(name, pretrained=False, **arguments)
        if pretrained:
            for parameter in net.parameters():
                torch.nn.init.constant_(parameter, 0.5)
        return net

    monkeypatch.setattr(timm, "create_model", published)
    for seed in (1, 2):  # the new head is of another seed: it is not part of what was loaded
        _, weights = started(tiny_config({"model.pretrained": True}), seed=seed)
        assert weights.source.startswith("resnet18")
        digests.append(weights.sha256)
    assert digests[0] == digests[1]
    assert len(digests[0]) == 64


def test_a_training_starts_from_the_weights_and_says_so(
    tiny_config: Config, data: TrainingData, former: Callable[..., Path], tmp_path: Path
) -> None:
    kcodes = data.manifest.catalog.kcodes
    path = former(None, kcodes)
    config = from_file(tiny_config, path, {"training.epochs": 1, "training.warmup_epochs": 0})
    built = _Trainer(config, data, tmp_path / "c", _Quiet())
    expected = Checkpoint.load(path).state_dict
    assert all(torch.equal(built._net.state_dict()[name], value) for name, value in expected.items())
    result = fit(config, data, tmp_path / "fit", _Quiet())
    assert result.weights == StartWeights(str(path), sha256_file(path), "kept", HASH, (HASH,))


class _Quiet:
    def on_step(self, *_: Any) -> None: ...

    def on_epoch(self, *_: Any) -> None: ...


@pytest.mark.parametrize("source", ["timm", "former", "random"])
def test_a_new_classifier_starts_small_where_the_backbone_does_not_start_from_random_weights(
    tiny_config: Config, former: Callable[..., Path], tmp_path: Path, source: str
) -> None:
    config = tiny_config()
    if source == "timm":
        weights = create_net(config.model, config.preprocessing, 6).backbone.state_dict()
        save_file({key: value + 0.5 for key, value in weights.items()}, tmp_path / "w.safetensors")
        config = from_file(tiny_config, tmp_path / "w.safetensors")
    elif source == "former":
        config = from_file(tiny_config, former())
    state, _ = started(config, tuple(f"K-{number:06d}" for number in range(50, 56)))
    small = state["backbone.fc.weight"].std().item() == pytest.approx(CLASSIFIER_STD, rel=0.2)
    assert small == (source != "random")
    assert small == (not state["backbone.fc.bias"].any())


def test_a_classifier_of_as_many_classes_is_taken_over_from_timms_weights(tiny_config: Config, tmp_path: Path) -> None:
    weights = timm.create_model("tf_efficientnet_lite0").state_dict()
    save_file({name: value + 0.5 for name, value in weights.items()}, tmp_path / "w.safetensors")
    overrides = {"model.backbone": "tf_efficientnet_lite0", "model.kwargs": {}}
    config = from_file(tiny_config, tmp_path / "w.safetensors", overrides)
    state, start = started(config, tuple(f"K-{number:06d}" for number in range(1000)))
    assert torch.equal(state["backbone.classifier.weight"], weights["classifier.weight"] + 0.5)
    assert start.head == "kept"
