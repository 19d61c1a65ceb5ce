"""What a training tells the reader and the MLflow run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pillsnap.cli.progress import TrainingProgress
from pillsnap.tracking.names import of_curves

if TYPE_CHECKING:
    from pillsnap.tracking.run import TrackedRun

_COLUMNS = {
    "train_loss": ("training loss", 1.0, "{:.3f}"),
    "train_label_loss": ("of the labels", 1.0, "{:.3f}"),
    "train_distillation_loss": ("of the teacher", 1.0, "{:.3f}"),
    "val_loss": ("validation loss", 1.0, "{:.3f}"),
    "val_top1": ("top-1", 100.0, "{:.1f} %"),
    "val_top5": ("top-5", 100.0, "{:.1f} %"),
    "val_real_top1": ("top-1, real", 100.0, "{:.1f} %"),
    "val_studio_top1": ("top-1, studio", 100.0, "{:.1f} %"),
    "val_plain_top1": ("top-1 without EMA", 100.0, "{:.1f} %"),
    "val_plain_loss": ("validation loss without EMA", 1.0, "{:.3f}"),
    "lr": ("learning rate", 1.0, "{:.2g}"),
    "images_per_s": ("images/s", 1.0, "{:.0f}"),
}


class RunLogger:
    """The observer of a training: figures to the run, progress to the reader."""

    def __init__(self, run: TrackedRun, progress: TrainingProgress) -> None:
        self._run = run
        self._progress = progress
        self.done_before = 0
        """Epochs of a former process."""

    def on_resume(self, epoch: int, step: int) -> None:
        """The training goes on. Figures of updates that are walked again stand as the run has them."""
        self.done_before = epoch
        self._run.set_tags({"pillsnap.resumed_after": f"epoch {epoch}, update {step}"})
        self._progress.goes_on(epoch, step)

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        """Figures of the last updates."""
        self._run.log_metrics(of_curves(metrics), step)
        self._progress.update(step, metrics)

    def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Figures of an epoch."""
        self._run.log_metrics(of_curves(metrics), epoch)
        self._progress.epoch(epoch, metrics)


def training_report(name: str, history: list[dict[str, float]], best_epoch: int) -> str:
    """The figures of every epoch as a table (Markdown); the best one is marked."""
    keys = [key for key in _COLUMNS if any(key in entry for entry in history)]
    lines = [
        f"# Training {name}",
        "",
        f"Best epoch: {best_epoch} of {len(history)}, judged on the validation split. Seconds of training in all: "
        f"{sum(entry.get('train_s', 0.0) for entry in history):.0f}.",
        "",
        "| epoch | " + " | ".join(_COLUMNS[key][0] for key in keys) + " |",
        "|---:" * (1 + len(keys)) + "|",
    ]
    for entry in history:
        epoch = int(entry["epoch"])
        cells = [_cell(entry, key) for key in keys]
        shown = f"**{epoch}** (best)" if epoch == best_epoch else str(epoch)
        lines.append(f"| {shown} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(entry: dict[str, float], key: str) -> str:
    if key not in entry:
        return ""
    _, scale, form = _COLUMNS[key]
    return form.format(entry[key] * scale)
