"""What a study leaves behind in MLflow: its parent run, the runs of its trials, and its pictures.

A store that does not answer costs the record, never the study: everything is in the study's database and in its
folder, and the next start records what is missing.
"""

from __future__ import annotations

import logging
from itertools import accumulate
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from pillsnap.core.errors import StoreError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.tracking.names import of_curves, of_study, of_trial
from pillsnap.tracking.run import TrackedRun
from pillsnap.tracking.study import RETRY_TAG, TRIAL_TAG, RunRef, end_forsaken, mark, numbers_with_runs, trial_run
from pillsnap.tuning.pictures import draw_pictures
from pillsnap.tuning.study import BEST, RETRY_OF, RUN_ID, SURPLUS, StudyResult
from pillsnap.tuning.trial import trial_config
from pillsnap.tuning.words import fate, headline, trials_table

_log = logging.getLogger(__name__)
PICTURES = "pictures"
_MAX_DESCRIPTION = 7900
"""Letters; MLflow cuts a tag at 8000, wherever that is."""
_REST = "\nThe other trials: artifact trials.md.\n"


class StudyRecord:
    """The MLflow side of one study at work."""

    def __init__(self, study: optuna.Study, config: ExperimentConfig, run: TrackedRun, folder: Path) -> None:
        """Args: the study, its experiment, its parent run, and where the runs of the trials keep their files."""
        self._study = study
        self._config = config
        self._run = run
        self.parent = RunRef(run.run_id, run.experiment_id, folder)

    def end_forsaken(self) -> None:
        """End the runs of trials whose processes were killed."""
        trials: dict[int, FrozenTrial] = {}

        def find(number: int) -> FrozenTrial | None:
            if not trials:
                trials.update({trial.number: trial for trial in self._study.get_trials(deepcopy=False)})
            return trials.get(number)

        def is_running(number: int) -> bool:
            trial = find(number)
            return trial is not None and trial.state == TrialState.RUNNING

        def state(number: int) -> str:
            trial = find(number)
            return "lost" if trial is None else fate(trial)

        try:
            end_forsaken(self.parent, is_running, state)
        except StoreError as error:
            _log.warning("runs of lost trials may be left as running: %s", error)

    def add_missing(self) -> None:
        """Record trials that ran while MLflow was away: what was drawn, and the objective of each epoch."""
        recorded = numbers_with_runs(self.parent)
        for trial in self._study.get_trials(deepcopy=False):
            done = trial.state.is_finished() and trial.number not in recorded and SURPLUS not in trial.user_attrs
            if not done or RUN_ID in trial.user_attrs or not trial.intermediate_values:
                continue
            with trial_run(trial.number, self.parent) as run:
                config = trial_config(self._config, trial.params, trial.number)
                run.log_params(trial.params)
                run.log_text(config.to_yaml(), "experiment.yaml")
                tags = {"pillsnap.kind": "trial", TRIAL_TAG: str(trial.number), "pillsnap.recorded": "afterwards"}
                if RETRY_OF in trial.user_attrs:
                    tags[RETRY_TAG] = str(trial.user_attrs[RETRY_OF])
                run.set_tags(tags)
                for epoch, value in trial.intermediate_values.items():
                    run.log_metrics(of_curves({self._config.tuning.objective: value}), epoch)
                best = trial.user_attrs.get(BEST, {})
                value = best.get(self._config.tuning.objective, trial.value)
                if value is not None:
                    run.log_metrics(of_trial(value, best.get("epoch")))
                mark(run, fate(trial))

    def describe(self, trials: list[FrozenTrial]) -> None:
        """The table as the parent run's description, as far as MLflow takes it."""
        head = headline(trials, self._config.tuning.objective) + "\n\n"
        rows = trials_table(trials).splitlines(keepends=True)
        room = _MAX_DESCRIPTION - len(head) - len(_REST)
        shown = [row for row, end in zip(rows, accumulate(map(len, rows)), strict=True) if end <= room]
        rest = "" if len(shown) == len(rows) else _REST
        try:
            self._run.set_tags({"mlflow.note.content": head + "".join(shown) + rest})
        except OSError as error:  # a full disk: the study's database has it all
            _log.warning("the study's description in MLflow is not up to date (%s)", error)

    def publish(self, result: StudyResult, folder: Path) -> None:
        """Best file, table and pictures to the folder, and from there to the parent run."""
        trials = self._study.get_trials(deepcopy=False)
        (folder / "trials.md").write_text(trials_table(trials), encoding="utf-8")
        self.describe(trials)
        pictures = draw_pictures(self._study, folder / PICTURES, self._config.tuning.objective)
        try:
            self.add_missing()
            for name in ("best.yaml", "trials.md"):
                self._run.log_file(folder / name)
            for picture in pictures:
                self._run.log_file(picture, PICTURES)
            counts = {"complete": result.completed, "pruned": result.pruned, "failed": result.failed}
            counts |= {"retried": result.retried, "epochs": result.epochs}
            self._run.log_metrics(of_study(result.best_value, counts))
            self._run.set_tags(
                {"optuna.best_trial": str(result.best_trial), "keeps_floors": str(result.keeps_floors).lower()}
            )
        except StoreError as error:
            _log.warning(
                "the study's results are in %s, but not in MLflow: %s. Start it again to send them", folder, error
            )
