"""``pillsnap train``: only the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pillsnap.cli.options import data_option, experiment_options, load_experiment, workspace_option


@click.command()
@data_option
@experiment_options
@workspace_option
def train(data_name: str, workspace: Path, **experiment: Any) -> None:
    """Train a checkpoint from a manifest, with everything logged to MLflow."""
    from pillsnap.cli import journey
    from pillsnap.tracking.run import tracked_run

    config = load_experiment(**experiment)
    with tracked_run(f"train {config.name}", experiment=journey.EXPERIMENT_NAME, workspace=workspace) as tracked:
        manifest = journey.find_data(data_name, workspace)
        result = journey.train_step(tracked, config, manifest, workspace)
    click.echo(f"best epoch {result.best_epoch}: validation top-1 {result.best_metrics['val_top1']:.1%}")
    click.echo(f"run: {tracked.run_id}\ncheckpoint: {result.best_checkpoint}")
    click.echo(f"next: pillsnap export {result.best_checkpoint} --data {manifest.root} --out pillsnap.onnx")
