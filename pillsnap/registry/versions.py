"""Model versions: registering a run's bundle with what the gate says of it, and setting aliases.

Nothing that stands in the registry is believed: an alias is set only after the decision was made again, from the
evidence of the version's run and the bytes of the version's bundle. Aliases: ``champion`` needs PROMOTE,
``challenger`` at least HOLD.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pillsnap.core.errors import ConfigError, EvidenceError, GateRefusedError, StoreError
from pillsnap.core.evidence import Evidence
from pillsnap.gate.decision import Decision, Verdict, decide
from pillsnap.gate.policy import Policy
from pillsnap.inference.session import PillSession
from pillsnap.tracking.models import MODEL_URI_TAG, fetched_bundle
from pillsnap.tracking.run import find_artifact
from pillsnap.tracking.store import connect, first_line, store_errors

CHAMPION = "champion"
EVIDENCE_ARTIFACT = "evaluation/evidence.json"
_ALLOWED: dict[str, frozenset[Verdict]] = {
    CHAMPION: frozenset({Verdict.PROMOTE}),
    "challenger": frozenset({Verdict.PROMOTE, Verdict.HOLD}),
}
ALIASES = tuple(_ALLOWED)
_TAG = "gate."
_LONGEST_TAG = 5000


@dataclass(frozen=True)
class Judged:
    """A model version and what the gate says of it now."""

    name: str
    version: str
    decision: Decision


def register(run_id: str, name: str, policy: Policy) -> Judged:
    """Make the bundle of a run a new version of a registered model, with readable ``gate.*`` tags.

    Registering is open to every run, promotion is not.

    Raises:
        StoreError: the registry cannot be reached, or the run has no bundle.
        EvidenceError: the run has no evidence.
    """
    client = connect()
    with store_errors():
        run = client.get_run(run_id)
    model_uri = run.data.tags.get(MODEL_URI_TAG)
    if model_uri is None:
        raise StoreError(
            f"run {run_id} has no bundle; a run that exports and evaluates is made by: pillsnap run; "
            "one that ended while this store did not answer is completed by: pillsnap tracking sync"
        )
    evidence = _evidence_of_run(run_id)
    with fetched_bundle(model_uri) as bundle:
        decision = _judge(bundle, evidence, policy)
    with store_errors():
        _ensure_model(client, name)
        version = client.create_model_version(name, model_uri, run_id=run_id, description=_describe(decision, run_id))
        _set_tags(client, name, version.version, decision)
    return Judged(name, str(version.version), decision)


def promote(name: str, version: str, alias: str, policy: Policy) -> Judged:
    """Give a version an alias, if the gate allows it.

    Raises:
        ConfigError: an alias that the platform does not have.
        GateRefusedError: the gate says no; the message holds its reasons.
        StoreError: the registry cannot be reached, or there is no such version.
    """
    _check_alias(alias)
    client = connect()
    entry = find_version(client, name, version)
    evidence = _evidence_of_run(entry.run_id or "")
    with fetched_bundle(f"models:/{name}/{entry.version}") as bundle:
        decision = _judge(bundle, evidence, policy)
    with store_errors():  # the newest word of the gate stands at the version, also where it is a refusal
        _set_tags(client, name, entry.version, decision)
        client.update_model_version(name, entry.version, _describe(decision, entry.run_id or ""))
    if decision.verdict not in _ALLOWED[alias]:
        reasons = "".join(f"\n  - {reason}" for reason in decision.reasons)
        raise GateRefusedError(f"{name} version {entry.version} does not become {alias}: {decision.verdict}{reasons}")
    with store_errors():
        client.set_registered_model_alias(name, alias, entry.version)
    return Judged(name, str(entry.version), decision)


@contextmanager
def champion_session(name: str, alias: str = CHAMPION) -> Iterator[tuple[PillSession, str]]:
    """The session of the version that carries an alias, and its version number.

    Raises:
        ConfigError: an alias that the platform does not have.
        StoreError: there is none.
        GateRefusedError: the alias was set past the gate, or the file is not the one that was judged.
    """
    _check_alias(alias)
    client = connect()
    try:
        entry = client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        raise StoreError(
            f"the registry has no {alias} of {name!r} ({first_line(error)[:200]}); "
            f"set one with: pillsnap registry promote VERSION --name {name}"
        ) from error
    with fetched_bundle(f"models:/{name}/{entry.version}") as bundle:
        session = PillSession.load(bundle)
    verdict = entry.tags.get(f"{_TAG}verdict", "none")
    if verdict not in _ALLOWED[alias]:
        raise GateRefusedError(
            f"{name} version {entry.version} is {alias}, but its verdict is {verdict}: the alias was set past the "
            f"gate. Ask the gate with: pillsnap registry promote {entry.version} --name {name} --alias {alias}"
        )
    if entry.tags.get(f"{_TAG}bundle_sha256") != session.sha256:
        raise GateRefusedError(
            f"{name} version {entry.version}: its file ({session.sha256[:12]}) is not the one that the gate judged "
            f"({entry.tags.get(f'{_TAG}bundle_sha256', 'none')[:12]}); register the run again"
        )
    yield session, str(entry.version)


def _check_alias(alias: str) -> None:
    if alias not in _ALLOWED:
        raise ConfigError(f"--alias {alias!r}: the gate knows {' and '.join(ALIASES)}")


def find_version(client: MlflowClient, name: str, version: str) -> ModelVersion:
    """A version by its number, or the newest one by ``latest``. Raises StoreError."""
    with store_errors():
        versions = client.search_model_versions(f"name = '{check_name(name)}'")
    if not versions:
        raise StoreError(f"the registry has no model {name!r}; register one with: pillsnap registry register RUN_ID")
    numbers = sorted(int(entry.version) for entry in versions)
    wanted = str(numbers[-1]) if version == "latest" else version
    for entry in versions:
        if str(entry.version) == wanted:
            return entry
    raise StoreError(f"{name} has no version {version}; there are {', '.join(map(str, numbers))}")


def list_versions(name: str) -> list[tuple[ModelVersion, tuple[str, ...]]]:
    """All versions of a model, the newest first, each with its aliases. Raises StoreError."""
    client = connect()
    find_version(client, name, "latest")
    with store_errors():
        aliases: dict[str, str] = client.get_registered_model(name).aliases
        versions = client.search_model_versions(f"name = '{check_name(name)}'")
    return [
        (entry, tuple(alias for alias, number in aliases.items() if str(number) == str(entry.version)))
        for entry in sorted(versions, key=lambda entry: -int(entry.version))
    ]


def _judge(bundle: Path, evidence: Evidence, policy: Policy) -> Decision:
    """Decide on the bytes of a bundle; its test images must be those of the data set that it was trained on."""
    session = PillSession.load(bundle)
    return decide(
        evidence,
        policy,
        bundle_sha256=session.sha256,
        manifest_hash=session.metadata.provenance.manifest_hash,
    )


def _evidence_of_run(run_id: str) -> Evidence:
    with tempfile.TemporaryDirectory(prefix="pillsnap-") as folder:
        try:
            path = find_artifact(run_id, EVIDENCE_ARTIFACT, Path(folder))
        except (StoreError, OSError) as error:
            raise EvidenceError(
                f"run {run_id} has no {EVIDENCE_ARTIFACT}: it was never evaluated, or the store lost it. "
                "A run that evaluates is made by: pillsnap run"
            ) from error
        return Evidence.load(path)


def _ensure_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name, description="Pill recognition; versions become champion through the gate.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _set_tags(client: MlflowClient, name: str, version: str, decision: Decision) -> None:
    tags = {
        "verdict": str(decision.verdict),
        "bundle_sha256": decision.bundle_sha256,
        "manifest_hash": decision.manifest_hash,
        "policy_sha256": decision.policy_sha256,
        "reasons": "; ".join(decision.reasons)[:_LONGEST_TAG] or "every target is met",
        **{check.metric: check.shown[0] for check in decision.checks},
    }
    for key, value in tags.items():
        client.set_model_version_tag(name, version, _TAG + key, value)


def _describe(decision: Decision, run_id: str) -> str:
    return f"{decision.markdown()}\n\nEvidence and pictures: run `{run_id}`, folder `evaluation`."


def check_name(name: str) -> str:
    """The name of a registered model, as MLflow and its search take it. Raises ConfigError."""
    if not name.strip() or set(name) & set("'/:"):
        raise ConfigError(f"a model's name cannot be empty or hold a quotation mark, a slash or a colon: {name!r}")
    return name
