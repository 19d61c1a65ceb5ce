"""``pillsnap registry history`` and ``verify``: the record of what the registry's gate was asked for."""

from __future__ import annotations

import json

import click


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
def verify() -> None:
    """Check the record's chain, and that every champion stands there by it and by the gate's word (exit status 1)."""
    from pillsnap.core.errors import TamperedError
    from pillsnap.registry import audit
    from pillsnap.registry.local import guarded_aliases, guarded_stages, open_registry, unproven

    store = open_registry()
    with audit.standing_still(store.engine) as connection:
        aliases, stages = guarded_aliases(connection), guarded_stages(connection)
        problems = audit.problems(connection, aliases, stages)
    if problems:
        raise TamperedError("the record of the registry does not hold:" + "".join(f"\n  - {text}" for text in problems))
    wrong, unseen = unproven(store, aliases, stages)
    if wrong:
        raise TamperedError(
            "the record holds, but what stands there has not proven itself:" + "".join(f"\n  - {t}" for t in wrong)
        )
    rows = sum(1 for _ in audit.entries(store.engine))
    stand = "every champion and challenger explained and proven" if aliases or stages else "there is no champion"
    click.echo(f"the record of {store.engine.url!r} holds: {rows} row{'s' * (rows != 1)}, {stand}")
    for text in unseen:
        click.echo(f"only the envelope was checked of {text}")
