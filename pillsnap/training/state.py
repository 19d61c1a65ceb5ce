"""The whole state of a training: what it needs to go on as if nothing had happened.

Knows which state belongs to which training, and which file is the newest sound one; the trainer knows what its own
parts are. The generators of random numbers are those that training draws from: torch, CUDA, NumPy, Python.
"""

from __future__ import annotations

import hashlib
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pillsnap.core.errors import TrainingError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.core.files import sha256_json
from pillsnap.training.batches import TrainingData
from pillsnap.training.checkpoint import LAST_FILE, PREVIOUS_FILE
from pillsnap.training.sealed import load_sealed

_log = logging.getLogger(__name__)

_IMMATERIAL = ("name", "logging", "tuning", "checkpoints", "data.workers", "data.pin_memory", "data.persistent_workers")
"""Keys of the experiment that change no weight: a training may go on with other values of these."""
_BEGINNINGS = tuple(f"{key}." for key in _IMMATERIAL)
_PARTS = (
    "identity",
    "epoch",
    "step",
    "history",
    "best_epochs",
    "random",
    "weights",
    "net",
    "optimizer",
    "schedule",
    "scaler",
)


def material_config(config: ExperimentConfig) -> dict[str, Any]:
    """The values of an experiment that the weights depend on, by dotted key."""
    return {key: value for key, value in config.flat().items() if not f"{key}.".startswith(_BEGINNINGS)}


def training_identity(config: ExperimentConfig, data: TrainingData, teacher_sha256: str = "") -> str:
    """sha256 of all that the weights depend on: the experiment's values, the manifest, and the rows that are used.

    Args:
        config: the experiment.
        data: what trains and validates.
        teacher_sha256: of the teacher's file, where there is one: it counts, and not where the file lies.
    """
    rows = hashlib.sha256(data.train_indices.tobytes() + b"|" + data.val_indices.tobytes()).hexdigest()
    values = material_config(config)
    if teacher_sha256:
        values["distillation.teacher"] = teacher_sha256
    return sha256_json({"config": values, "manifest": data.manifest.hash, "rows": rows})


def find_state(folder: Path, identity: str) -> dict[str, Any] | None:
    """The newest sound state of this training in a folder, with a warning for each file that cannot be used."""
    for name in (LAST_FILE, PREVIOUS_FILE):
        path = folder / name
        if not path.is_file():
            continue
        try:
            state = load_sealed(path)
        except TrainingError as error:
            _log.warning("%s: the training goes on from the checkpoint before it, or starts again", error)
            continue
        missing = [part for part in _PARTS if part not in state]
        if missing:
            _log.warning("%s: holds no state to go on from (%s is missing)", path, missing[0])
        elif state["identity"] != identity:
            _log.warning("%s: belongs to another experiment, teacher or data set: this training starts anew", path)
        else:
            return state
    return None


def random_state() -> dict[str, Any]:
    """The states of this process's generators, as `torch.load` takes them."""
    kind, keys, position, has_gauss, cached_gaussian = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, cached_gaussian],
        "python": random.getstate(),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set this process's generators."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(state["python"])
