"""What runs and their metrics are called in MLflow and TensorBoard: the one place that says it.

A metric's section stands before its slash: MLflow and TensorBoard group by it. Only curves have one, ``train/`` and
``val/`` over epochs (``train/step_…`` over updates). MLflow draws a figure that stands alone as a bar, sorts sections
by their names, and puts what has none behind them all: with ``best/`` and ``test/`` fourteen bars would come first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pillsnap.core.evidence import Metric
    from pillsnap.core.experiment import ExperimentConfig

EXPERIMENT = "pillsnap"
"""Of trainings and studies, unless the environment names another one (`store.experiment_name`)."""
BEST_EPOCH = "best_epoch"
OBJECTIVE = "objective"
"""Of a trial: what the study maximises, at the trial's best epoch."""
_UNLOGGED = frozenset({"epoch", "train_s", "val_s", "lr", "step_images_per_s"})
"""The axis, and what images/s of the epoch and the rate of each update say already."""
_MAKERS = ("tf_", "efficientnet_")


def of_curves(metrics: Mapping[str, float]) -> dict[str, float]:
    """The trainer's figures of some updates or of an epoch as they are logged: ``val_top1`` is ``val/top1``."""
    return {_curve(key): value for key, value in metrics.items() if key not in _UNLOGGED}


def _curve(key: str) -> str:
    section, _, rest = key.partition("_")
    return f"{section}/{rest}" if section in ("train", "val") else f"train/{key}"


def of_best(metrics: Mapping[str, float], epoch: int) -> dict[str, float]:
    """The validation figures of the best epoch as they are logged: ``best_val_top1``, and ``best_epoch``."""
    judged = (key for key in metrics if key.startswith("val_") and key not in _UNLOGGED and "_plain_" not in key)
    return {**{f"best_{key}": metrics[key] for key in judged}, BEST_EPOCH: float(epoch)}


def of_trial(value: float, epoch: int | None) -> dict[str, float]:
    """What a trial reached as it is logged: ``objective``, and the epoch of it."""
    return {OBJECTIVE: value} if epoch is None else {OBJECTIVE: value, BEST_EPOCH: float(epoch)}


def of_study(best_value: float, counts: Mapping[str, int]) -> dict[str, float]:
    """What a study has found as it is logged: the best ``objective``, and ``trials_pruned`` and the like."""
    return {OBJECTIVE: best_value, **{f"trials_{key}": float(count) for key, count in counts.items()}}


def of_test(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """The evidence's figures as they are logged: ``test_top1``."""
    return {f"test_{key}": metric.value for key, metric in metrics.items()}


def of_gate(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """The figures that the gate has measured itself as they are logged: ``gate_top1``."""
    return {f"gate_{key}": metric.value for key, metric in metrics.items()}


def run_name(config: ExperimentConfig) -> str:
    """What tells a training from the others of a list: ``lite0 96px · 3 epochs · seed 0 · demo``.

    The experiment's own name comes last: mostly it is the same for many.
    """
    return _name(config, config.training.epochs)


def study_run_name(config: ExperimentConfig) -> str:
    """The same for a study, with the epochs of a trial: ``tune lite0 96px · 2 epochs · seed 0 · demo``."""
    return f"tune {_name(config, config.tuning.epochs)}"


def _name(config: ExperimentConfig, epochs: int) -> str:
    net = config.model.backbone
    for prefix in _MAKERS:
        net = net.removeprefix(prefix)
    return (
        f"{net} {config.preprocessing.target_size}px · {epochs} epoch{'s' if epochs > 1 else ''} · "
        f"seed {config.seed} · {config.name}"
    )
