"""``pillsnap registry keygen`` and ``keys``: the pair that the gate signs with, the keys that are trusted."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click


@click.command()
@click.option(
    "--private",
    "private_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File for the private key; by default ~/.config/pillsnap/gate.key (XDG_CONFIG_HOME holds).",
)
@click.option("--comment", default="", help="Words that tell this key from others, e.g. where it signs.")
def keygen(private_file: Path | None, comment: str) -> None:
    """Make the gate's key pair: the private key for the gate alone, the public one for the trust root.

    With a password in PILLSNAP_GATE_KEY_PASSWORD the private key is encrypted.
    """
    from pillsnap.core.errors import ConfigError
    from pillsnap.gate.keys import PASSWORD_VARIABLE, default_private_file, generate
    from pillsnap.gate.trust import TrustRoot

    trust = TrustRoot.find()
    private_file = private_file or default_private_file()
    if private_file.resolve().is_relative_to(trust.folder.resolve()):
        raise ConfigError(
            f"--private {private_file}: lies in {trust.folder}, which holds what all may read; choose a folder of the "
            "gate alone"
        )
    key = generate(private_file, trust.keys_folder, now=_now(), comment=comment)
    click.echo(f"key: {key.key_id}")
    click.echo(f"public key: {trust.keys_folder / f'{key.key_id}.json'}")
    click.echo(f"private key: {private_file} (only its owner can read it; it is shown nowhere and kept nowhere else)")
    click.echo(
        f"next: commit the public key, and start the gate where it can read the private one ({PASSWORD_VARIABLE}"
    )
    click.echo("      where it has a password). To end an older key: pillsnap registry keys retire ID")


@click.group(invoke_without_command=True)
@click.pass_context
def keys(context: click.Context) -> None:
    """List the public keys that are trusted, with their state; or retire or revoke one."""
    if context.invoked_subcommand is not None:
        return
    from pillsnap.gate.trust import TrustRoot

    trust = TrustRoot.find()
    ring = trust.ring()
    for key in sorted(ring.keys.values(), key=lambda key: key.not_before):
        comment = f" ({key.comment})" if key.comment else ""
        click.echo(f"{key.key_id}  since {key.not_before:%Y-%m-%d %H:%M}, {key.state(_now())}{comment}")
    if not ring.keys:
        click.echo(f"no public key in {trust.keys_folder}: no model version can become champion")
        click.echo("next: pillsnap registry keygen")


@keys.command()
@click.argument("key_id", metavar="ID")
def retire(key_id: str) -> None:
    """End the key ID: what it has signed stays valid, what it signs from now on does not."""
    from pillsnap.gate.keys import retire as end
    from pillsnap.gate.trust import TrustRoot

    key = end(TrustRoot.find().keys_folder, key_id, now=_now())
    click.echo(f"{key.key_id}: {key.state(_now())}")
    click.echo("next: commit the changed file, and start the gate with the new key")


@keys.command()
@click.argument("key_id", metavar="ID")
def revoke(key_id: str) -> None:
    """Make all that the key ID ever signed worthless, the champion's envelope too: for a key that was stolen."""
    from pillsnap.gate.keys import revoke as withdraw
    from pillsnap.gate.trust import TrustRoot

    key = withdraw(TrustRoot.find().keys_folder, key_id, now=_now())
    click.echo(f"{key.key_id}: {key.state(_now())}")
    click.echo("next: commit the changed file; make a new pair with pillsnap registry keygen; judge the champion again")


def _now() -> datetime:
    """In whole seconds: a statement that is signed at once, dated by milliseconds, is not older than its key."""
    return datetime.now(UTC).replace(microsecond=0)
