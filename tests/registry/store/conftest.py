"""A gated store on sqlite or PostgreSQL with versions whose words are signed here, and MLflow's server around it."""

from __future__ import annotations

import itertools
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mlflow.entities.model_registry import ModelVersionTag
from mlflow.exceptions import MlflowException

from pillsnap.core.files import sha256_file, sha256_files, sha256_json
from pillsnap.gate.decision import Verdict
from pillsnap.gate.envelope import ENVELOPE_TAG, ChampionRef, RecordHead, Statement, open_envelope, seal
from pillsnap.gate.keys import generate, load_private_key
from pillsnap.gate.trust import TrustRoot
from pillsnap.registry import audit
from pillsnap.registry.rules import record_head_in
from pillsnap.registry.verification import Findings, examine

NO_TRIGGERS = {
    "sqlite": ("DROP TRIGGER pillsnap_audit_no_update", "DROP TRIGGER pillsnap_audit_no_delete"),
    "postgresql": ("DROP TRIGGER pillsnap_audit_append_only ON pillsnap_audit",),
}


@dataclass
class Shelf:
    """A store, the folder that its versions' files lie in, and a gate's key."""

    store: Any
    folder: Path
    trust: TrustRoot
    key: Ed25519PrivateKey
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def version(self, name: str = "pills", **options: Any) -> str:
        """A new version with files of its own."""
        folder = self.folder / f"model-{next(self.numbers)}"
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"onnx " + folder.name.encode())
        (folder / "MLmodel").write_text("flavors: {onnx: {data: model.onnx}}\n")
        return self.registered(folder.as_uri(), name, **options)

    def registered(self, source: str, name: str = "pills", **options: Any) -> str:
        try:
            self.store.get_registered_model(name)
        except MlflowException:
            self.store.create_registered_model(name)
        return str(self.store.create_model_version(name, source, **options).version)

    def files(self, version: str, name: str = "pills") -> Path:
        location = self.store.get_model_version_download_uri(name, version)
        if location.startswith("runs:"):
            from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository

            location = RunsArtifactRepository.get_underlying_uri(location)
        if location.startswith("mlflow-artifacts:/"):
            return self.folder.parent / "destination" / location.removeprefix("mlflow-artifacts:/")
        return Path(location.removeprefix("file://"))

    def statement(self, version: str, verdict: str = "PROMOTE", name: str = "pills", **changes: Any) -> Statement:
        """What an honest gate would say now, but for ``changes``."""
        entry, files = self.store.get_model_version(name, version), self.files(version, name)
        before = entry.tags.get(ENVELOPE_TAG)
        old = open_envelope(before, self.trust.ring()) if before else None
        champion = self.champion(name)
        facts: dict[str, Any] = {
            "decision_id": uuid.uuid4().hex,
            "replaces": old.decision_id if old else None,
            "issued_at_ms": max(int(time.time() * 1000), old.issued_at_ms + 1 if old else 0),
            "model_name": name,
            "model_version": str(entry.version),
            "created_at_ms": entry.creation_timestamp,
            "bundle_sha256": sha256_file(files / "model.onnx"),
            "artifact_sha256": sha256_json(sha256_files(files)),
            "manifest_hash": "a" * 64,
            "policy_sha256": self.trust.policy().sha256,
            "evidence_sha256": "e" * 64,
            "champion": None
            if champion is None
            else ChampionRef(version=champion, bundle_sha256=sha256_file(self.files(champion, name) / "model.onnx")),
            "record": record_head_in(self.store.get_registered_model(name).tags),
            "verdict": Verdict(verdict),
            "reasons": () if verdict == "PROMOTE" else ("top1 81.0 % is under the target 85 %",),
            "figures": {"top1": "92.5 %"},
            "evidence_run_id": "r",
            "code": "test",
        }
        return Statement(**{**facts, **changes})

    def hand_in(self, statement: Statement | str, version: str, name: str = "pills", key: Any = None) -> None:
        text = statement if isinstance(statement, str) else seal(statement, key or self.key)
        self.store.set_model_version_tag(name, version, ModelVersionTag(ENVELOPE_TAG, text))

    def judged(self, verdict: str = "PROMOTE", name: str = "pills", **changes: Any) -> str:
        """A new version with the gate's word on it."""
        version = self.version(name)
        self.hand_in(self.statement(version, verdict, name, **changes), version, name)
        return version

    def promote(self, version: str, alias: str = "champion", name: str = "pills") -> None:
        self.store.set_registered_model_alias(name, alias, version)

    def champion(self, name: str = "pills", alias: str = "champion") -> str | None:
        found = self.store.get_registered_model(name).aliases.get(alias)
        return None if found is None else str(found)

    def tags(self, version: str, name: str = "pills") -> dict[str, str]:
        return dict(self.store.get_model_version(name, version).tags)

    def rows(self, **wanted: str) -> list[Any]:
        return [
            row for row in audit.entries(self.store.engine) if all(row[key] == value for key, value in wanted.items())
        ]

    def findings(self, *kept: str | RecordHead) -> Findings:
        """What `pillsnap registry verify` finds, with these envelopes and rows from elsewhere."""
        from pillsnap.registry.local import standing

        with audit.standing_still(self.store.engine) as connection:
            pairs = [(f"kept {number}", one) for number, one in enumerate(kept, start=1)]
            return examine(connection, standing(connection), self.trust.ring(), pairs)

    def problems(self, *kept: str | RecordHead) -> list[str]:
        return self.findings(*kept).problems

    @contextmanager
    def refused(self, words: str) -> Iterator[None]:
        """The block is refused with PERMISSION_DENIED in these words; the store stays as it is, and works."""
        before, stood = self.store.search_registered_models(), self.problems()
        with pytest.raises(MlflowException, match=words) as caught:
            yield
        assert caught.value.error_code == "PERMISSION_DENIED"
        assert caught.value.get_http_status_code() == 403
        after = self.store.search_registered_models()
        assert [dict(model) for model in before] == [dict(model) for model in after]
        assert self.problems() == stood

    def sql(self, statement: str, **values: Any) -> None:
        with self.store.engine.begin() as connection:
            connection.execute(sa.text(statement), values)

    def without_triggers(self) -> None:
        """As who owns the database can make it: rows of the record may be changed."""
        for statement in NO_TRIGGERS[self.store.engine.dialect.name]:
            self.sql(statement)


@pytest.fixture(scope="session")
def postgres_template(postgres: Any) -> Any:
    """The PostgreSQL server, with a database ``template`` that holds MLflow's tables and ours."""
    _open(postgres.create("template")).engine.dispose()
    return postgres


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of database. What the gate refuses does not hang on it; where SQL itself is tested, a test asks for both
    with ``parametrize("kind", …)``."""
    return str(request.param)


@pytest.fixture
def new_database(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Callable[[], str]:
    """``new_database()``: URI of a database with MLflow's tables, of this test alone."""

    def make() -> str:
        name = f"t{uuid.uuid4().hex}"
        if kind == "sqlite":
            shutil.copy(request.getfixturevalue("fresh_store"), tmp_path / f"{name}.db")
            return f"sqlite:///{tmp_path}/{name}.db"
        return str(request.getfixturevalue("postgres_template").create(name, "template"))

    return make


@pytest.fixture
def database(new_database: Callable[[], str]) -> str:
    """URI of the database under test."""
    return new_database()


@pytest.fixture
def second_database(new_database: Callable[[], str]) -> str:
    """URI of another one."""
    return new_database()


@pytest.fixture
def key(trust: TrustRoot, tmp_path: Path) -> Ed25519PrivateKey:
    generate(tmp_path / "gate.key", trust.keys_folder, now=datetime.now(UTC))
    return load_private_key(tmp_path / "gate.key")


@pytest.fixture
def shelf(database: str, trust: TrustRoot, key: Ed25519PrivateKey, tmp_path: Path) -> Iterator[Shelf]:
    store = _open(f"gated+{database}")
    yield Shelf(store, tmp_path / "files", trust, key)
    store.engine.dispose()


@pytest.fixture
def recorded(shelf: Shelf) -> Shelf:
    """Two champions followed each other and one wish was refused: judged, set, judged, set, judged, refused."""
    shelf.promote(shelf.judged())
    shelf.promote(shelf.judged())
    with pytest.raises(MlflowException):
        shelf.promote(shelf.judged("HOLD"))
    assert shelf.problems() == []
    return shelf


@pytest.fixture
def bad(shelf: Shelf) -> str:
    """A version that was rejected, beside a champion and a former one."""
    shelf.promote(shelf.judged())
    shelf.promote(shelf.judged())
    return shelf.judged("REJECT")


@pytest.fixture
def still_works(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each attack: what stands is explained by the record, and an honest version is promoted as ever."""
    if "shelf" not in request.fixturenames:
        yield
        return
    shelf = request.getfixturevalue("shelf")
    yield
    if shelf.store.search_registered_models():
        version = shelf.judged()
        shelf.promote(version)
        assert shelf.champion() == version
        assert shelf.problems() == []


@pytest.fixture
def served(
    database: str, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_uris: None
) -> Iterator[Callable[..., Any]]:
    """``served(method, path, body)``: MLflow's own web application on this database, started with the plain URI."""
    from mlflow.server import (
        ARTIFACTS_DESTINATION_ENV_VAR,
        BACKEND_STORE_URI_ENV_VAR,
        SERVE_ARTIFACTS_ENV_VAR,
        app,
        handlers,
    )

    destination = tmp_path / "destination"
    destination.mkdir()
    for name, value in {
        BACKEND_STORE_URI_ENV_VAR: database,
        ARTIFACTS_DESTINATION_ENV_VAR: destination.as_uri(),
        SERVE_ARTIFACTS_ENV_VAR: "true",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("_tracking_store", "_model_registry_store", "_artifact_repo"):
        monkeypatch.setattr(handlers, name, None)

    def ask(method: str, path: str, body: Any = None, data: bytes | None = None) -> Any:
        return app.test_client().open(path, method=method, json=body, data=data)

    assert ask("GET", "/api/2.0/mlflow/registered-models/search").status_code == 200
    yield ask
    handlers._get_model_registry_store().engine.dispose()


@pytest.fixture
def kept_uris(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's server makes its stores those of its whole process: not of the tests after this one."""
    from mlflow.tracking._model_registry import utils as registry
    from mlflow.tracking._tracking_service import utils as tracking

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(tracking, "_tracking_uri", None)
    monkeypatch.setattr(registry, "_registry_uri", None)


def _open(uri: str) -> Any:
    """MLflow warns of its own use of SQLAlchemy when its stores are imported: not where tests are collected."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pillsnap.registry.store import gated_store

        return gated_store(uri)
