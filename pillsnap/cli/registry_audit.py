"""``pillsnap registry history`` and ``verify``: the record of what the registry's gate was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pillsnap.gate.envelope import RecordHead


@click.command()
@click.option("--name", default=None, help="Only of this registered model.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with digests and hashes.")
def history(name: str | None, as_json: bool) -> None:
    """Show who asked for what, who promoted, and what was refused. Needs the registry's database."""
    from pillsnap.registry import audit
    from pillsnap.registry.local import open_registry

    rows = 0
    for row in audit.entries(open_registry().engine, name):
        rows += 1
        if as_json:
            click.echo(json.dumps(row, ensure_ascii=False))
            continue
        what = f"{row['action']} {row['alias']}".strip()
        before = f" (before: {row['before']})" if row["before"] else ""
        verdict = f" {row['verdict']}" if row["verdict"] else ""
        role = f" ({row['role']})" if row["role"] else ""
        line = f"{row['number']:>5}  {row['at'][:19]}  {row['actor']}{role}  {row['outcome']}  {what}  {row['model']}"
        line += f" version {row['version']}" if row["version"] else ""
        click.echo(line + verdict + before)
        if row["reason"]:
            click.echo("       " + row["reason"].replace("\n", "\n       "))
    if not rows:
        click.echo(f"nothing is recorded{f' of {name}' if name else ''} yet", err=True)


@click.command()
@click.option(
    "--kept",
    "kept_files",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="A file that was kept elsewhere: what history --json printed, or gate/envelope.json of a run of the gate. "
    "Shows a database that was put back to an earlier state as a whole; repeatable.",
)
def verify(kept_files: tuple[Path, ...]) -> None:
    """Check the record, what stands by it, and that it passes through all that the gate has signed (exit status 1)."""
    from pillsnap.core.errors import TamperedError
    from pillsnap.gate.trust import TrustRoot
    from pillsnap.registry import audit
    from pillsnap.registry.local import open_registry, standing, unproven
    from pillsnap.registry.verification import examine

    kept = [pair for path in kept_files for pair in _kept_in(path)]
    store = open_registry()
    with audit.standing_still(store.engine) as connection:
        now = standing(connection)
        found = examine(connection, now, TrustRoot.find().ring(), kept)
    if found.problems:
        raise TamperedError(
            "the record of the registry does not hold:" + "".join(f"\n  - {text}" for text in found.problems)
        )
    wrong, unseen = unproven(store, now)
    if wrong:
        raise TamperedError(
            "the record holds, but what stands there has not proven itself:" + "".join(f"\n  - {t}" for t in wrong)
        )
    stand = (
        "every champion and challenger explained and proven" if now.aliases or now.stages else "there is no champion"
    )
    click.echo(f"the record of {store.engine.url!r} holds: {found.rows} row{'s' * (found.rows != 1)}, {stand}")
    if found.signed_at is None:
        since = "the gate has signed no row yet"
    else:
        since = f"the gate signed row {found.signed_rows} on {found.signed_at:%Y-%m-%d %H:%M} UTC"
    left = found.rows - found.signed_rows
    open_to = ": these could be changed unseen by who can write to the database" if left else ""
    click.echo(f"{since}; {left or 'no'} entr{'y' if left == 1 else 'ies'} since{open_to}")
    if found.revoked:
        click.echo(f"{found.revoked} signed by a key that was revoked since: they count for nothing here")
    if found.bare:
        click.echo(
            f"{found.bare} of the signed rows tell{'s' * (found.bare == 1)} of a judgement without its envelope (an "
            "earlier version kept none): they stood so when the gate signed over them"
        )
    for text in unseen:
        click.echo(f"only the envelope was checked of {text}")


def _kept_in(path: Path) -> list[tuple[str, str | RecordHead]]:
    """(where, envelope or end of the record) of each line. Raises ConfigError: a line is neither, or there is none."""
    from pillsnap.core.errors import ConfigError
    from pillsnap.gate.envelope import RecordHead

    found: list[tuple[str, str | RecordHead]] = []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no text (UTF-8), so no rows of history --json and no envelope") from error
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: a row's text may hold U+2028
        if not line.strip():
            continue
        try:
            document = json.loads(line)
            is_envelope = "payload" in document
            kept = line.strip() if is_envelope else RecordHead(number=document["number"], hash=document["hash"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(f"{path}: line {number} is no row of history --json, and no envelope") from error
        found.append((f"{path.name} line {number}", kept))
    if not found:
        raise ConfigError(f"{path}: is empty")
    return found
