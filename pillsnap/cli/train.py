"""``pillsnap train``: only the training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from pillsnap.cli.next_step import say_next
from pillsnap.cli.options import data_option, experiment_options, load_experiment, training_options, workspace_option


@click.command()
@data_option
@experiment_options
@workspace_option
@training_options
def train(
    data_name: str, workspace: Path, fresh: bool, time_budget_s: float | None, dry_run: bool, **experiment: Any
) -> None:
    """Train a checkpoint from a manifest, with everything logged to MLflow; started again, the training goes on."""
    from pillsnap.cli import journey
    from pillsnap.cli.dry_run import rehearse
    from pillsnap.cli.torchrun import follow, joined_processes
    from pillsnap.cli.unfinished import resumable_run
    from pillsnap.tracking.resuming import ending_the_run_of_mlflow
    from pillsnap.tracking.store import experiment_name

    deadline = None if time_budget_s is None else time.monotonic() + time_budget_s
    config = load_experiment(**experiment)
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
        opened = resumable_run("train", config, manifest, workspace, experiment=name, fresh=fresh)
        with opened as ours:
            result = journey.train_step(ours.tracked, config, manifest, workspace, deadline=deadline)
            ours.unfinished = result.stopped
    if result.stopped:
        click.echo(f"stopped: {result.stopped}; the same command again trains the rest")
    click.echo(f"best epoch {result.best_epoch}: validation top-1 {result.best_metrics['val_top1']:.1%}")
    click.echo(f"run: {ours.tracked.run_id}\ncheckpoint: {result.best_checkpoint}")
    say_next("export", result.best_checkpoint, "--data", manifest.root, "--out", "pillsnap.onnx")
