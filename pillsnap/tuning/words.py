"""A study in words: the table of its trials, and how it stands."""

from __future__ import annotations

import datetime
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from pillsnap.core.errors import ConfigError
from pillsnap.core.passwords import hide_passwords
from pillsnap.tuning.storage import open_storage
from pillsnap.tuning.study import (
    BEST,
    ERROR,
    LAST,
    RETRIES,
    RETRY_OF,
    SURPLUS,
    WORKER,
    best_of,
    counted,
    epochs_of,
    keeps_floors,
    lineage,
    over,
)

_SHOWN = 5


def fate(trial: FrozenTrial) -> str:
    """One word for what became of a trial: complete, pruned, failed, lost, surplus, running or waiting."""
    if trial.state != TrialState.FAIL:
        return str(trial.state.name.lower())
    if SURPLUS in trial.user_attrs:
        return "surplus"
    return "failed" if ERROR in trial.user_attrs or LAST in trial.user_attrs else "lost"


def trials_table(study: optuna.Study) -> str:
    """Markdown, a row a trial."""
    trials = study.get_trials(deepcopy=False)
    keys = sorted({key for trial in trials for key in trial.params})
    floors = sorted({key for trial in trials for key in trial.constraints})
    head = ["trial", "state", "value", *(f"{key} above its floor" for key in floors), "epochs", *keys, "note"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for trial in trials:
        value = "" if trial.value is None else f"{trial.value:.4f}"
        margins = [f"{-trial.constraints[key]:+.3f}" if key in trial.constraints else "" for key in floors]
        params = [_figure(trial.params[key]) if key in trial.params else "" for key in keys]
        epochs = str(len(trial.intermediate_values))
        row = [str(trial.number), fate(trial), value, *margins, epochs, *params, _note(trial)]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def describe(study: optuna.Study) -> str:
    """How a study stands, for a person."""
    trials = study.get_trials(deepcopy=False)
    ended = over(trials)
    states = [trial.state for trial in ended]
    fates = [fate(trial) for trial in trials]
    retried = sum(RETRY_OF in trial.user_attrs for trial in trials)
    complete, pruned, failed = (
        states.count(state) for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    )
    lines = [
        f"study {study.study_name}",
        f"  {len(ended)} trials are over: {complete} complete, {pruned} pruned, {failed} failed of themselves",
        f"  {fates.count('running')} are running, {fates.count('waiting')} wait to be begun or tried again",
        f"  {retried} tries again after a process was lost or interrupted; {epochs_of(trials)} epochs trained",
    ]
    lines += [_running_line(trial) for trial in trials if trial.state == TrialState.RUNNING]
    lines += _failure_lines(counted(trials))
    best = best_of(ended)
    if best is None:
        return "\n".join([*lines, "  no trial has come to its end yet"])
    lines.append(f"  best: trial {best.number}, {best.value:.4f}" + _floor_words(best))
    lines += [f"    {key} = {_figure(value)}" for key, value in best.params.items()]
    return "\n".join(lines)


def describe_storage(url: str, name: str = "") -> str:
    """All studies of a database, or the one of this name, in words.

    Raises:
        ConfigError: no database, or no study of this name.
    """
    storage = open_storage(url)
    names = optuna.get_all_study_names(storage)
    if name and name not in names:
        raise ConfigError(f"--study {name}: not in {hide_passwords(url)}; there are: {', '.join(names) or 'none'}")
    chosen = [name] if name else names
    if not chosen:
        return f"no study in {hide_passwords(url)} yet; begin one with: pillsnap tune"
    text = "\n\n".join(describe(optuna.load_study(study_name=each, storage=storage)) for each in chosen)
    storage.engine.dispose()
    return text


def _running_line(trial: FrozenTrial) -> str:
    worker = str(trial.user_attrs.get(WORKER, "an unknown worker")).rsplit(":", 1)[0]
    since = ""
    if trial.datetime_start is not None:
        minutes = (datetime.datetime.now() - trial.datetime_start).total_seconds() / 60
        since = f" for {minutes:.0f} min"
    epoch = trial.last_step
    return f"    trial {trial.number} on {worker}{since}, " + (f"epoch {epoch} done" if epoch else "no epoch done yet")


def _failure_lines(trials: list[FrozenTrial]) -> list[str]:
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    return [f"    trial {trial.number} failed: {_note(trial)}" for trial in failed[-_SHOWN:]]


def _floor_words(best: FrozenTrial) -> str:
    if not best.constraints:
        return ""
    missed = [f"{key} by {value:.3f}" for key, value in best.constraints.items() if value > 0]
    return ", keeps all floors" if keeps_floors(best) else f"; no trial keeps the floors, it misses {', '.join(missed)}"


def _note(trial: FrozenTrial) -> str:
    notes = trial.user_attrs
    words = []
    if RETRY_OF in notes:
        times = f", lost {notes[RETRIES]} times" if notes.get(RETRIES) else ""
        words.append(f"tries trial {lineage(trial)} again{times}")
    if ERROR in notes:
        words.append(str(notes[ERROR]).splitlines()[0][:200])
    if BEST in notes and "epoch" in notes[BEST]:
        words.append(f"best at epoch {notes[BEST]['epoch']}")
    return "; ".join(words).replace("|", "/")


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
