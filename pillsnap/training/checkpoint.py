"""Checkpoints: what training hands to exporting, as one file that loads without running foreign code.

Written beside and renamed; read with ``weights_only=True``.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from pillsnap import __version__
from pillsnap.core.errors import ConfigError, TrainingError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.core.files import write_bytes
from pillsnap.training.backbone import PillNet, create_net

CHECKPOINT_FORMAT = 1


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

    def save(self, path: Path) -> None:
        """Write the whole file or nothing."""
        buffer = io.BytesIO()
        torch.save(
            {
                "format": CHECKPOINT_FORMAT,
                "pillsnap_version": __version__,
                "config": self.config.model_dump(mode="json"),
                "kcodes": list(self.kcodes),
                "manifest_hash": self.manifest_hash,
                "epoch": self.epoch,
                "metrics": dict(self.metrics),
                "state_dict": self.state_dict,
            },
            buffer,
        )
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint. Raises TrainingError: missing, damaged, or none of ours."""
        if not path.is_file():
            raise TrainingError(f"{path}: no such checkpoint; train one with: pillsnap train")
        try:
            with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
                damaged = archive.testzip()
            raw: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # zipfile and torch raise many kinds; all mean: not a checkpoint
            raise TrainingError(f"{path}: is not a checkpoint, or a damaged one ({type(error).__name__})") from error
        if damaged is not None:
            raise TrainingError(f"{path}: is damaged ({damaged} has a wrong checksum); copy it again")
        if not isinstance(raw, dict) or raw.get("format") != CHECKPOINT_FORMAT:
            raise TrainingError(f"{path}: is not a PillSnap checkpoint of format {CHECKPOINT_FORMAT}")
        try:
            return cls(
                config=ExperimentConfig.build(raw["config"], None, source=str(path)),
                kcodes=tuple(raw["kcodes"]),
                manifest_hash=raw["manifest_hash"],
                epoch=raw["epoch"],
                metrics=raw["metrics"],
                state_dict=raw["state_dict"],
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
    """Keeps ``last.pt``, the best ones and every n-th epoch in a folder."""

    def __init__(self, folder: Path, every_epochs: int, keep_best: int) -> None:
        self._folder = folder
        self._every = every_epochs
        self._keep_best = keep_best
        self._best: list[tuple[tuple[float, float], Path]] = []

    @property
    def best(self) -> Path:
        """The best checkpoint so far."""
        return self._best[0][1]

    def add(self, checkpoint: Checkpoint) -> bool:
        """Save what is worth keeping; True where this is the best so far (top-1, then lower loss)."""
        score = (checkpoint.metrics["val_top1"], -checkpoint.metrics["val_loss"])
        checkpoint.save(self._folder / "last.pt")
        if checkpoint.epoch % self._every == 0:
            checkpoint.save(self._folder / f"epoch-{checkpoint.epoch:03d}.pt")
        entry = (score, self._folder / f"best-{checkpoint.epoch:03d}.pt")
        ranked = sorted([*self._best, entry], key=lambda item: item[0], reverse=True)  # of equals the earlier
        kept, dropped = ranked[: self._keep_best], ranked[self._keep_best :]
        if entry in kept:
            checkpoint.save(entry[1])
        for _, path in dropped:
            path.unlink(missing_ok=True)
        self._best = kept
        return self.best == entry[1]
