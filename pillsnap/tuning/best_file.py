"""``best.yaml``: the experiment of a study's best trial, with where it is from as comments."""

from __future__ import annotations

import datetime

from pillsnap.core.passwords import hide_passwords
from pillsnap.tuning.study import StudyResult
from pillsnap.tuning.words import figure


def best_file(result: StudyResult, command: str) -> str:
    """The text of the file; an experiment file as any other.

    Args:
        result: of the study.
        command: that has started it; empty: not known.
    """
    tuning = result.best_config.tuning
    floors = "" if result.keeps_floors else "; no trial keeps tuning.floors"
    facts = {
        "study": f"{result.study}: {result.completed} trials complete, {result.pruned} pruned, {result.failed} failed",
        "trial": f"{result.best_trial}, of {tuning.epochs} epochs; a training with this file has training.epochs",
        "value": f"{tuning.objective} {result.best_value:.4f}{floors}",
        "varied": ", ".join(f"{key} {figure(value)}" for key, value in result.best_params.items()),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": hide_passwords(command) or "not known",
    }
    lines = ["The best trial of a study. These lines are comments: the file loads as it is."]
    lines += [f"{key + ':':<9}{value}" for key, value in facts.items()]
    return "".join(f"# {_printable(line)}\n" for line in lines) + result.best_config.to_yaml()


def _printable(text: str) -> str:
    """YAML refuses control characters, in a comment too, and a line break would end it."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
