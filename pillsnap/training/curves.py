"""The learning curves as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pillsnap.core.files import writing_beside


def draw_learning_curves(history: list[dict[str, float]], path: Path) -> None:
    """Loss, accuracy (in all, and per domain) and learning rate by epoch, as a PNG."""
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (
        (
            "Loss",
            "",
            {
                "train_loss": "training (mixed, smoothed)",
                "train_label_loss": "training, of the labels",
                "train_distillation_loss": "training, of the teacher",
                "val_loss": "validation",
                "val_plain_loss": "validation, without EMA",
            },
            1.0,
        ),
        (
            "Validation accuracy",
            "%",
            {
                "val_top5": "top-5",
                "val_top1": "top-1",
                "val_plain_top1": "top-1, without EMA",
                "val_real_top1": "top-1, real photos",
                "val_studio_top1": "top-1, studio",
            },
            100.0,
        ),
        ("Learning rate at the end of the epoch", "", {"lr": "lr"}, 1.0),
    )
    for axes, (title, unit, series, scale) in zip(figure.subplots(1, 3), panels, strict=True):
        for key, label in series.items():
            points = [(entry["epoch"], entry[key] * scale) for entry in history if key in entry]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        axes.set(title=title, xlabel="epoch", ylabel=unit)
        axes.grid(alpha=0.3)
        axes.legend()
    with writing_beside(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
