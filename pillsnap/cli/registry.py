"""``pillsnap registry``: versions and aliases in the MLflow registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pillsnap.cli.keys import keygen, keys
from pillsnap.cli.options import name_option

if TYPE_CHECKING:
    from pillsnap.gate.policy import Policy


@click.group()
def registry() -> None:
    """Register model versions and promote them through the gate."""


registry.add_command(keygen)
registry.add_command(keys)


@registry.command()
@click.argument("run_id")
@name_option
def register(run_id: str, name: str) -> None:
    """Make the bundle of RUN_ID a version, with readable gate.* tags and a table as its description."""
    from pillsnap.registry.versions import register as make_version

    judged = make_version(run_id, name, trusted_policy())
    click.echo(f"registered: {judged.name} version {judged.version}, verdict {judged.decision.verdict}")
    click.echo(f"next: pillsnap registry promote {judged.version} --name {judged.name}")


@registry.command()
@click.argument("version")
@name_option
@click.option(
    "--alias", default="champion", show_default=True, help="champion needs PROMOTE, challenger at least HOLD."
)
def promote(version: str, name: str, alias: str) -> None:
    """Give VERSION (a number, or latest) an alias; refused with the reasons where the gate says no (exit status 1)."""
    from pillsnap.registry.versions import promote as set_alias

    judged = set_alias(name, version, alias, trusted_policy())
    click.echo(judged.decision.table())
    click.echo(f"\n{judged.name} version {judged.version} is {alias} now ({judged.decision.verdict})")


@registry.command()
@name_option
def status(name: str) -> None:
    """List the versions with their verdicts and aliases, the newest first."""
    from pillsnap.registry.versions import list_versions

    for entry, aliases in list_versions(name):
        tags = entry.tags
        figures = ", ".join(
            f"{key} {tags[f'gate.{key}']}" for key in ("top1", "top5", "real_top1") if f"gate.{key}" in tags
        )
        alias = f" [{', '.join(aliases)}]" if aliases else ""
        click.echo(f"{name} version {entry.version}{alias}: {tags.get('gate.verdict', 'not judged')} ({figures})")


def trusted_policy() -> Policy:
    """The policy that promotions are judged by: no option and no current folder chooses another one.

    It is the project's ``registry/policy.yaml``; an installation without a checkout (an image) has it under its
    working folder.
    """
    from pillsnap.gate.policy import DEFAULT_PATH, Policy
    from pillsnap.tracking.source import PROJECT_ROOT

    of_the_project = PROJECT_ROOT / DEFAULT_PATH
    return Policy.load(of_the_project if of_the_project.is_file() else Path(DEFAULT_PATH))
