"""``pillsnap run``: the MLproject's main entry point."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from pillsnap.cli.next_step import say_next
from pillsnap.cli.options import (
    data_option,
    experiment_options,
    load_experiment,
    policy_option,
    training_options,
    workspace_option,
)


@click.command()
@data_option
@experiment_options
@workspace_option
@training_options
@policy_option
@click.option("--register", "register_name", default="", help="Also register the bundle as a version of this model.")
def run(
    data_name: str,
    workspace: Path,
    policy_file: Path,
    register_name: str,
    fresh: bool,
    time_budget_s: float | None,
    dry_run: bool,
    **experiment: Any,
) -> None:
    """Train, export, evaluate and gate, in one MLflow run; started again, an unfinished run goes on.

    Ends with 0 whatever the verdict is: the verdict is a result. Promotion is where the gate refuses.
    """
    from pillsnap.cli import journey
    from pillsnap.cli.dry_run import rehearse
    from pillsnap.cli.torchrun import follow, joined_processes
    from pillsnap.cli.unfinished import resumable_run
    from pillsnap.core.files import sha256_file
    from pillsnap.gate.policy import Policy
    from pillsnap.tracking.resuming import ending_the_run_of_mlflow
    from pillsnap.tracking.store import experiment_name

    deadline = None if time_budget_s is None else time.monotonic() + time_budget_s
    config = load_experiment(**experiment)
    if register_name:
        from pillsnap.registry.versions import check_name, register

        check_name(register_name)  # before the training too
    policy = Policy.load(policy_file)  # a wrong policy is said before hours of training, not after
    if dry_run:
        rehearse(config, data_name, workspace)
        return
    with joined_processes() as is_first:
        if not is_first:
            follow(config, data_name, workspace)
            return
        with ending_the_run_of_mlflow():
            manifest = journey.checked_data(config, data_name, workspace)
        name = experiment_name()
        opened = resumable_run("run", config, manifest, workspace, experiment=name, fresh=fresh)
        with opened as ours:
            tracked = ours.tracked
            trained = journey.train_step(tracked, config, manifest, workspace, deadline=deadline)
            ours.unfinished = trained.stopped
            checkpoint = trained.best_checkpoint
            bundle = ours.once(
                "exported",
                sha256_file(checkpoint),
                lambda: journey.export_step(tracked, checkpoint, manifest, workspace).bundle,
            )
            evaluation = journey.evaluate_step(tracked, bundle, manifest, workspace, policy)
            decision = journey.gate_step(tracked, bundle, evaluation, manifest, policy)
    click.echo(f"\n{decision.table()}\n\nverdict: {decision.verdict}")
    for reason in decision.reasons:
        click.echo(f"  - {reason}")
    click.echo(f"run: {tracked.run_id}\nbundle: {bundle}\nreport: {evaluation / 'report.html'}")
    if trained.stopped:
        click.echo(f"stopped: {trained.stopped}; the same command again trains the rest")
    if register_name:
        version = register(tracked.run_id, register_name).version
        click.echo(f"registered: {register_name} version {version}")
        say_next("registry", "submit", version, "--name", register_name, note="the gate service judges it")
    elif not trained.stopped:
        say_next("registry", "register", tracked.run_id)
