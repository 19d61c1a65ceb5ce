"""``pillsnap run``: the MLproject's main entry point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pillsnap.cli.options import data_option, experiment_options, load_experiment, policy_option, workspace_option


@click.command()
@data_option
@experiment_options
@workspace_option
@policy_option
@click.option("--register", "register_name", default="", help="Also register the bundle as a version of this model.")
def run(data_name: str, workspace: Path, policy_file: Path, register_name: str, **experiment: Any) -> None:
    """Train, export, evaluate and gate, in one MLflow run.

    Ends with 0 whatever the verdict is: the verdict is a result. Promotion is where the gate refuses.
    """
    from pillsnap.cli import journey
    from pillsnap.gate.policy import Policy
    from pillsnap.tracking.run import tracked_run

    config = load_experiment(**experiment)
    if register_name:
        from pillsnap.cli.registry import trusted_policy
        from pillsnap.registry.versions import check_name, register

        check_name(register_name)  # before the training too
    policy = Policy.load(policy_file)  # a wrong policy is said before hours of training, not after
    with tracked_run(f"run {config.name}", experiment=journey.EXPERIMENT_NAME, workspace=workspace) as tracked:
        manifest = journey.find_data(data_name, workspace)
        trained = journey.train_step(tracked, config, manifest, workspace)
        exported = journey.export_step(tracked, trained.best_checkpoint, manifest, workspace)
        evaluation = journey.evaluate_step(tracked, exported.bundle, manifest, workspace)
        decision = journey.gate_step(tracked, exported.bundle, evaluation, manifest, policy)
    click.echo(f"\n{decision.table()}\n\nverdict: {decision.verdict}")
    for reason in decision.reasons:
        click.echo(f"  - {reason}")
    click.echo(f"run: {tracked.run_id}\nbundle: {exported.bundle}\nreport: {evaluation / 'report.md'}")
    if register_name:
        judged = register(tracked.run_id, register_name, trusted_policy())
        click.echo(f"registered: {judged.name} version {judged.version}")
