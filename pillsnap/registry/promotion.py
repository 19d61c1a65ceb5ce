"""Setting and taking back aliases, and what is to be seen of versions. The registry decides; here people are answered.

The same store that answers the web UI says yes or no, so both ways are one. Before it is asked, the files are proven
here too: a server without the gate would say yes to everything.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pillsnap.core.errors import GateRefusedError, StoreError, TamperedError
from pillsnap.core.evidence import EVALUATION_FOLDER, EVIDENCE_FILE, Evidence
from pillsnap.core.files import sha256_file
from pillsnap.gate.admission import CANDIDATE, CHAMPION
from pillsnap.gate.envelope import Statement
from pillsnap.gate.keys import KeyRing
from pillsnap.gate.trust import TrustRoot
from pillsnap.registry.version_page import time_text, waiting_line
from pillsnap.registry.versions import (
    aliased_version,
    check_alias,
    find_version,
    former_champions,
    proven_files,
    service_seen,
    statement_of,
    trusted_statement,
    waiting_since,
)
from pillsnap.tracking.fetching import find_artifact
from pillsnap.tracking.store import connect, first_line, registry_errors

_MOST_MOVED = 10


def submit(name: str, version: str) -> ModelVersion:
    """Ask the gate to judge a version: give it the mark ``candidate``. Raises StoreError."""
    client = connect()
    entry = find_version(client, name, version)
    with registry_errors():
        client.set_model_version_tag(name, entry.version, CANDIDATE, "yes")
    return entry


def promote(name: str, version: str, alias: str = CHAMPION) -> Statement:
    """Give a version an alias, if it has proven itself for it.

    Raises:
        ConfigError: an alias that the platform does not have.
        GateRefusedError: the gate says no, or nothing yet; the message holds its reasons.
        StoreError: the registry cannot be reached, or there is no such version.
    """
    check_alias(alias)
    client = connect()
    return _set_alias(client, find_version(client, name, version), alias)


def rollback(name: str, version: str | None = None) -> tuple[str | None, Statement]:
    """Make a former champion champion again, however old its evidence is.

    Args:
        name: of the registered model.
        version: which one; by default the one before the present champion.

    Returns:
        The version that was champion until now (None: there was none), and what the gate had said of the new one.

    Raises:
        GateRefusedError: that version was never champion, or its envelope or files do not stand the check.
        StoreError: the registry cannot be reached, or there was no other champion.
    """
    client = connect()
    find_version(client, name, "latest")
    present = aliased_version(client, name, CHAMPION)
    number = None if present is None else str(present.version)
    former = [entry for entry in former_champions(client, name) if entry != number]
    if version is None and not former:
        since = f"before version {number} " if number else ""
        raise StoreError(f"{name}: there is no former champion {since}to go back to")
    wanted = version or former[0]
    if wanted not in former:
        raise GateRefusedError(
            f"{name} version {wanted} was never champion before (those that were: {', '.join(former) or 'none'}); "
            f"a new one is promoted by: pillsnap registry promote {wanted} --name {name}"
        )
    return number, _set_alias(client, find_version(client, name, wanted), CHAMPION)


def describe_word(entry: ModelVersion, ring: KeyRing) -> str:
    """What the gate says of a version, in a line: checked, not copied from its tags."""
    try:
        statement = statement_of(entry, ring)
    except TamperedError as error:
        return f"NOT TRUSTED ({error})"
    if statement is None:
        asked = waiting_since(entry)
        return "not judged" + (f", candidate since {time_text(asked.at)} by {asked.actor}" if asked else "")
    figures = ", ".join(
        f"{key} {statement.figures[key]}" for key in ("top1", "top5", "real_top1") if key in statement.figures
    )
    return f"{statement.verdict} on {statement.issued_at:%Y-%m-%d}" + (f" ({figures})" if figures else "")


def waiting_for_service(entries: Iterable[ModelVersion]) -> str:
    """What is to be said where versions wait and no gate service has looked since; else empty. Raises StoreError."""
    waiting = {str(entry.version): asked for entry in entries if (asked := waiting_since(entry)) is not None}
    return waiting_line(waiting, service_seen(connect()), datetime.now(UTC)) if waiting else ""


def evidence_of(entry: ModelVersion, ring: KeyRing) -> tuple[Statement, Evidence]:
    """What the gate signed of a version, and the evidence that it signed.

    Raises:
        GateRefusedError: the version was not judged, or not by a trusted key.
        TamperedError: the evidence that is kept is not the one that was signed.
        StoreError: the store has lost it.
    """
    statement = trusted_statement(entry, ring)
    with tempfile.TemporaryDirectory(prefix="pillsnap-") as folder:
        path = find_artifact(statement.evidence_run_id, f"{EVALUATION_FOLDER}/{EVIDENCE_FILE}", Path(folder))
        if sha256_file(path) != statement.evidence_sha256:
            raise TamperedError(
                f"{entry.name} version {entry.version}: the evidence in run {statement.evidence_run_id} is not the one "
                "that was signed; judge again"
            )
        return statement, Evidence.load(path)


def compare(name: str, first: str, second: str) -> list[tuple[str, str, str]]:
    """(what, of the first, of the second) of two judged versions. Raises as `evidence_of`."""
    client, ring = connect(), TrustRoot.find().ring()
    a, b = (evidence_of(find_version(client, name, version), ring) for version in (first, second))
    rows = [
        ("verdict", str(a[0].verdict), str(b[0].verdict)),
        ("judged", f"{a[0].issued_at:%Y-%m-%d %H:%M}", f"{b[0].issued_at:%Y-%m-%d %H:%M}"),
    ]
    rows += [
        (key, a[0].figures.get(key, "-"), b[0].figures.get(key, "-"))
        for key in dict.fromkeys((*a[0].figures, *b[0].figures))
    ]
    for title, picked in (("bundle", "bundle_sha256"), ("manifest", "manifest_hash"), ("policy", "policy_sha256")):
        rows.append((title, getattr(a[0], picked)[:12], getattr(b[0], picked)[:12]))
    failures = [", ".join(evidence.failures[:8]) or "none" for _, evidence in (a, b)]
    rows.append(("classes under 70 %", failures[0], failures[1]))
    worse = {result.kcode: result.top1 for result in a[1].classes if result.top1 is not None}
    moved = [
        (result.top1 - worse[result.kcode], result.kcode)
        for result in b[1].classes
        if result.top1 is not None and result.kcode in worse and result.top1 != worse[result.kcode]
    ]
    for change, kcode in sorted(moved, key=lambda item: -abs(item[0]))[:_MOST_MOVED]:
        rows.append((f"class {kcode}", f"{worse[kcode]:.0%}", f"{worse[kcode] + change:.0%}"))
    return rows


def _set_alias(client: MlflowClient, entry: ModelVersion, alias: str) -> Statement:
    with proven_files(entry, alias, TrustRoot.find().ring()) as (_, statement):
        pass
    try:
        client.set_registered_model_alias(entry.name, alias, entry.version)
    except MlflowException as error:
        if error.error_code == "PERMISSION_DENIED":
            raise GateRefusedError(str(error.message)) from error
        raise StoreError(f"the registry does not set {alias}: {first_line(error)[:300]}") from error
    return statement
