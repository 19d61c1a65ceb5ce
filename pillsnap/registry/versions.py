"""Model versions: making one of a run, finding them, their files, and what the gate has signed of them.

Nothing that stands readable in the registry is believed (tags, descriptions, aliases): only an envelope that a trusted
key has signed, and only for the very files that were downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pillsnap.core.errors import ConfigError, GateRefusedError, StoreError, TamperedError
from pillsnap.core.passwords import hide_passwords
from pillsnap.gate.admission import NEEDED, VersionFacts, check_bound, check_verdict
from pillsnap.gate.envelope import ENVELOPE_TAG, RecordHead, Statement, open_envelope
from pillsnap.gate.keys import KeyRing
from pillsnap.registry.rules import (
    FORMER_CHAMPIONS_TAG,
    HISTORY_TAG,
    SERVICE_SEEN_TAG,
    former_champions_in,
    record_head_in,
)
from pillsnap.registry.version_page import ASKED, Event, history_in, not_judged, time_in, time_text
from pillsnap.tracking.fetching import MODEL_URI_TAG, fetched_model, model_digests
from pillsnap.tracking.store import GATED, connect, registry_errors, registry_uri, store_errors, tracking_uri

ALIASES = tuple(NEEDED)
BUNDLES = "pillsnap-bundles"
"""Experiment of the bundles that were registered as files."""


@dataclass(frozen=True)
class VersionFiles:
    """The files of a version as they were downloaded, and what they are."""

    bundle: Path
    facts: VersionFacts


def register(run_id: str, name: str) -> ModelVersion:
    """Make the bundle of a run a new version of a registered model. Open to every run; promotion is not.

    Raises:
        ConfigError: a name that MLflow cannot take.
        StoreError: the registry cannot be reached, or the run has no bundle.
    """
    check_name(name)
    client = connect()
    with store_errors():
        run = client.get_run(run_id)
    model_uri = run.data.tags.get(MODEL_URI_TAG)
    if model_uri is None:
        raise StoreError(
            f"run {run_id} has no bundle; a run that exports and evaluates is made by: pillsnap run; "
            "one that ended while this store did not answer is completed by: pillsnap tracking sync"
        )
    claims = run.data.tags.get("mlflow.note.content", "No metrics were logged with this version.")
    with registry_errors():
        _ensure_model(client, name)
        return client.create_model_version(
            name,
            model_uri,
            run_id=run_id,
            description=not_judged(run_id, claims),
            model_id=model_uri.removeprefix("models:/"),  # a server with logins asks whose files these are
        )


def register_bundle(bundle: Path, name: str) -> ModelVersion:
    """Make a file a new version: it becomes the model of a run of its own, which names what it was made from.

    Raises:
        BundleError: it is not a bundle.
        ConfigError: a name that MLflow cannot take.
        StoreError: the store cannot be reached, or keeps other bytes.
    """
    # here, because a server that only follows versions makes none, and has not what it takes
    from pillsnap.tracking.models import load_bundle
    from pillsnap.tracking.run import tracked_run
    from pillsnap.tracking.run_model import BUNDLE_PREFIX, log_bundle

    check_name(name)
    metadata = load_bundle(bundle)[1]
    with tracked_run(f"bundle {bundle.stem}", experiment=BUNDLES) as run:
        run.set_tags(
            {
                "pillsnap.source_sha256": metadata.source_sha256 or "",
                "pillsnap.training_run": metadata.provenance.run_id,
            }
        )
        parity, source = metadata.parity, metadata.source_parity
        claims = {
            "size_mb": bundle.stat().st_size / 1e6,
            "agrees_with_pytorch": None if parity is None else parity.top1_agreement,
            "agrees_with_source": None if source is None else source.top1_agreement,
        }
        run.log_metrics({f"{BUNDLE_PREFIX}{key}": value for key, value in claims.items() if value is not None})
        if log_bundle(run, bundle) is None:
            raise StoreError(f"the MLflow store went away while {bundle} was sent; say it again when it answers")
    return register(run.run_id, name)


@contextmanager
def version_files(entry: ModelVersion) -> Iterator[VersionFiles]:
    """Download a version and compute its digests.

    Raises:
        StoreError: the files cannot be had, or hold no ONNX file.
        DataError: there is a link among them.
    """
    with fetched_model(f"models:/{entry.name}/{entry.version}") as model:
        yield VersionFiles(model.bundle, version_facts(entry, model_digests(model.folder)))


def version_facts(entry: ModelVersion, digests: tuple[str, str]) -> VersionFacts:
    """What a version is, with the digests of its files: of model.onnx, and of all."""
    bundle_sha256, artifact_sha256 = digests
    return VersionFacts(
        name=entry.name,
        version=str(entry.version),
        created_at_ms=int(entry.creation_timestamp),
        bundle_sha256=bundle_sha256,
        artifact_sha256=artifact_sha256,
    )


def statement_of(entry: ModelVersion, ring: KeyRing) -> Statement | None:
    """What the gate has signed of a version; None: nothing. Raises TamperedError: not signed by a trusted key."""
    envelope = entry.tags.get(ENVELOPE_TAG)
    if envelope is None:
        return None
    try:
        return open_envelope(envelope, ring)
    except TamperedError as error:
        raise TamperedError(f"{entry.name} version {entry.version}: its envelope {error}") from error


def trusted_statement(entry: ModelVersion, ring: KeyRing) -> Statement:
    """What the gate has signed of a version. Raises GateRefusedError: nothing, or nothing that can be trusted."""
    try:
        statement = statement_of(entry, ring)
    except TamperedError as error:
        raise GateRefusedError(str(error)) from error
    if statement is None:
        raise GateRefusedError(
            f"{entry.name} version {entry.version}: the gate has not judged it; mark it as candidate: "
            f"pillsnap registry submit {entry.version} --name {entry.name}"
        )
    return statement


@contextmanager
def proven_files(entry: ModelVersion, alias: str, ring: KeyRing) -> Iterator[tuple[VersionFiles, Statement]]:
    """The files of a version that has proven itself for ``alias``, with what the gate signed of them.

    Raises:
        GateRefusedError: no envelope of a trusted key, or one for another version, other files or too low a verdict.
        StoreError: the files cannot be had.
    """
    statement = trusted_statement(entry, ring)
    check_verdict(statement, alias)
    with version_files(entry) as files:
        check_bound(statement, files.facts)
        yield files, statement


def aliased_version(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version that carries an alias. Raises StoreError: the registry cannot be reached."""
    with registry_errors():
        try:
            return client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise


def find_version(client: MlflowClient, name: str, version: str) -> ModelVersion:
    """A version by its number, or the newest one by ``latest``. Raises StoreError."""
    versions = _versions(client, name)
    if version == "latest":
        return versions[0]
    for entry in versions:
        if str(entry.version) == version:
            return entry
    numbers = ", ".join(str(entry.version) for entry in reversed(versions))
    raise StoreError(f"{name} has no version {version}; there are {numbers}")


def list_versions(name: str) -> list[tuple[ModelVersion, tuple[str, ...]]]:
    """All versions of a model, the newest first, each with its aliases. Raises StoreError."""
    client = connect()
    versions = _versions(client, name)
    with registry_errors():
        aliases: dict[str, str] = client.get_registered_model(name).aliases
    return [
        (entry, tuple(alias for alias, number in aliases.items() if str(number) == str(entry.version)))
        for entry in versions
    ]


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    """All versions of a model, at least one, the newest first. Raises StoreError."""
    with registry_errors():
        versions = client.search_model_versions(f"name = '{check_name(name)}'")
    if not versions:
        raise StoreError(
            f"the registry has no model {name!r}; register one with: pillsnap registry register RUN_ID "
            f"(looked in {hide_passwords(registry_uri(tracking_uri())).removeprefix(GATED)})"
        )
    return sorted(versions, key=lambda entry: -int(entry.version))


def service_seen(client: MlflowClient) -> datetime | None:
    """When a gate service looked last; None: never, or in another registry. Raises StoreError."""
    with registry_errors():
        found = [time_in(model.tags.get(SERVICE_SEEN_TAG, "")) for model in pages(client.search_registered_models)]
    return max(filter(None, found), default=None)


def show_service(client: MlflowClient) -> None:
    """Leave a sign that a gate service is there, at one model: it stands for all. Raises StoreError."""
    with registry_errors():
        for model in client.search_registered_models(max_results=1):
            client.set_registered_model_tag(model.name, SERVICE_SEEN_TAG, time_text(datetime.now(UTC)))


def waiting_since(entry: ModelVersion) -> Event | None:
    """Who asked for a judgement of a version that has none, and when; None: nobody, or it is judged."""
    return None if ENVELOPE_TAG in entry.tags else history_in(entry.tags.get(HISTORY_TAG, "")).get(ASKED)


def former_champions(client: MlflowClient, name: str) -> list[str]:
    """Versions that were champion, the newest first. Raises StoreError."""
    with registry_errors():
        tags = client.get_registered_model(check_name(name)).tags
    try:
        return former_champions_in(tags)
    except ValueError as error:
        raise StoreError(
            f"{name}: its tag {FORMER_CHAMPIONS_TAG} cannot be read; see: pillsnap registry history"
        ) from error


def record_head(client: MlflowClient, name: str) -> RecordHead | None:
    """Where the registry's record ends now; None: this registry keeps none. Raises StoreError."""
    with registry_errors():
        tags = client.get_registered_model(check_name(name)).tags
    return record_head_in(tags)


def check_alias(alias: str) -> None:
    """Refuse an alias that the platform does not have. Raises ConfigError."""
    if alias not in ALIASES:
        raise ConfigError(f"--alias {alias!r}: the gate knows {' and '.join(ALIASES)}")


def check_name(name: str) -> str:
    """The name of a registered model, as MLflow and its search take it. Raises ConfigError."""
    if not name.strip() or set(name) & set("'/:"):
        raise ConfigError(f"a model's name cannot be empty or hold a quotation mark, a slash or a colon: {name!r}")
    return name


def _ensure_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name, description="Pill recognition; versions become champion through the gate.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def pages(search: Callable[..., Any]) -> Iterator[Any]:
    """What one of the client's searches finds, page by page."""
    token = None
    while True:
        page = search(page_token=token) if token else search()
        yield from page
        token = page.token
        if not token:
            return
