"""The MLproject's entry points, each command line as MLflow makes it, against the commands' own options."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from mlflow.projects._project_spec import EntryPoint, load_project
from mlflow.tracking import MlflowClient

from pillsnap.cli.main import cli
from pillsnap.registry.rules import DECISION_TAG

Call = Callable[..., tuple[int, str, str]]
PROJECT = Path(__file__).parents[2]
COMMANDS = {"main": "run", "tune": "tune", "export": "export", "evaluate": "evaluate", "gate": "gate"}
REQUIRED = {"export": {"checkpoint": "c.pt"}}
NOT_OFFERED = {
    "main": {"settings", "seed", "dry_run"},  # overrides says the first two
    "tune": {"settings", "seed", "out"},
    "evaluate": {"quantised"},
}


def entry_point(name: str) -> EntryPoint:
    return load_project(str(PROJECT)).get_entry_point(name)


def parsed(name: str, **given: str) -> dict[str, Any]:
    """What the command would be called with: MLflow's line, split as by a shell, read by click."""
    words = shlex.split(entry_point(name).compute_command({**REQUIRED.get(name, {}), **given}, "/storage"))
    assert words[:4] == ["python", "-m", "pillsnap", COMMANDS[name]]
    command = cli.get_command(click.Context(cli), COMMANDS[name])
    assert command is not None
    return command.make_context(COMMANDS[name], words[4:]).params


def test_these_and_no_others() -> None:
    assert set(load_project(str(PROJECT))._entry_points) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_defaults_are_taken_and_mean_what_is_not_given(name: str) -> None:
    point = entry_point(name)
    assert {key for key, parameter in point.parameters.items() if parameter.default is None} == set(
        REQUIRED.get(name, {})
    )
    assert all(isinstance(parameter.default, str | None) for parameter in point.parameters.values())
    values = parsed(name)
    empty = {key for key, parameter in point.parameters.items() if parameter.default == ""}
    for option, value in values.items():
        assert value != Path(), f"{option}: an empty text is no folder"
        if option.removesuffix("_file").removesuffix("_s").removesuffix("_name") in empty:
            assert value in (None, ""), option


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_is_forgotten(name: str) -> None:
    """Each option of the command has its parameter, or stands in NOT_OFFERED; blanks and quotes come through."""
    known = {"threads": "2", "workers": "2", "max_trials": "3", "time_budget": "8h", "wall_clock": "8h", "fresh": "yes"}
    odd = 'a b\'s/"c".x'
    given = {key: known.get(key, f"{key} {odd}") for key in entry_point(name).parameters}
    command = cli.get_command(click.Context(cli), COMMANDS[name])
    assert command is not None
    values = parsed(name, **given)
    for option in command.params:
        assert option.name is not None
        value = values[option.name]
        if option.name in NOT_OFFERED.get(name, set()):
            assert not value
        else:
            assert value not in (None, "", ()), f"MLproject has nothing for {option.name}"
            assert not isinstance(value, str | Path) or str(value).endswith(odd), option.name


def test_no_type_that_mlflow_resolves() -> None:
    """`path` and `uri` fail where nothing is given, and leave the run as RUNNING."""
    types = {p.type for name in COMMANDS for p in entry_point(name).parameters.values()}
    assert types == {"string"}


def test_evaluate_and_gate_log_to_the_run_that_mlflow_opened(
    call: Call, store: MlflowClient, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`export` has torch to import: its run is in the long test of the journey."""
    monkeypatch.setattr("pillsnap.evaluation.report.draw_all", lambda *_: [])
    evaluation = ("--manifest", prepared / "data", "--out", tmp_path / "e", "--threads", "1", "--champion", "")
    measured = store.create_run(store.create_experiment("elsewhere"))
    monkeypatch.setenv("MLFLOW_RUN_ID", measured.info.run_id)
    status, _, err = call("evaluate", prepared / "bundle.onnx", *evaluation)
    assert status == 0, err
    run = store.get_run(measured.info.run_id)
    assert (run.info.status, run.info.run_name, run.data.metrics["test_top1"]) == ("FINISHED", "evaluate bundle", 1.0)
    assert {"evaluation/evidence.json", "evaluation/report.html"} <= {
        entry.path for entry in store.list_artifacts(run.info.run_id, "evaluation")
    }

    judged = store.create_run(measured.info.experiment_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", judged.info.run_id)
    judge = ("--bundle", prepared / "bundle.onnx", "--manifest", prepared / "data", "--champion", "", "--out", "")
    assert call("gate", tmp_path / "e" / "evidence.json", *judge)[0] == 1, "too few pictures"
    run = store.get_run(judged.info.run_id)
    assert (run.info.status, run.data.tags[DECISION_TAG]) == ("FAILED", "HOLD")
    assert "**Gate: HOLD**" in run.data.tags["mlflow.note.content"]
    assert "the gate says HOLD" in run.data.tags["ended_because"]
