"""``pillsnap tracking``: what runs have logged, and what of it still has to reach the MLflow store."""

from __future__ import annotations

from pathlib import Path

import click

from pillsnap.cli.options import workspace_option


@click.group()
def tracking() -> None:
    """What runs have logged, and whether the MLflow store has it."""


@tracking.command()
@workspace_option
def sync(workspace: Path) -> None:
    """Send what runs could not send while the MLflow store did not answer.

    Figures, parameters, tags, files and models of all runs of the workspace, trials of studies too, arrive as if
    nothing had happened, and each run ends with the status it had. To do it twice does no harm. A run that is still at
    work sends by itself. Ends with 1 where something still waits, or where the store refuses something.
    """
    from pillsnap.tracking.sync import sync_run, waiting_runs

    runs = waiting_runs(workspace)
    if not runs:
        click.echo(f"{workspace}: nothing waits, the MLflow store has everything")
        return
    problems = 0
    for folder, run_id in runs:
        synced = sync_run(folder, run_id)
        ended = f"ended as {synced.status}" if synced.status else "has not ended: it can go on"
        click.echo(f"run {run_id}: {synced.sent} entries sent, {synced.waiting} wait; {ended}")
        if synced.problem:
            problems += 1
            click.echo(f"  {synced.problem}", err=True)
    if problems:
        raise click.ClickException(f"{problems} of {len(runs)} runs are not complete; the reasons stand above")
