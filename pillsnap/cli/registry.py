"""``pillsnap registry``: versions and aliases in the MLflow registry."""

from __future__ import annotations

import gc
from pathlib import Path

import click

from pillsnap.cli.keys import keygen, keys
from pillsnap.cli.next_step import say_next
from pillsnap.cli.options import gates_options, name_option
from pillsnap.cli.registry_audit import history, verify
from pillsnap.cli.registry_server import gate_service, server, users

_LONG = {"judge", "server", "gate-service"}
"""Commands that compute or stay; the others are over in seconds."""


class _RegistryGroup(click.Group):
    """Runs short commands without the garbage collector.

    Loading MLflow and SQLAlchemy makes some hundred thousand objects that stay. Looking through them again and again
    is a sixth of the processor time of such a command (`registry status`: 4.1 s with, 3.4 s without).
    """

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, and pause the collector until it is done."""
        name, command, rest = super().resolve_command(ctx, args)
        if name not in _LONG and gc.isenabled():
            gc.disable()
            ctx.call_on_close(gc.enable)
        return name, command, rest


@click.group(cls=_RegistryGroup)
def registry() -> None:
    """Register model versions, have them judged, and promote them through the gate."""


for command in (keygen, keys, history, verify, server, users, gate_service):
    registry.add_command(command)


@registry.command()
@click.argument("run_id", required=False)
@click.option(
    "--bundle",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A bundle as a file in place of RUN_ID: a variant from `pillsnap quantise`. It becomes a new run's model.",
)
@name_option
def register(run_id: str | None, bundle: Path | None, name: str) -> None:
    """Make the bundle of RUN_ID a version. Open to every run: what counts is what the gate then measures."""
    from pillsnap.registry.versions import register as make_version
    from pillsnap.registry.versions import register_bundle

    if (run_id is None) == (bundle is None):
        raise click.UsageError("give either RUN_ID or --bundle FILE")
    entry = make_version(run_id, name) if run_id is not None else register_bundle(bundle or Path(), name)
    click.echo(f"registered: {name} version {entry.version}")
    _say_page(name, entry.version)
    say_next("registry", "submit", entry.version, "--name", name, note="the gate service judges it")
    click.echo(f"  or: pillsnap registry judge {entry.version} --name {name} --manifest FOLDER   (with the gate's key)")


@registry.command()
@click.argument("version")
@name_option
def submit(version: str, name: str) -> None:
    """Ask the gate service to judge VERSION (a number, or latest): mark it as candidate."""
    from pillsnap.registry.promotion import submit as mark

    entry = mark(name, version)
    click.echo(f"{name} version {entry.version} is a candidate; see: pillsnap registry status --name {name}")
    _say_page(name, entry.version)


@registry.command()
@click.argument("version")
@name_option
@gates_options
@click.option("--again", is_flag=True, help="Measure anew, also where the word that stands still holds.")
def judge(version: str, name: str, manifest_dir: Path, key_file: Path | None, again: bool) -> None:
    """Measure VERSION (a number, or latest), decide and sign: PROMOTE ends with 0, HOLD and REJECT with 1."""
    from pillsnap.cli.progress import Progress
    from pillsnap.core.errors import GateRefusedError
    from pillsnap.core.manifest import Manifest
    from pillsnap.gate.decision import Verdict
    from pillsnap.gate.keys import default_private_file, load_private_key
    from pillsnap.gate.trust import TrustRoot
    from pillsnap.registry.judging import judge as measure
    from pillsnap.tracking.store import connect

    key = load_private_key(key_file or default_private_file())
    manifest = Manifest.load(manifest_dir)
    with Progress() as progress:
        statement = measure(
            connect(),
            name,
            version,
            manifest,
            key,
            TrustRoot.find(),
            lambda done, total: progress("test images", done, total),
            again=again,
        )
    for figure, value in statement.figures.items():
        click.echo(f"{figure:<20}{value}")
    click.echo(f"judged: {name} version {statement.model_version}, verdict {statement.verdict}")
    click.echo(f"evidence and report: run {statement.evidence_run_id}")
    _say_page(name, statement.model_version)
    if statement.verdict != Verdict.PROMOTE:
        reasons = "".join(f"\n  - {reason}" for reason in statement.reasons)
        raise GateRefusedError(f"the gate says {statement.verdict}:{reasons}")
    say_next("registry", "promote", statement.model_version, "--name", name)


@registry.command()
@click.argument("version")
@name_option
@click.option(
    "--alias", default="champion", show_default=True, help="champion needs PROMOTE, challenger at least HOLD."
)
def promote(version: str, name: str, alias: str) -> None:
    """Give VERSION (a number, or latest) an alias; refused with the reasons where the gate says no (exit status 1)."""
    from pillsnap.registry.promotion import promote as set_alias

    statement = set_alias(name, version, alias)
    click.echo(f"{name} version {statement.model_version} is {alias} now ({statement.verdict})")
    _say_page(name, statement.model_version)


@registry.command()
@click.argument("version", required=False)
@name_option
def rollback(version: str | None, name: str) -> None:
    """Make a former champion (VERSION; by default the one before) champion again, however old its evidence is."""
    from pillsnap.registry.promotion import rollback as go_back

    before, statement = go_back(name, version)
    click.echo(f"{name} version {statement.model_version} is champion again, in place of version {before or '-'}")


@registry.command()
@name_option
def status(name: str) -> None:
    """List the versions with what the gate has signed of them and their aliases, the newest first."""
    from pillsnap.gate.trust import TrustRoot
    from pillsnap.registry.promotion import describe_word, waiting_for_service
    from pillsnap.registry.versions import list_versions

    ring = TrustRoot.find().ring()
    versions = list_versions(name)
    for entry, aliases in versions:
        alias = f" [{', '.join(aliases)}]" if aliases else ""
        click.echo(f"{name} version {entry.version}{alias}: {describe_word(entry, ring)}")
    if missing := waiting_for_service(entry for entry, _ in versions):
        click.echo(missing)


@registry.command()
@click.argument("first")
@click.argument("second")
@name_option
def diff(first: str, second: str, name: str) -> None:
    """Compare what the gate measured of versions FIRST and SECOND: figures, digests, the classes that moved most."""
    from pillsnap.registry.promotion import compare

    rows = [("", f"version {first}", f"version {second}"), *compare(name, first, second)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _say_page(name: str, version: object) -> None:
    """The version's page, where the store is a server."""
    from pillsnap.tracking.store import registry_uri, tracking_uri
    from pillsnap.tracking.ui_links import server_of, version_page

    if server := server_of(registry_uri(tracking_uri())):
        click.echo(f"page: {version_page(server, name, str(version))}")
