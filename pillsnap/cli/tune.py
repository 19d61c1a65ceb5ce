"""``pillsnap tune``: the MLproject's entry point ``tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pillsnap.cli.options import data_option, experiment_options, load_experiment, workspace_option


@click.command()
@data_option
@experiment_options
@workspace_option
@click.option(
    "--storage", default="", help="SQLAlchemy URL of the study's database; by default a sqlite file in the workspace."
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Also write the best experiment file here."
)
def tune(data_name: str, workspace: Path, storage: str, out: Path | None, **experiment: Any) -> None:
    """Search the best parameters with Optuna; started again, the study goes on where it stopped."""
    from pillsnap.cli import journey
    from pillsnap.core.files import write_bytes
    from pillsnap.tuning.study import run_study

    config, _ = journey.with_local_weights(load_experiment(**experiment), workspace)
    manifest = journey.find_data(data_name, workspace)
    data = journey.load_training_data(config, manifest, workspace)
    folder = workspace / "tune"
    folder.mkdir(parents=True, exist_ok=True)
    url = storage or f"sqlite:///{(folder / 'optuna.db').resolve()}"
    result = run_study(config, data, folder, storage_url=url, experiment=journey.EXPERIMENT_NAME)
    best = out or folder / "best.yaml"
    write_bytes(best, result.best_config.to_yaml().encode())
    click.echo(f"trials: {result.completed} complete, {result.pruned} pruned, {result.failed} failed")
    click.echo(f"best {config.tuning.objective}: {result.best_value:.1%}")
    for key, value in result.best_params.items():
        click.echo(f"  {key} = {value:.4g}")
    click.echo(f"next: pillsnap run --config {best} --data {data_name}")
