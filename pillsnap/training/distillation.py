"""A net that learns from another one: the teacher, and the loss between the answers of the two.

The teacher answers to the very batch that the net learns from, as it is after augmentation, mixing and erasing (Beyer
et al. 2022). It is frozen, and no part of the net: no gradient reaches it, and no checkpoint holds it. Knows nothing of
MLflow: the commands turn ``runs:/…``, ``models:/…`` and bundles into a file first.
Legend: N batch, H height, W width, C channel, K class.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pillsnap.core.bundle import RETIRED_LOGIT
from pillsnap.core.errors import TrainingError
from pillsnap.core.experiment import DistillationConfig, ExperimentConfig
from pillsnap.core.files import sha256_file
from pillsnap.core.manifest import Manifest
from pillsnap.core.preprocessing_spec import PreprocessingSpec
from pillsnap.training.backbone import listed
from pillsnap.training.checkpoint import LAST_FILE, Checkpoint
from pillsnap.training.device import Device
from pillsnap.training.sealed import load_sealed

_log = logging.getLogger(__name__)
_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class TeacherRecord:
    """Which teacher a net learned from, for the run's record."""

    source: str
    """The checkpoint's path."""
    sha256: str
    """Of the file."""
    backbone: str
    epoch: int
    """Of the teacher's training, from 1."""
    manifest_hash: str
    """Of the data that the teacher was trained on."""


def teacher_file(teacher: str) -> Path:
    """The checkpoint that ``distillation.teacher`` names on this machine: a file, or the best one of a run's folder.

    Raises:
        TrainingError: there is none, or it has to be fetched first.
    """
    path = Path(teacher)
    if teacher.startswith(("models:", "runs:")) or teacher.endswith(".onnx"):
        raise TrainingError(
            f"distillation.teacher: {teacher} stands for a checkpoint that the commands fetch (pillsnap train, run, "
            "tune); called as a function, the training takes the .pt file itself"
        )
    if path.is_dir():
        return _best_of_run(path)
    if not path.is_file():
        raise TrainingError(f"distillation.teacher: {teacher}: no such file (a relative path starts at {Path.cwd()})")
    return path


def _best_of_run(folder: Path) -> Path:
    """``last.pt`` of a training names the best epochs; it lies in the folder, or in ``checkpoints`` within."""
    for place in (folder / _CHECKPOINTS, folder):
        if (place / LAST_FILE).is_file():
            for epoch in load_sealed(place / LAST_FILE).get("best_epochs", []):
                best = place / f"best-{int(epoch):03d}.pt"
                if best.is_file():
                    return best
    raise TrainingError(
        f"distillation.teacher: {folder}: is not the folder of a training (no {LAST_FILE} that names a best "
        "checkpoint beside it); give the .pt file"
    )


def load_teacher(config: ExperimentConfig, manifest: Manifest) -> tuple[Checkpoint, TeacherRecord] | None:
    """The teacher of an experiment, fit to teach these drugs; None: it has none.

    Args:
        config: the experiment; ``distillation.teacher`` is a file or a folder.
        manifest: the data of the training to come; its drugs must be the teacher's, index by index.

    Raises:
        TrainingError: no such checkpoint, a damaged one, or one of other drugs.
    """
    if config.distillation is None:
        return None
    path = teacher_file(config.distillation.teacher)
    checkpoint = Checkpoint.load(path)
    kcodes = manifest.catalog.kcodes
    if checkpoint.kcodes != kcodes:
        raise TrainingError(
            f"distillation.teacher: {path} does not answer with the drugs of this data set, class by class: "
            f"{_difference(checkpoint.kcodes, kcodes)}. Give a teacher that was trained on this list of drugs"
        )
    backbone = checkpoint.config.model.backbone
    return checkpoint, TeacherRecord(str(path), sha256_file(path), backbone, checkpoint.epoch, checkpoint.manifest_hash)


def _difference(theirs: tuple[str, ...], ours: tuple[str, ...]) -> str:
    unknown = [kcode for kcode in ours if kcode not in theirs]
    foreign = [kcode for kcode in theirs if kcode not in ours]
    parts = [f"the teacher has {len(theirs)} classes, the data set {len(ours)}"]
    if unknown:
        parts.append(f"the teacher does not know {listed(unknown)}")
    if foreign:
        parts.append(f"the data set does not have the teacher's {listed(foreign)}")
    if not unknown and not foreign:
        index = next((k for k, pair in enumerate(zip(theirs, ours, strict=False)) if pair[0] != pair[1]), len(ours))
        parts.append(f"the order differs from class {index} on")
    return "; ".join(parts)


class Teacher:
    """A frozen net on the training's device; made without drawing from the global generators."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        record: TeacherRecord,
        config: DistillationConfig,
        preprocessing: PreprocessingSpec,
        retired: tuple[int, ...],
        device: Device,
    ) -> None:
        """Build the net of ``checkpoint``.

        Args:
            checkpoint: the teacher's weights and experiment.
            record: which file they are.
            config: its share in the loss, and its temperature.
            preprocessing: of the net that learns; its pictures are what the teacher gets.
            retired: classes that are no answers.
            device: where, and in which precision.

        Raises:
            TrainingError: the weights do not fit their own net.
        """
        with torch.random.fork_rng(devices=[]):  # else the net that learns would start from other weights
            net = checkpoint.build_net().requires_grad_(False)
        self._net = net.to(device.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._size_px = checkpoint.config.preprocessing.target_size
        self._device = device
        self._retired = list(retired)
        theirs = checkpoint.config.preprocessing
        ours_mean, ours_std, mean, std = (
            torch.tensor(values, device=device.torch_device).view(1, 3, 1, 1)
            for values in (preprocessing.mean, preprocessing.std, theirs.mean, theirs.std)
        )
        self._scale, self._shift = ours_std / std, (ours_mean - mean) / std
        self._config = config
        self.record = record
        self.learned_from = checkpoint.learned_from
        """Hashes of the manifests whose pictures it knows."""

    @classmethod
    def of(cls, config: ExperimentConfig, manifest: Manifest, device: Device) -> Teacher | None:
        """The teacher of an experiment, with a word in the log; None where it has none.

        Raises:
            TrainingError: as `load_teacher`, or the weights do not fit their own net.
        """
        found = load_teacher(config, manifest)
        if found is None or config.distillation is None:
            return None
        checkpoint, record = found
        size_px = checkpoint.config.preprocessing.target_size
        _log.info("taught by %s (sha256 %s): %s at %d px", record.source, record.sha256[:12], record.backbone, size_px)
        _note_other_pictures(checkpoint.config.preprocessing, config.preprocessing)
        if record.manifest_hash != manifest.hash:
            _log.warning(
                "the teacher was trained on other data (manifest %s). Its training pictures must not be in validation "
                "or test of this data, or the figures flatter: pillsnap data prepare --previous keeps every split",
                record.manifest_hash[:12],
            )
        return cls(
            checkpoint, record, config.distillation, config.preprocessing, manifest.catalog.retired_indices, device
        )

    def losses(self, label_loss: Tensor, logits_NK: Tensor, image_NCHW: Tensor) -> dict[str, Tensor]:
        """``loss``, the whole that the net learns by, with its parts ``label_loss`` and ``distillation_loss``.

        Args:
            label_loss: of the labels, a mean over the N images.
            logits_NK: of the net that learns, float32.
            image_NCHW: what it answered to (see `answers`).
        """
        distilled = distillation_loss(logits_NK, self.answers(image_NCHW), self._config.temperature)
        whole = (1 - self._config.weight) * label_loss + self._config.weight * distilled
        return {"loss": whole, "label_loss": label_loss, "distillation_loss": distilled}

    def answers(self, image_NCHW: Tensor) -> Tensor:
        """``logits_NK``, float32, without a gradient.

        Args:
            image_NCHW: the pictures as the net gets them: normalised with its own mean and std, mixed, erased. They are
                brought to the teacher's size and normalisation.
        """
        with torch.no_grad():
            image_NCHW = image_NCHW * self._scale + self._shift
            if image_NCHW.shape[-1] != self._size_px:
                smaller = self._size_px < image_NCHW.shape[-1]
                image_NCHW = F.interpolate(
                    image_NCHW, (self._size_px, self._size_px), mode="bilinear", antialias=smaller
                )
            with self._device.autocast():
                logits_NK: Tensor = self._net.backbone(image_NCHW.contiguous(memory_format=torch.channels_last))
            logits_NK = logits_NK.float()
            logits_NK[:, self._retired] = RETIRED_LOGIT  # as in the bundle
            return logits_NK


def _note_other_pictures(theirs: PreprocessingSpec, ours: PreprocessingSpec) -> None:
    """What was done to the pixels before they were prepared cannot be made undone for the teacher."""
    adapted = {"target_size", "mean", "std"}
    ours_by_key, theirs_by_key = ours.model_dump(mode="json"), theirs.model_dump(mode="json")
    other = [key for key in ours_by_key if key not in adapted and ours_by_key[key] != theirs_by_key[key]]
    if other:
        _log.warning(
            "the teacher was trained on pictures that were prepared in another way (%s): its answers to the pictures "
            "of this training may be worse than those that it was judged by",
            ", ".join(f"preprocessing.{key}" for key in other),
        )


def distillation_loss(logits_NK: Tensor, teacher_NK: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher ‖ net), both at the temperature T, as the mean over the N images (Hinton et al. 2015).

    The gradient of the divergence shrinks with 1/T²; times T² it keeps its size beside that of the labels.

    Args:
        logits_NK: of the net that learns.
        teacher_NK: logits of the teacher.
        temperature: T > 0.
    """
    log_p_NK = F.log_softmax(logits_NK / temperature, dim=1)
    log_teacher_NK = F.log_softmax(teacher_NK / temperature, dim=1)
    return F.kl_div(log_p_NK, log_teacher_NK, reduction="batchmean", log_target=True) * temperature**2
