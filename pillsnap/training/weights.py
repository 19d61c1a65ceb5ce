"""Which weights a training starts from: random ones, timm's, those of a Python package, or of a former training.

A checkpoint (``.pt``) fits or is refused, tensor by tensor. Its head is taken over row by row, by K-CODE: a drug that
both trainings know keeps what was learned of it, a new one starts from random weights.
Knows nothing of MLflow: the commands turn ``runs:/…`` and ``models:/…`` into a file first.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pillsnap.core.bundle import FirstWeights
from pillsnap.core.errors import TrainingError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.core.files import sha256_file
from pillsnap.training.backbone import (
    PillNet,
    create_net,
    head_prefixes,
    keeps_classifier,
    listed,
    note_other_statistics,
    start_classifier_small,
)
from pillsnap.training.checkpoint import Checkpoint
from pillsnap.training.packaged_weights import PREFIX, PackagedWeights, find_packaged_weights

_log = logging.getLogger(__name__)
CHECKPOINT_SUFFIX = ".pt"


@dataclass(frozen=True)
class StartWeights:
    """What a net started from, for the run's record."""

    source: str
    """A path, or timm's name of the hub's weights; ``random``."""
    sha256: str
    """Of the file; of the hub's weights: of the loaded tensors. Empty for random weights."""
    head: str
    """``new``, ``kept``, or ``n of K drugs kept``."""
    manifest_hash: str = ""
    """Of the data that a checkpoint was trained on."""
    learned_from: tuple[str, ...] = ()
    """The same, with the data that it was taught or started from (`Checkpoint.learned_from`)."""
    first_weights: dict[str, str] | None = None
    """Fields of `FirstWeights`: where the published weights are from that this or a former training began with."""


def create_started_net(
    config: ExperimentConfig, kcodes: Sequence[str], manifest_hash: str
) -> tuple[PillNet, StartWeights]:
    """Build the network of an experiment with the weights that it starts from.

    Args:
        config: its sections ``model`` and ``preprocessing`` count.
        kcodes: K-CODE per class index of the training to come.
        manifest_hash: of its data. Weights that were trained on other data may know pictures that now test them:
            that is said in the log.

    Raises:
        ConfigError: the backbone or its arguments do not exist.
        TrainingError: the weights cannot be had or do not fit. Never silently random.
    """
    model = config.model
    random_start = model.model_copy(update={"pretrained": False, "weights": None})
    if model.weights is not None and model.weights.startswith(PREFIX):
        packaged = find_packaged_weights(model.weights, model.backbone)
        net = create_net(random_start, config.preprocessing, len(kcodes))
        started = _of_package(net, packaged, config)
    elif model.weights is not None and model.weights.endswith(CHECKPOINT_SUFFIX):
        net = create_net(random_start, config.preprocessing, len(kcodes))
        started = _take_over(net, Path(model.weights), config, kcodes)
        if started.manifest_hash != manifest_hash:
            _log.warning(
                "%s was trained on other data (manifest %s). Its training pictures must not be in validation or test "
                "of this data, or the figures flatter: pillsnap data prepare --previous keeps every split",
                started.source, started.manifest_hash[:12],
            )  # fmt: skip
    else:
        net = create_net(model, config.preprocessing, len(kcodes))
        started = _of_timm(net, config)
    if started.sha256:
        _log.info("starting from %s (sha256 %s), classifier: %s", started.source, started.sha256[:12], started.head)
    return net, started


def _of_timm(net: PillNet, config: ExperimentConfig) -> StartWeights:
    model = config.model
    if not model.pretrained:
        return StartWeights("random", "", "new")
    published = getattr(net.backbone, "pretrained_cfg", {}) or {}
    head = "kept" if keeps_classifier(net.backbone) else "new"
    if head == "new":
        start_classifier_small(net.backbone)
    if model.weights is not None:
        path = Path(model.weights)
        return _published(model.weights, sha256_file(path), head, f"file {path.name}", "")
    name = f"{published.get('architecture', model.backbone)}.{published.get('tag', '')}".rstrip(".")
    origin = f"timm {name}, {published.get('hf_hub_id') or 'its own address'}"
    return _published(name, _digest(net.backbone), head, origin, str(published.get("license") or ""))


def _published(source: str, sha256: str, head: str, origin: str, license_name: str) -> StartWeights:
    """Weights that no training of ours has made."""
    first = FirstWeights(source=origin, sha256=sha256, license=license_name)
    return StartWeights(source, sha256, head, first_weights=first.model_dump())


def _of_package(net: PillNet, packaged: PackagedWeights, config: ExperimentConfig) -> StartWeights:
    stages: nn.Sequential = net.backbone.get_submodule("blocks")  # type: ignore[assignment]
    theirs = packaged.load([len(stage) for stage in stages])  # type: ignore[arg-type]
    head = head_prefixes(net.backbone)
    body = {name: value for name, value in theirs.items() if not name.startswith(head)}
    ours = net.backbone.state_dict()
    _require_fit(body, {name: value for name, value in ours.items() if not name.startswith(head)}, packaged.key, config)
    net.backbone.load_state_dict({**ours, **body})
    start_classifier_small(net.backbone)
    note_other_statistics(packaged.mean, packaged.std, config.preprocessing)
    origin = f"Python package {packaged.distribution} {packaged.version}, trained on ImageNet-1k"
    return _published(packaged.key, packaged.sha256, "new", origin, packaged.license)


def _digest(backbone: nn.Module) -> str:
    """sha256 over the names and bytes of all tensors but those of the (new) head."""
    head = head_prefixes(backbone)
    digest = hashlib.sha256()
    for name, value in sorted(backbone.state_dict().items()):
        if not name.startswith(head):
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _take_over(net: PillNet, path: Path, config: ExperimentConfig, kcodes: Sequence[str]) -> StartWeights:
    if not path.is_file():
        raise TrainingError(f"model.weights: {path}: no such file (a relative path starts at {Path.cwd()})")
    checkpoint = Checkpoint.load(path)
    head = tuple(f"backbone.{prefix}" for prefix in head_prefixes(net.backbone))
    start_classifier_small(net.backbone)
    state = net.state_dict()
    theirs = checkpoint.state_dict
    body = {name: value for name, value in theirs.items() if not name.startswith(head)}
    _require_fit(body, {name: value for name, value in state.items() if not name.startswith(head)}, path, config)
    kept = [index for index, kcode in enumerate(kcodes) if kcode in checkpoint.kcodes]
    rows = [checkpoint.kcodes.index(kcodes[index]) for index in kept]
    for name in (name for name in state if name.startswith(head)):
        if name in theirs and theirs[name].shape[1:] == state[name].shape[1:]:
            state[name][kept] = theirs[name][rows]
        else:
            raise TrainingError(_misfit(path, config, [f"{name} of the classifier"]))
    net.load_state_dict({**state, **body})
    made_with = checkpoint.config.preprocessing
    note_other_statistics(made_with.mean, made_with.std, config.preprocessing)
    same = tuple(kcodes) == checkpoint.kcodes
    shown = "kept" if same else f"{len(kept)} of {len(kcodes)} drugs kept" if kept and head else "new"
    first = checkpoint.first_weights
    return StartWeights(
        str(path),
        sha256_file(path),
        shown,
        checkpoint.manifest_hash,
        checkpoint.learned_from,
        first.model_dump() if first is not None else None,
    )


def _require_fit(
    theirs: dict[str, Tensor], ours: dict[str, Tensor], path: Path | str, config: ExperimentConfig
) -> None:
    wrong = [f"{name} is missing" for name in ours if name not in theirs]
    wrong += [f"{name} is not of this net" for name in theirs if name not in ours]
    wrong += [
        f"{name} is {list(theirs[name].shape)}, not {list(ours[name].shape)}"
        for name in ours
        if name in theirs and theirs[name].shape != ours[name].shape
    ]
    if wrong:
        raise TrainingError(_misfit(path, config, wrong))


def _misfit(path: Path | str, config: ExperimentConfig, wrong: Sequence[str]) -> str:
    return (
        f"model.weights: {path} does not fit {config.model.backbone}: {len(wrong)} tensors ({listed(wrong)}). "
        "Set model.backbone and model.kwargs to those of the training that made it"
    )
