"""A study in words: the table of its trials, and how it stands."""

from __future__ import annotations

import datetime
import math
from collections.abc import Collection
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from pillsnap.core.errors import ConfigError
from pillsnap.core.passwords import hide_passwords
from pillsnap.core.search import TuningConfig
from pillsnap.tuning.storage import open_storage, silent_trials
from pillsnap.tuning.study import (
    BEST,
    ERROR,
    HEARTBEAT,
    LAST,
    RETRIES,
    RETRY_OF,
    SURPLUS,
    WANTED,
    WORKER,
    best_of,
    counted,
    epochs_of,
    keeps_floors,
    lineage,
    over,
)

_SHOWN = 5
_SILENT_BEATS = 1.5
"""So many heartbeats without one: dead. A beat may come late on a busy machine, and two beats after its death at the
latest a worker is known to be."""


def fate(trial: FrozenTrial) -> str:
    """One word for what became of a trial: complete, pruned, failed, lost, surplus, running or waiting."""
    if trial.state != TrialState.FAIL:
        return str(trial.state.name.lower())
    if SURPLUS in trial.user_attrs:
        return "surplus"
    return "failed" if ERROR in trial.user_attrs or LAST in trial.user_attrs else "lost"


def trials_table(trials: list[FrozenTrial]) -> str:
    """Markdown, a row a trial."""
    keys = sorted({key for trial in trials for key in trial.params})
    floors = sorted({key for trial in trials for key in trial.constraints})
    head = ["trial", "state", "value", *(f"{key} above its floor" for key in floors), "epochs", *keys, "note"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for trial in trials:
        value = "" if trial.value is None else f"{trial.value:.4f}"
        margins = [f"{-trial.constraints[key]:+.3f}" if key in trial.constraints else "" for key in floors]
        params = [figure(trial.params[key]) if key in trial.params else "" for key in keys]
        epochs = str(len(trial.intermediate_values))
        row = [str(trial.number), fate(trial), value, *margins, epochs, *params, _note(trial)]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def ended_words(trial: FrozenTrial, objective: str, epochs: int) -> str:
    """How a trial ended: ``pruned after epoch 2 of 10, val_top1 41.2 %``, or why it failed."""
    best = trial.user_attrs.get(BEST, {})
    value = best.get(objective, trial.value)
    if trial.state == TrialState.FAIL or value is None:
        return f"{fate(trial)}: {_note(trial)}" if _note(trial) else fate(trial)
    at = f" at epoch {best['epoch']} of {epochs}" if "epoch" in best else ""
    after = f" after epoch {trial.last_step} of {epochs}" if trial.state == TrialState.PRUNED else ""
    return f"{fate(trial)}{after}, {objective} {100 * value:.1f} %{'' if after else at}"


def params_words(trial: FrozenTrial) -> str:
    """``training.base_lr 0.0012, model.drop_rate 0.2``: what it drew."""
    return ", ".join(f"{key} {figure(value)}" for key, value in trial.params.items())


def headline(trials: list[FrozenTrial], objective: str) -> str:
    """One line of Markdown: the best so far, and how many trials ended how."""
    ended = over(trials)
    best = best_of(ended)
    found = "no trial is complete yet"
    if best is not None and best.value is not None:
        found = f"**Best: trial {best.number}, {objective} {100 * best.value:.1f} %**{_floor_words(best)}"
        found += f" ({params_words(best)})"
    return f"{found}; {len(ended)} trials are over"


def describe(study: optuna.Study, silent: Collection[int] = (), silence_s: float = 0.0) -> str:
    """How a study stands, for a person.

    Args:
        study: the study.
        silent: numbers of the running trials whose workers give no sign of life.
        silence_s: for how long they must have given none.
    """
    trials = study.get_trials(deepcopy=False)
    wanted = study.user_attrs.get(WANTED)
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    alive = [trial for trial in running if trial.number not in silent]
    killed = len(running) - len(alive)
    dead = f"{killed} dead (no sign of life for {silence_s:.0f} s), " if killed else ""
    ended = over(trials)
    of_all = f"{len(ended)} of {wanted}" if wanted else str(len(ended))
    states = [trial.state for trial in ended]
    fates = [fate(trial) for trial in trials]
    retried = sum(RETRY_OF in trial.user_attrs for trial in trials)
    complete, pruned, failed = (
        states.count(state) for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    )
    lines = [
        f"study {study.study_name}",
        f"  {of_all} trials are over: {complete} complete, {pruned} pruned, {failed} failed of themselves",
        f"  {len(alive)} are running, {dead}{fates.count('waiting')} wait to be begun or tried again",
        f"  {retried} tries again after a process was lost or interrupted; {epochs_of(trials)} epochs trained",
    ]
    if not alive and len(ended) < (wanted or 0):
        lines.append("  nobody is at work now: the same pillsnap tune command again goes on")
    lines += [_running_line(trial, is_alive=trial in alive) for trial in running]
    lines += _failure_lines(counted(trials))
    best = best_of(ended)
    if best is None:
        return "\n".join([*lines, "  no trial has come to its end yet"])
    lines.append(f"  best: trial {best.number}, {best.value:.4f}" + _floor_words(best))
    lines += [f"    {key} = {figure(value)}" for key, value in best.params.items()]
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
    text = "\n\n".join(_described(optuna.load_study(study_name=each, storage=storage), storage) for each in chosen)
    storage.engine.dispose()
    return text


def _described(study: optuna.Study, storage: RDBStorage) -> str:
    silence_s = math.ceil(_SILENT_BEATS * study.user_attrs.get(HEARTBEAT, TuningConfig().heartbeat_s))
    latest = datetime.datetime.now() - datetime.timedelta(seconds=silence_s)
    never_begun = {  # killed before the first beat
        trial.number
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if WORKER not in trial.user_attrs and trial.datetime_start is not None and trial.datetime_start < latest
    }
    return describe(study, silent_trials(storage, study, silence_s) | never_begun, silence_s)


def _running_line(trial: FrozenTrial, *, is_alive: bool) -> str:
    worker = str(trial.user_attrs.get(WORKER, "an unknown worker")).rsplit(":", 1)[0]
    since = ""
    if trial.datetime_start is not None:
        minutes = (datetime.datetime.now() - trial.datetime_start).total_seconds() / 60
        since = f" for {minutes:.0f} min"
    epoch = trial.last_step
    done = f"epoch {epoch} done" if epoch else "no epoch done yet"
    end = "" if is_alive else "; DEAD, its trial is tried again where pillsnap tune runs"
    return f"    trial {trial.number} on {worker}{since}, {done}{end}"


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


def figure(value: Any) -> str:
    """A drawn value, short."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
