"""Checkpoints: what training hands to exporting, as one file that loads without running foreign code.

``best-*.pt`` and ``epoch-*.pt`` hold the judged weights. ``last.pt``, and ``previous.pt`` beside it, hold the whole
state of the training too (`state.py`), so that it can go on. Every file is sealed (`sealed.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from pillsnap import __version__
from pillsnap.core.bundle import FirstWeights
from pillsnap.core.errors import ConfigError, TrainingError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.training.backbone import PillNet, create_net
from pillsnap.training.sealed import load_sealed, save_sealed

CHECKPOINT_FORMAT = 1
LAST_FILE = "last.pt"
PREVIOUS_FILE = "previous.pt"


@dataclass(frozen=True)
class Checkpoint:
    """A trained state and everything that is needed to build its network again."""

    config: ExperimentConfig
    kcodes: tuple[str, ...]
    """K-CODE per class index."""
    manifest_hash: str
    epoch: int
    """Epochs done, from 1."""
    metrics: dict[str, float]
    state_dict: dict[str, torch.Tensor]
    teacher_sha256: str = ""
    """Of the checkpoint that taught this net; empty: the labels alone did. Where it lay stands in ``config``."""
    also_learned_from: tuple[str, ...] = ()
    """Hashes of the other manifests that the first weights or the teacher learned from, and theirs before them."""
    first_weights: FirstWeights | None = None
    """Published weights that the first training began with; None: random ones, or it does not say."""

    @property
    def learned_from(self) -> tuple[str, ...]:
        """Hashes of all manifests whose training pictures are in these weights, as far as they are known."""
        return (self.manifest_hash, *self.also_learned_from)

    def save(self, path: Path) -> None:
        """Write the whole file or nothing."""
        save_sealed(path, self.document())

    def document(self) -> dict[str, Any]:
        """What stands in the file."""
        return {
            "format": CHECKPOINT_FORMAT,
            "pillsnap_version": __version__,
            "config": self.config.model_dump(mode="json"),
            "kcodes": list(self.kcodes),
            "manifest_hash": self.manifest_hash,
            "epoch": self.epoch,
            "metrics": dict(self.metrics),
            "state_dict": self.state_dict,
            "teacher_sha256": self.teacher_sha256,
            "also_learned_from": list(self.also_learned_from),
            "first_weights": self.first_weights.model_dump() if self.first_weights is not None else None,
        }

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint. Raises TrainingError: missing, damaged, or none of ours."""
        raw = load_sealed(path)
        if raw.get("format") != CHECKPOINT_FORMAT:
            raise TrainingError(f"{path}: is not a PillSnap checkpoint of format {CHECKPOINT_FORMAT}")
        try:
            return cls(
                config=ExperimentConfig.build(raw["config"], None, source=str(path)),
                kcodes=tuple(raw["kcodes"]),
                manifest_hash=raw["manifest_hash"],
                epoch=raw["epoch"],
                metrics=raw["metrics"],
                state_dict=raw["state_dict"],
                teacher_sha256=raw.get("teacher_sha256", ""),  # files of older versions do not say
                also_learned_from=tuple(raw.get("also_learned_from", ())),
                first_weights=FirstWeights.model_validate(first) if (first := raw.get("first_weights")) else None,
            )
        except (KeyError, TypeError, ValidationError, ConfigError) as error:
            raise TrainingError(f"{path}: the checkpoint is incomplete ({error})") from error

    def build_net(self) -> PillNet:
        """The network with these weights, in evaluation mode. Raises TrainingError where they do not fit."""
        random_start = self.config.model.model_copy(update={"pretrained": False, "weights": None})
        net = create_net(random_start, self.config.preprocessing, len(self.kcodes))
        try:
            net.load_state_dict(self.state_dict)
        except (RuntimeError, TypeError) as error:
            raise TrainingError(f"the checkpoint's weights do not fit {self.config.model.backbone}: {error}") from error
        return net.eval()


class CheckpointKeeper:
    """Keeps ``last.pt`` with the one before it, the best ones and every n-th epoch in a folder."""

    def __init__(self, folder: Path, every_epochs: int, keep_best: int) -> None:
        self._folder = folder
        self._every = every_epochs
        self._keep_best = keep_best
        self._best: list[tuple[tuple[float, float], int]] = []
        """Score and epoch, the best first."""

    @property
    def best(self) -> Path:
        """The best checkpoint so far."""
        return self.path_of_best(self.best_epochs[0])

    @property
    def best_epochs(self) -> list[int]:
        """Epochs of the best checkpoints, the best first."""
        return [epoch for _, epoch in self._best]

    @property
    def last_good(self) -> str:
        """What a training that fails now can be taken up from, in words."""
        last = self._folder / LAST_FILE
        return f"the last good checkpoint is {last}" if last.is_file() else "there is no checkpoint yet"

    def restore(self, epochs: list[int], history: list[dict[str, float]]) -> None:
        """Go on with the best ones of a former process; those whose file is gone are no longer among them."""
        by_epoch = {int(entry["epoch"]): entry for entry in history}
        found = [epoch for epoch in epochs if self.path_of_best(epoch).is_file()]
        self._best = [(_score(by_epoch[epoch]), epoch) for epoch in found]

    def add(self, checkpoint: Checkpoint, state: dict[str, Any] | None = None) -> bool:
        """Save what is worth keeping; True where this is the best so far (top-1, then lower loss).

        ``last.pt`` is written after the others and before anything is deleted: whenever the process ends, the files
        that its list of the best names are there.

        Args:
            checkpoint: the judged weights after an epoch.
            state: what ``last.pt`` holds beside them.
        """
        entry = (_score(checkpoint.metrics), checkpoint.epoch)
        ranked = sorted([*self._best, entry], key=lambda item: item[0], reverse=True)  # of equals the earlier
        best = ranked[: self._keep_best]
        if entry in best:
            checkpoint.save(self.path_of_best(checkpoint.epoch))
        if checkpoint.epoch % self._every == 0:
            checkpoint.save(self._folder / f"epoch-{checkpoint.epoch:03d}.pt")
        document = {**checkpoint.document(), "best_epochs": [epoch for _, epoch in best], **(state or {})}
        save_sealed(self._folder / LAST_FILE, document, keep_former_as=self._folder / PREVIOUS_FILE)
        self._best = best
        self._tidy(checkpoint.epoch)
        return best[0] == entry

    def path_of_best(self, epoch: int) -> Path:
        """Where the checkpoint of this epoch lies, if it is one of the best."""
        return self._folder / f"best-{epoch:03d}.pt"

    def _tidy(self, epoch: int) -> None:
        """Delete what is no longer among the best, and what a process left that was killed or took another way."""
        for path in self._folder.iterdir():
            found = re.fullmatch(r"(best|epoch)-(\d+)\.pt", path.name)
            stale = found is not None and (
                int(found[2]) > epoch or (found[1] == "best" and int(found[2]) not in self.best_epochs)
            )
            if stale or re.fullmatch(r"\.\S+\.pt\.\S+\.part", path.name):
                path.unlink(missing_ok=True)


def _score(metrics: dict[str, float]) -> tuple[float, float]:
    return metrics["val_top1"], -metrics["val_loss"]
