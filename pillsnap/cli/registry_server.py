"""``pillsnap registry server``, ``users`` and ``gate-service``: what runs on the registry's machine."""

from __future__ import annotations

import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import click

from pillsnap.cli.options import gates_options
from pillsnap.cli.time_stamps import time_stamps
from pillsnap.core.errors import PillSnapError
from pillsnap.core.ports import check_free, web_address

_HOME = click.option(
    "--home",
    "home_dir",
    type=click.Path(path_type=Path),
    default=Path("workspace/registry"),
    show_default=True,
    help="Folder of the server: databases, artifacts, secrets. Only its owner can read it.",
)


@click.command()
@_HOME
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="Port to listen on.")
@click.option("--backend-store-uri", "database", default="", help="Database; by default a sqlite file in the home.")
@click.option("--artifacts-destination", "artifacts", default="", help="Artifacts; by default a folder in the home.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Processes that answer.")
@click.option("--allowed-hosts", default="", help="Host names that clients may use, separated by commas.")
@click.option(
    "--gate-url",
    default="http://127.0.0.1:5001/webhook",
    show_default=True,
    help="Where the gate service listens; empty where there is none.",
)
def server(
    home_dir: Path,
    host: str,
    port: int,
    database: str,
    artifacts: str,
    workers: int,
    allowed_hosts: str,
    gate_url: str,
) -> None:
    """Run MLflow with the gated registry, logins and roles. Secrets are made at the first start and never shown."""
    from pillsnap.gate.trust import TrustRoot
    from pillsnap.registry.server import ADMIN, Home, ServerSettings, check, is_local, run
    from pillsnap.tracking.ui_links import start_page

    home = Home(home_dir)
    settings = ServerSettings(
        home=home,
        trust=TrustRoot.find(),
        host=host,
        port=port,
        database=database or home.database,
        artifacts=artifacts or home.artifacts,
        workers=workers,
        allowed_hosts=allowed_hosts,
        gate_url=gate_url,
    )
    check_free(host, port)
    check(settings)
    click.echo(f"registry: {start_page(web_address(host, port))}")
    click.echo(f"policy, keys and roles: {settings.trust.folder}")
    click.echo(f"the password of {ADMIN}: {home.password_file(ADMIN)}")
    if not is_local(host):
        click.echo("note: MLflow itself speaks plain HTTP: put a proxy with TLS before it, or passwords can be read")
    sys.exit(run(settings))


@click.group()
def users() -> None:
    """Logins of the registry's server, and their roles."""


@users.command("add")
@click.argument("name")
@click.option(
    "--role",
    "role_name",
    type=click.Choice(["engineer", "gate", "release_manager"]),
    required=True,
    help="engineer: registers and marks; gate: writes the gate's word; release_manager: sets champion.",
)
@click.option(
    "--password-file", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Its first line is taken."
)
@_HOME
def add(name: str, role_name: str, password_file: Path | None, home_dir: Path) -> None:
    """Make a login NAME with a role, or give a known one another role (and password, with --password-file).

    A password is made up for a new login where none is given.
    """
    from pillsnap.core.errors import ConfigError
    from pillsnap.gate.trust import TrustRoot
    from pillsnap.registry.actor import Role
    from pillsnap.registry.server import Home, add_user

    trust = TrustRoot.find()
    password = None if password_file is None else (password_file.read_text(encoding="utf-8").splitlines() or [""])[0]
    if password == "":
        raise ConfigError(f"--password-file {password_file}: its first line is empty; it is taken as the password")
    made = add_user(Home(home_dir), trust, name, Role(role_name), password)
    click.echo(f"{name} is {role_name} ({trust.roles_file})")
    if made is not None:
        click.echo(f"the first password: {made}")


@users.command("list")
def list_users() -> None:
    """Show who has which role; everybody else is an engineer."""
    from pillsnap.gate.trust import TrustRoot
    from pillsnap.registry.actor import Roles

    for name, role in sorted(Roles.load(TrustRoot.find().roles_file).users.items()):
        click.echo(f"{role:<16}{name}")


@users.command("remove")
@click.argument("name")
@_HOME
def remove(name: str, home_dir: Path) -> None:
    """Take the login NAME and its role away."""
    from pillsnap.gate.trust import TrustRoot
    from pillsnap.registry.server import Home, remove_user

    remove_user(Home(home_dir), TrustRoot.find(), name)
    click.echo(f"{name} is removed")


@click.command("gate-service")
@gates_options
@click.option("--poll", "poll_s", type=click.FloatRange(min=0.1), default=10.0, show_default=True, help="Seconds.")
@click.option("--once", is_flag=True, help="Judge what waits now, then end.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the webhook.")
@click.option("--webhook-port", type=click.IntRange(1, 65535), default=5001, show_default=True, help="Its port.")
@click.option(
    "--webhook-secret",
    "secret_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the secret that the server signs with: webhook.secret in its home. Without it the poller looks.",
)
def gate_service(
    manifest_dir: Path,
    key_file: Path | None,
    poll_s: float,
    once: bool,
    host: str,
    webhook_port: int,
    secret_file: Path | None,
) -> None:
    """Judge every version that is marked as candidate, for ever.

    With --once: judge what waits now, a line each; exit status 1 where the registry does not answer, or one could
    not be judged (a HOLD or REJECT is a judgement). MLFLOW_TRACKING_URI names the registry's server,
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD its login with the role gate."""
    from pillsnap.core.manifest import Manifest
    from pillsnap.gate.keys import default_private_file, load_private_key
    from pillsnap.gate.trust import TrustRoot
    from pillsnap.registry.gate_service import GateService, serve

    trust = TrustRoot.find()
    trust.policy()
    key = load_private_key(key_file or default_private_file())
    trust.ring().require_signing(key, datetime.now(UTC))
    service = GateService(Manifest.load(manifest_dir), key, trust, poll_s)
    if once:
        signed = service.look()
        for statement in signed:
            click.echo(f"{statement.model_name} version {statement.model_version}: {statement.verdict}")
        if service.trouble:
            raise PillSnapError("\n".join(service.trouble))
        if not signed:
            click.echo("no candidate waits for a judgement")
        return
    if secret_file is not None:
        check_free(host, webhook_port, "--webhook-port")

    def end(signum: int, frame: FrameType | None) -> None:
        service.end()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    click.echo(f"gate service: manifest {service.manifest.hash[:12]}, policy {trust.policy().sha256[:12]}")
    with time_stamps():
        if secret_file is None:
            service.run()
        else:
            serve(service, host, webhook_port, secret_file.read_text(encoding="utf-8").strip())
