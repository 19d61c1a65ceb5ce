"""``pillsnap tune``: the MLproject's entry point ``tune``; ``pillsnap tune status`` says how a study stands."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pillsnap.cli.duration import Count, Duration
from pillsnap.cli.next_step import say_next
from pillsnap.cli.options import data_option, experiment_options, load_experiment, workspace_option
from pillsnap.cli.time_stamps import time_stamps

_STORAGE_HELP = (
    "SQLAlchemy URL of the study's database; by default a sqlite file in the workspace. For many machines: "
    "postgresql+psycopg://USER@HOST/NAME."
)


@click.group(invoke_without_command=True)
@data_option
@experiment_options
@workspace_option
@click.option("--storage", default="", help=_STORAGE_HELP)
@click.option(
    "--workers", type=Count(), default=1, show_default=True, help="Trials at a time, each in its own process."
)
@click.option(
    "--max-trials",
    type=Count(),
    help="Trials in all, over all workers, machines and restarts; by default tuning.trials of the experiment file.",
)
@click.option(
    "--wall-clock",
    "wall_clock_s",
    type=Duration(),
    help="Stop after so long (8h, 1h30m): what is at work then goes on at the next start.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Also write the best experiment file here."
)
@click.pass_context
def tune(ctx: click.Context, /, **options: Any) -> None:
    """Search the best parameters with Optuna; started again, the study goes on where it stopped.

    While it runs, pillsnap tune status says how it stands, and optuna-dashboard sqlite:///workspace/tune/optuna.db
    (pip install optuna-dashboard) shows it.
    """
    if ctx.invoked_subcommand is None:
        _tune(**options)


def _tune(
    data_name: str,
    workspace: Path,
    storage: str,
    workers: int | None,
    max_trials: int | None,
    wall_clock_s: float | None,
    out: Path | None,
    **experiment: Any,
) -> None:
    started = time.monotonic()
    from pillsnap.cli import journey

    config = load_experiment(**experiment)
    journey.check_before_data(config, data_name)  # before what takes seconds to import, too
    from pillsnap.core.files import write_bytes
    from pillsnap.tracking.store import experiment_name
    from pillsnap.tuning.tune import run_study

    config, _ = journey.with_local_weights(config, workspace)
    manifest = journey.find_data(data_name, workspace)
    journey.look_at_teacher(config, manifest)
    data = journey.load_training_data(config, manifest, workspace)
    folder = workspace / "tune"
    folder.mkdir(parents=True, exist_ok=True)
    with time_stamps():
        result = run_study(
            config,
            data,
            folder,
            storage_url=storage or _own_storage(workspace),
            experiment=experiment_name(),
            workers=workers or 1,
            trials=max_trials,
            deadline=None if wall_clock_s is None else started + wall_clock_s,
            command=as_typed(sys.argv[1:], storage),
        )
    best = folder / "best.yaml"
    if out is not None:
        write_bytes(out, best.read_bytes())
        best = out
    click.echo(f"trials: {result.completed} complete, {result.pruned} pruned, {result.failed} failed")
    if result.retried:
        click.echo(f"tried again after a process was lost or interrupted: {result.retried}")
    kept = "" if result.keeps_floors else " (no trial keeps tuning.floors)"
    click.echo(f"best {config.tuning.objective}: {result.best_value:.1%}, trial {result.best_trial}{kept}")
    for key, value in result.best_params.items():
        click.echo(f"  {key} = {value:.4g}" if isinstance(value, float) else f"  {key} = {value}")
    click.echo(f"table and pictures: {folder / 'trials.md'}, {folder / 'pictures'}")
    say_next("run", "--config", best, "--data", data_name)


@tune.command()
@workspace_option
@click.option("--storage", default="", help=_STORAGE_HELP)
@click.option("--study", default="", help="Only the study of this name; by default all of the database.")
@click.pass_context
def status(ctx: click.Context, workspace: Path, storage: str, study: str) -> None:
    """Say in words how the studies of a database stand; nothing is changed."""
    from pillsnap.core.errors import ConfigError
    from pillsnap.tuning.words import describe_storage

    before: dict[str, Any] = ctx.parent.params if ctx.parent is not None else {}  # tune --storage URL status
    storage = storage or before.get("storage", "")
    if ctx.get_parameter_source("workspace") == click.core.ParameterSource.DEFAULT:
        workspace = before.get("workspace", workspace)
    database = workspace / "tune" / "optuna.db"
    if not storage and not database.is_file():
        raise ConfigError(f"{database}: no such file; begin a study with: pillsnap tune, or give --storage")
    click.echo(describe_storage(storage or _own_storage(workspace), study))


def _own_storage(workspace: Path) -> str:
    return f"sqlite:///{(workspace / 'tune' / 'optuna.db').resolve()}"


def as_typed(words: Sequence[str], storage: str) -> str:
    """The command for the head of ``best.yaml``; the database's address is left out whole: it may hold a password."""
    return shlex.join(["pillsnap", *(word.replace(storage, "URL") if storage else word for word in words)])
