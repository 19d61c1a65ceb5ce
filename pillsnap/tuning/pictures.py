"""Pictures of a study, by Optuna's own plots. Knows no MLflow."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optuna
from optuna.trial import TrialState

_DPI = 110
_LEGEND_LINES = 12


def draw_pictures(study: optuna.Study, folder: Path, objective: str) -> list[Path]:
    """Draw what can be drawn of the trials so far.

    Args:
        study: the study.
        folder: for history.png, importances.png, parallel_coordinates.png, slices.png and intermediate_values.png.
        objective: name of what is maximised, for the axes.

    Returns:
        The files.
    """
    from optuna.visualization import matplotlib as plots

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    varied = len({tuple(trial.params.items()) for trial in complete}) > 1
    different = len({trial.value for trial in complete}) > 1
    todo: dict[str, tuple[bool, Callable[[], Any]]] = {
        "history": (bool(complete), lambda: plots.plot_optimization_history(study, target_name=objective)),
        "importances": (different, lambda: plots.plot_param_importances(study, target_name=objective)),
        "parallel_coordinates": (varied, lambda: plots.plot_parallel_coordinate(study, target_name=objective)),
        "slices": (varied, lambda: plots.plot_slice(study, target_name=objective)),
        "intermediate_values": (bool(complete), lambda: plots.plot_intermediate_values(study)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    keys = len({key for trial in complete for key in trial.params})
    return [_save(draw, folder / f"{name}.png", keys) for name, (possible, draw) in todo.items() if possible]


def _save(draw: Callable[[], Any], path: Path, keys: int) -> Path:
    import matplotlib.pyplot as plt

    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore")  # Optuna calls its plots experimental, and counts trials that were pruned
        plt.switch_backend("agg")
        drawn = draw()
        axes = list(drawn.ravel()) if isinstance(drawn, np.ndarray) else [drawn]
        figure = axes[0].figure
        _make_room(path.stem, figure, axes, keys)
        figure.savefig(path, dpi=_DPI, bbox_inches="tight")
        plt.close(figure)
    return path


def _make_room(name: str, figure: Any, axes: list[Any], keys: int) -> None:
    """Optuna's figures are made for two or three keys; labels of more would lie upon each other."""
    if name == "slices":
        figure.set_size_inches(3.0 * keys + 1.5, 4.0)
        for axis in axes:
            axis.tick_params(axis="x", which="both", labelrotation=40)
            for points in axis.collections:  # early trials are drawn in white
                points.set_edgecolor("0.4")
    elif name == "parallel_coordinates":
        figure.set_size_inches(2.2 * (keys + 1) + 2.0, 5.0)
        axes[0].set_title(axes[0].get_title(), pad=34)
        figure.axes[1].set_position((0.94, 0.11, 0.015, 0.77))  # the bar of colours covered the last key
    elif name == "importances":
        figure.set_size_inches(8.0, 1.5 + 0.5 * keys)
        axes[0].get_legend().remove()
    else:
        figure.set_size_inches(8.0, 4.5)
    if name == "intermediate_values":
        axes[0].set_xlabel("epoch")
        if len(axes[0].lines) > _LEGEND_LINES:
            axes[0].get_legend().remove()
