from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.layers import DropPath

from pillsnap.core.errors import ConfigError, TrainingError
from pillsnap.core.experiment import ExperimentConfig, ModelConfig
from pillsnap.core.preprocessing import UnifiedPreprocessor
from pillsnap.core.preprocessing_spec import PreprocessingSpec
from pillsnap.training.backbone import CLASSIFIER_STD, PillNet, check_net, create_net, start_classifier_small

Config = Callable[..., ExperimentConfig]
IMAGE = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def build(config: ExperimentConfig, num_classes: int = 6) -> PillNet:
    return create_net(config.model, config.preprocessing, num_classes)


def state(config: ExperimentConfig, num_classes: int = 6) -> dict[str, torch.Tensor]:
    """Weights that a random start does not give."""
    torch.manual_seed(77)
    weights = build(config, num_classes).backbone.state_dict()
    return {key: value + 0.25 if value.is_floating_point() else value for key, value in weights.items()}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_normalisation_is_that_of_the_preprocessor(tiny_config: Config) -> None:
    spec = tiny_config({"preprocessing.mean": [0.4, 0.5, 0.6], "preprocessing.std": [0.2, 0.25, 0.3]}).preprocessing
    expected = np.stack([UnifiedPreprocessor(spec).process(image.numpy()) for image in IMAGE])
    found = PillNet(torch.nn.Identity(), spec).normalize(IMAGE)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_drop_rates_reach_the_net(tiny_config: Config) -> None:
    net = build(tiny_config({"model.drop_rate": 0.4, "model.drop_path_rate": 0.3}))
    assert net.backbone.drop_rate == 0.4
    paths = [module.drop_prob for module in net.modules() if isinstance(module, DropPath)]
    assert max(paths) == pytest.approx(0.3)


@pytest.mark.parametrize("key", ["model.drop_rate", "model.drop_path_rate"])
def test_each_drop_rate_alone_makes_training_random(tiny_config: Config, key: str) -> None:
    def varies(net: PillNet) -> bool:
        return not torch.equal(net(IMAGE), net(IMAGE))

    none = {"model.drop_rate": 0, "model.drop_path_rate": 0}
    assert not varies(build(tiny_config(none)).train())
    net = build(tiny_config({**none, key: 0.5, "model.kwargs.zero_init_last": False}))
    assert varies(net.train())
    assert not varies(net.eval())


def test_kwargs_reach_the_net(tiny_config: Config) -> None:
    net = build(tiny_config({"model.kwargs.channels": [8, 16, 32, 48]}))
    assert net.backbone.num_features == 48
    assert net(IMAGE).shape == (4, 6)


@pytest.mark.parametrize("name", ["resnet1888", "no_such_net_at_all", "resnet18.no_such_weights", ""])
def test_an_unknown_backbone_is_misconfigured(tiny_config: Config, name: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.backbone"):
        build(tiny_config({"model.backbone": name}))


def test_an_unknown_backbone_is_answered_with_similar_ones(tiny_config: Config) -> None:
    with pytest.raises(ConfigError, match=r"similar: .*resnet18"):
        build(tiny_config({"model.backbone": "resnet18_"}))
    with pytest.raises(ConfigError, match=r"similar: mobilenetv4_conv_small"):
        build(tiny_config({"model.backbone": "mobilenetv4_conv_smal"}))


def test_arguments_that_the_net_does_not_take_are_misconfigured(tiny_config: Config) -> None:
    with pytest.raises(ConfigError, match=r"model\.kwargs: resnet18 does not take this argument"):
        build(tiny_config({"model.kwargs.no_such_argument": 1}))


def test_a_family_without_drop_path_can_be_used(tiny_config: Config) -> None:
    config = tiny_config({"model.backbone": "repghostnet_050", "model.kwargs": {}, "model.drop_path_rate": 0.0})
    assert build(config)(IMAGE).shape == (4, 6)
    with pytest.raises(ConfigError, match=r"model\.drop_path_rate: repghostnet_050 has none; set it to 0"):
        build(config.with_overrides({"model.drop_path_rate": 0.1}))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"model.kwargs": {}}, r"does not take images of 32 px .*img_size: 32"),
        (
            {"model.kwargs": {"img_size": 32, "global_pool": ""}},
            r"model\.kwargs: .*answers \(1, 5, 6\) to one image, not \(1, 6\)",
        ),
    ],
)
def test_a_net_that_does_not_take_the_images_is_misconfigured(
    tiny_config: Config, overrides: dict[str, Any], said: str
) -> None:
    config = tiny_config({"model.backbone": "vit_tiny_patch16_224", **overrides})
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match=said):
        check_net(config.model, config.preprocessing, 6)
    fitting = tiny_config()
    check_net(fitting.model, fitting.preprocessing, 6)
    assert torch.equal(torch.get_rng_state(), before), "the training's numbers are not drawn from"


@pytest.mark.parametrize("classes_of_the_file", [6, 1000])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_local_weights_are_really_loaded(
    tiny_config: Config, tmp_path: Path, suffix: str, classes_of_the_file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = state(tiny_config(), classes_of_the_file)
    path = tmp_path / f"weights{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    net = build(tiny_config({"model.pretrained": True, "model.weights": str(path)}))
    loaded = net.backbone.state_dict()
    for key, value in weights.items():
        if not key.startswith("fc."):  # the head is new: the file is of other classes
            assert torch.equal(loaded[key], value), key
    assert loaded["fc.weight"].shape == (6, 64)


def test_the_same_seed_gives_the_same_head_on_loaded_weights(tiny_config: Config, tmp_path: Path) -> None:
    save_file(state(tiny_config()), tmp_path / "w.safetensors")
    config = tiny_config({"model.pretrained": True, "model.weights": str(tmp_path / "w.safetensors")})
    nets, after = [], []
    for _ in range(2):
        torch.manual_seed(5)
        nets.append(build(config).backbone.fc.weight)
        after.append(torch.rand(1))
    assert torch.equal(nets[0], nets[1])
    assert torch.equal(after[0], after[1])


def _wrapped(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"backbone.{key}": value for key, value in weights.items()}


def _of_another_net(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"blocks.0.attn.qkv.weight": torch.ones(3, 3)}


def _half(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights.items() if not key.startswith("layer3")}


@pytest.mark.parametrize("spoil", [_wrapped, _of_another_net, _half])
def test_weights_that_do_not_fit_are_never_silently_random(
    tiny_config: Config, tmp_path: Path, spoil: Callable[[Any], dict[str, torch.Tensor]]
) -> None:
    save_file(spoil(state(tiny_config())), tmp_path / "w.safetensors")
    with pytest.raises(TrainingError, match=r"w\.safetensors do not fit resnet18: .* would stay random"):
        build(tiny_config({"model.pretrained": True, "model.weights": str(tmp_path / "w.safetensors")}))


def test_weights_of_another_size_are_refused(tiny_config: Config, tmp_path: Path) -> None:
    save_file(state(tiny_config({"model.kwargs.channels": [8, 16, 32, 48]})), tmp_path / "w.safetensors")
    with pytest.raises(TrainingError, match="size mismatch"):
        build(tiny_config({"model.pretrained": True, "model.weights": str(tmp_path / "w.safetensors")}))


def test_missing_and_damaged_files_are_refused(tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"none\.pth: no such file"):
        build(tiny_config({"model.pretrained": True, "model.weights": str(tmp_path / "none.pth")}))
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(b"no weights at all")
        with pytest.raises(TrainingError, match="cannot be loaded"):
            build(tiny_config({"model.pretrained": True, "model.weights": str(tmp_path / name)}))


def test_without_the_hub_training_does_not_start(tiny_config: Config, offline: None) -> None:
    with pytest.raises(
        TrainingError, match=r"pretrained weights of resnet18 .*model\.weights.*model\.pretrained=false"
    ):
        create_net(ModelConfig(backbone="resnet18"), PreprocessingSpec(target_size=32), 6)


def test_weights_that_nobody_has_published_are_refused(offline: None) -> None:
    with pytest.raises(TrainingError, match="No pretrained weights exist"):
        create_net(ModelConfig(backbone="cs3darknet_s"), PreprocessingSpec(target_size=32), 6)


def test_other_statistics_of_the_weights_are_said_in_the_log(
    tiny_config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(state(tiny_config()), tmp_path / "w.safetensors")
    ours = {"model.pretrained": True, "model.weights": str(tmp_path / "w.safetensors")}
    with caplog.at_level(logging.WARNING):
        build(tiny_config(ours))
        assert "pretrained weights were made with" not in caplog.text
        build(tiny_config({**ours, "preprocessing.mean": [0.5, 0.5, 0.5]}))
    assert "made with mean (0.485, 0.456, 0.406)" in caplog.text
    assert "preprocessing.mean" in caplog.text


@pytest.mark.parametrize("key", ["num_classes", "in_chans", "drop_rate"])
def test_arguments_with_a_key_of_their_own_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"model.kwargs: {key} cannot stand there"):
        create_net(ModelConfig(backbone="resnet18", pretrained=False, kwargs={key: 1}), PreprocessingSpec(), 4)


@pytest.mark.parametrize("classes", [2, 100])
def test_a_new_classifier_starts_small(tiny_config: Callable[..., ExperimentConfig], classes: int) -> None:
    """The first answers are nearly even whatever the number of classes: no first gradient tears the features apart."""
    config = tiny_config()
    net = create_net(config.model, config.preprocessing, classes).eval()
    start_classifier_small(net.backbone)
    weight, bias = net.get_parameter("backbone.fc.weight"), net.get_parameter("backbone.fc.bias")
    assert weight.std().item() == pytest.approx(CLASSIFIER_STD, rel=0.2)
    assert not bias.any()
    image = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8)
    assert torch.softmax(net(image), dim=1).max().item() < 1.5 / classes
