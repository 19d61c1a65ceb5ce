"""MLflow's registry on a database, with the gate in it: the store of ``gated+sqlite`` and ``gated+postgresql``.

Whoever asks (web UI, REST, any client, the command line in this process), the alias ``champion`` needs what the gate
has signed for that very version and its very files. Everything that `pillsnap.registry.rules` does not call guarded is
MLflow's own behaviour. A refusal is PERMISSION_DENIED with a sentence that says what is missing.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from mlflow.entities.model_registry import ModelVersionTag, RegisteredModelTag
from mlflow.entities.model_registry.model_version_stages import STAGE_ARCHIVED, get_canonical_stage
from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES
from mlflow.exceptions import MlflowException
from mlflow.prompt.constants import IS_PROMPT_TAG_KEY
from mlflow.store.model_registry.dbmodels.models import SqlRegisteredModelTag
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from mlflow.store.model_registry.sqlalchemy_workspace_store import WorkspaceAwareSqlAlchemyStore
from sqlalchemy.orm import Session

from pillsnap.core.errors import ConfigError, GateRefusedError, PillSnapError, TamperedError
from pillsnap.gate.admission import (
    CHAMPION,
    CLOCK_TOLERANCE,
    NEEDED,
    Terms,
    VersionFacts,
    check_bound,
    check_fresh,
    check_verdict,
)
from pillsnap.gate.envelope import ENVELOPE_TAG, ChampionRef, Statement, open_envelope
from pillsnap.gate.trust import TrustRoot
from pillsnap.registry import audit
from pillsnap.registry.actor import Role, current_actor
from pillsnap.registry.artifacts import facts_at
from pillsnap.registry.question import Question, refusal
from pillsnap.registry.rules import (
    DECISION_TAG,
    FIGURES_TAG,
    FORMER_CHAMPIONS_TAG,
    HASHES_TAG,
    HISTORY_TAG,
    REASONS_TAG,
    RECORD_TAG,
    SERVICE_SEEN_TAG,
    STAGES,
    TAG_PREFIX,
    asks_for_judgement,
    check_free_tag,
    former_champions_in,
    guarded_alias,
)
from pillsnap.registry.version_page import (
    ASKED,
    JUDGED,
    REGISTERED,
    Event,
    became,
    history_in,
    time_in,
    time_text,
    waits,
    with_event,
)
from pillsnap.tracking.store import GATED

_SUPPORTED = {"sqlite", "postgresql"}
_FIRST_FIGURES = ("top1", "top5", "real_top1", "latency_p95_ms", "size_mb")
_NO_COPY = (
    "To promote, set the alias champion (Aliases ✎ on the version's page). This button only copies: the copy would be "
    "a new version that nobody has judged"
)


def gated_store(store_uri: str, tracking_uri: str | None = None) -> SqlAlchemyStore:
    """The store of a URI, with or without ``gated+`` before it. MLflow calls it through the entry points.

    Raises:
        MlflowException: a database that the gate does not support.
    """
    uri = store_uri.removeprefix(GATED)
    if uri.split("://")[0].split("+")[0] not in _SUPPORTED:
        raise MlflowException.invalid_parameter_value(
            f"the gate's registry runs on {' and '.join(sorted(_SUPPORTED))}, not on {uri.split('://')[0]}"
        )
    return _GatedWorkspaceStore(uri) if MLFLOW_ENABLE_WORKSPACES.get() else GatedStore(uri)


class _Gate(SqlAlchemyStore):
    """The guarded methods. A mixin, because MLflow has two stores for databases."""

    def __init__(self, db_uri: str, read_db_uri: str | None = None) -> None:
        super().__init__(db_uri, read_db_uri)
        audit.prepare_tables(self.engine)
        self._own_session = self.ManagedSessionMaker
        self._open = threading.local()
        self.ManagedSessionMaker = self._joining_session

    # ---- what the gate signs

    def get_registered_model(self, name: str) -> Any:
        """MLflow's own, and where the record ends now: the gate signs it, and asks over the network."""
        model = super().get_registered_model(name)
        with self.ManagedSessionMaker() as session:  # after the other: two at a time could wait for each other
            end = audit.head(session)
        if not model._is_prompt():
            model._add_tag(RegisteredModelTag(RECORD_TAG, f"{end.number} {end.hash}"))
        return model

    # ---- aliases and stages

    def set_registered_model_alias(self, name: str, alias: str, version: Any) -> None:
        """A guarded alias goes only to a version that has proven itself for it."""
        with self._asked("set", name, str(version), alias) as asked:
            guarded = guarded_alias(alias)
            if guarded is None:
                super().set_registered_model_alias(name, alias, version)
                if asks_for_judgement(alias):
                    self._note_question(name, version, asked.actor.name)
                return
            asked.actor.must_be(Role.RELEASE_MANAGER, f"setting {guarded}")
            facts = self._facts(name, version)
            with self._transaction() as session:
                statement = self._admit(session, guarded, facts)
                before = self._alias_now(session, name, guarded)
                super().set_registered_model_alias(name, alias, version)
                if guarded == CHAMPION:
                    self._remember_champion(session, name, facts.version)
                self._note_alias(name, version, guarded, asked.actor.name)
                audit.append(session, asked.entry(facts, statement, alias=guarded, before=before))

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        """Taking a guarded alias away is for release managers, and stays in the record."""
        with self._asked("deleted", name, "", alias) as asked:
            if alias not in NEEDED:  # a look-alike too: from before the gate was here
                super().delete_registered_model_alias(name, alias)
                return
            asked.actor.must_be(Role.RELEASE_MANAGER, f"taking {alias} away")
            with self._transaction() as session:
                before = self._alias_now(session, name, alias)
                super().delete_registered_model_alias(name, alias)
                if before:
                    audit.append(session, asked.entry(None, None, alias=alias, before=before))

    def transition_model_version_stage(
        self, name: str, version: Any, stage: str, archive_existing_versions: bool
    ) -> Any:
        """The stages of MLflow 2: Production as the champion, Staging as the challenger."""
        with self._asked("stage", name, str(version), stage) as asked:
            entry = self.get_model_version(name, version)
            guarded = STAGES.get(get_canonical_stage(stage))
            leaves = STAGES.get(str(entry.current_stage))
            if guarded is None and leaves is None and not archive_existing_versions:
                return super().transition_model_version_stage(name, version, stage, archive_existing_versions)
            asked.actor.must_be(Role.RELEASE_MANAGER, f"moving a version between {entry.current_stage} and {stage}")
            facts = self._facts(name, version) if guarded else None
            with self._transaction() as session:
                statement = self._admit(session, guarded, facts) if guarded and facts else None
                number = int(entry.version)  # as a text, MLflow cannot archive on PostgreSQL
                archived = self._others_in(session, name, number, stage) if archive_existing_versions else []
                moved = super().transition_model_version_stage(name, number, stage, archive_existing_versions)
                if guarded:
                    self._note_alias(name, number, guarded, asked.actor.name)
                reason = f"by version {moved.version}, which became {moved.current_stage}"
                for other in archived:
                    audit.append(
                        session, asked.entry(None, None, alias=STAGE_ARCHIVED, version=str(other), reason=reason)
                    )
                audit.append(session, asked.entry(facts, statement, alias=str(moved.current_stage)))
                return moved

    def _others_in(self, session: Session, name: str, version: int, stage: str) -> list[int]:
        wanted = get_canonical_stage(stage)
        versions = self._get_registered_model(session, name).model_versions
        return sorted(v.version for v in versions if v.current_stage == wanted and v.version != version)

    # ---- tags

    def set_model_version_tag(self, name: str, version: Any, tag: ModelVersionTag) -> None:
        """The gate's word comes as one tag, and is taken only where it is signed for this version."""
        if tag.key == ENVELOPE_TAG:
            self._take_word(name, version, str(tag.value))
            return
        with self._asked("tagged", name, str(version), "") as asked:
            self._check_tag(name, tag.key)
        super().set_model_version_tag(name, version, tag)
        if asks_for_judgement(tag.key, str(tag.value)):
            self._note_question(name, version, asked.actor.name)

    def delete_model_version_tag(self, name: str, version: Any, key: str) -> None:
        """Not the gate's."""
        with self._asked("untagged", name, str(version), ""):
            if key.startswith(TAG_PREFIX):  # a look-alike from before the gate was here may go
                check_free_tag(key)
        super().delete_model_version_tag(name, version, key)

    def set_registered_model_tag(self, name: str, tag: RegisteredModelTag) -> None:
        """Not the gate's, but for its service's sign of life, which is the time of this clock whatever it says."""
        with self._asked("tagged", name, "", "") as asked:
            if tag.key == SERVICE_SEEN_TAG:
                asked.actor.must_be(Role.GATE, f"writing {SERVICE_SEEN_TAG}")
                tag = RegisteredModelTag(SERVICE_SEEN_TAG, time_text(datetime.now(UTC)))
            else:
                self._check_tag(name, tag.key)
        super().set_registered_model_tag(name, tag)

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        """Not the gate's."""
        with self._asked("untagged", name, "", ""):
            if key.startswith(TAG_PREFIX):
                check_free_tag(key)
        super().delete_registered_model_tag(name, key)

    def create_registered_model(
        self, name: str, tags: Any = None, description: Any = None, deployment_job_id: Any = None
    ) -> Any:
        """Without tags of the gate."""
        with self._asked("created", name, "", ""):
            for tag in tags or []:
                check_free_tag(tag.key)
        return super().create_registered_model(name, tags, description, deployment_job_id)

    def create_model_version(
        self, name: str, source: str, run_id: Any = None, tags: Any = None, *args: Any, **options: Any
    ) -> Any:
        """Without tags of the gate, and no copy of a version: MLflow's button *Promote model* makes one, which promotes
        nothing.
        """
        with self._asked("created", name, "", "") as asked:
            if str(source).startswith("models:/") and "/" in str(source).removeprefix("models:/"):
                raise GateRefusedError(_NO_COPY)
            for tag in tags or []:
                self._check_tag(name, tag.key)
        if not any(tag.key == IS_PROMPT_TAG_KEY for tag in tags or []):  # nobody judges a prompt
            first = with_event("", REGISTERED, datetime.now(UTC), asked.actor.name)
            tags = [*(tags or []), ModelVersionTag(HISTORY_TAG, first)]
        return super().create_model_version(name, source, run_id, tags, *args, **options)

    def copy_model_version(self, src_mv: Any, dst_name: str) -> Any:
        """Refused, before MLflow makes an empty model for the copy."""
        with self._asked("created", dst_name, "", ""):
            raise GateRefusedError(_NO_COPY)

    def _check_tag(self, name: str, key: str) -> None:
        """Neither the gate's, nor the one by which MLflow leaves a model with all its versions out of every search."""
        check_free_tag(key)
        if key == IS_PROMPT_TAG_KEY and not super().get_registered_model(name)._is_prompt():
            raise GateRefusedError(
                f"tag {key!r}: {name} is a model, and with this tag MLflow would hide it, and the gate could not judge "
                "it; a prompt is made with it from the start (mlflow.genai.register_prompt), under another name"
            )

    # ---- names, and what is deleted

    def rename_registered_model(self, name: str, new_name: str) -> Any:
        """Statements are signed for a name: a model that has a champion keeps it."""
        with self._asked("renamed", name, "", "") as asked, self._transaction() as session:
            self._check_idle(session, name, "renamed")
            renamed = super().rename_registered_model(name, new_name)
            audit.append(session, asked.entry(None, None, alias="", reason=f"to {new_name}"))
            return renamed

    def delete_registered_model(self, name: str) -> None:
        """Not one that has a champion or a challenger."""
        with self._asked("deleted", name, "", "") as asked, self._transaction() as session:
            self._check_idle(session, name, "deleted")
            super().delete_registered_model(name)
            audit.append(session, asked.entry(None, None, alias=""))

    def delete_model_version(self, name: str, version: Any) -> None:
        """Not one that is champion or challenger; one that was champion only by a release manager."""
        with self._asked("deleted", name, str(version), "") as asked, self._transaction() as session:
            entry = self.get_model_version(name, version)
            held = [alias for alias in entry.aliases or [] if alias in NEEDED]
            if held or str(entry.current_stage) in STAGES:
                raise GateRefusedError(
                    f"{name} version {version} is {held[0] if held else entry.current_stage}: it cannot be deleted; "
                    "promote another version, or take the alias away first"
                )
            if str(entry.version) in self._former_champions(name):
                asked.actor.must_be(Role.RELEASE_MANAGER, "deleting a version that was champion")
            super().delete_model_version(name, version)
            audit.append(session, asked.entry(None, None, alias="", version=str(version)))

    # ---- the gate's word

    def _take_word(self, name: str, version: Any, text: str) -> None:
        with self._asked("judged", name, str(version), "") as asked:
            asked.actor.must_be(Role.GATE, f"writing {ENVELOPE_TAG}")
            ring = TrustRoot.find().ring()
            try:
                statement = open_envelope(text, ring)
            except TamperedError as error:
                raise GateRefusedError(f"the envelope {error}") from error
            facts = self._facts(name, version)
            check_bound(statement, facts)
            if statement.issued_at_ms > _now_ms() + CLOCK_TOLERANCE.total_seconds() * 1000:
                raise GateRefusedError(f"the envelope is dated {statement.issued_at:%Y-%m-%d %H:%M}: set the clocks")
            with self._transaction() as session:
                if statement.record is None or not audit.passes_through(session, statement.record):
                    raise GateRefusedError(
                        f"{name} version {version}: the envelope was signed for another history than the record of "
                        "this registry; judge again. If that does not help: pillsnap registry verify"
                    )
                before = self._word(session, name, facts.version)
                if before == statement:
                    return
                if (before.decision_id if before else None) != statement.replaces:
                    raise GateRefusedError(
                        f"{name} version {version}: the envelope was signed to follow another one than stands here; "
                        "judge again"
                    )
                if before is not None and statement.issued_at_ms <= before.issued_at_ms:
                    raise GateRefusedError(f"{name} version {version}: the envelope is older than the one that stands")
                self._write_word(session, name, version, statement, text, asked.actor.name)
                audit.append(session, asked.entry(facts, statement, alias="", envelope=text))

    def _write_word(self, session: Session, name: str, version: Any, said: Statement, text: str, actor: str) -> None:
        tags = self.get_model_version(name, version).tags  # as they are now: the files were hashed before this moment
        order = {key: place for place, key in enumerate(_FIRST_FIGURES)}
        figures = sorted(said.figures, key=lambda key: order.get(key, len(order)))
        hashes = {
            "bundle": said.bundle_sha256,
            "manifest": said.manifest_hash,
            "policy": said.policy_sha256,
            "decision": said.decision_id,
        }
        readable = {
            DECISION_TAG: str(said.verdict),
            REASONS_TAG: "; ".join(said.reasons)[:5000],
            FIGURES_TAG: " · ".join(f"{key} {said.figures[key]}" for key in figures) or "none",
            HASHES_TAG: " · ".join(f"{key} {value}" for key, value in hashes.items()),
            HISTORY_TAG: with_event(tags.get(HISTORY_TAG, ""), JUDGED, said.issued_at, actor),
            ENVELOPE_TAG: text,
        }
        for key in tags:
            if key.startswith(TAG_PREFIX):  # what stands is written anew: they are listed as they were written
                super().delete_model_version_tag(name, version, key)
        session.flush()
        session.expire_all()
        for key, value in readable.items():
            if value:
                super().set_model_version_tag(name, version, ModelVersionTag(key, value))

    # ---- what is shown of who did what

    def _note(self, name: str, version: Any, what: str, actor: str) -> Event:
        before = self.get_model_version(name, version).tags.get(HISTORY_TAG, "")
        text = with_event(before, what, datetime.now(UTC), actor)
        super().set_model_version_tag(name, version, ModelVersionTag(HISTORY_TAG, text))
        return history_in(text)[what]

    def _note_alias(self, name: str, version: Any, alias: str, actor: str) -> None:
        event = self._note(name, version, alias, actor)
        before = self.get_model_version(name, version).description or ""
        super().update_model_version(name, version, became(before, alias, event))

    def _note_question(self, name: str, version: Any, actor: str) -> None:
        """Say at a version that it waits, since when, and whether a gate service was seen. Asked twice, it waits on."""
        with self._transaction() as session:
            entry = self.get_model_version(name, version)
            is_judged = ENVELOPE_TAG in entry.tags
            if not is_judged and ASKED in history_in(entry.tags.get(HISTORY_TAG, "")):
                return
            asked = self._note(name, version, ASKED, actor)
            if not is_judged:
                text = waits(entry.description or "", asked, self._service_seen(session))
                super().update_model_version(name, version, text)

    def _service_seen(self, session: Session) -> datetime | None:
        query: Any = sa.select(SqlRegisteredModelTag.value).where(SqlRegisteredModelTag.key == SERVICE_SEEN_TAG)
        return max(filter(None, (time_in(text) for (text,) in session.execute(query))), default=None)

    def _admit(self, session: Session, alias: str, facts: VersionFacts) -> Statement:
        statement = self._word(session, facts.name, facts.version)
        what = f"{facts.name} version {facts.version}"
        if statement is None:
            raise GateRefusedError(
                f"{what} does not become {alias}: the gate has not judged it. Give it the alias or tag `candidate` and "
                "wait for the gate's word"
            )
        check_bound(statement, facts)
        check_verdict(statement, alias)
        was = audit.was_champion(session, facts.name, facts.version, facts.created_at_ms, facts.bundle_sha256)
        if not was:
            trust = TrustRoot.find()
            policy = trust.policy()
            terms = Terms(
                policy_sha256=policy.sha256,
                now_ms=_now_ms(),
                max_age=policy.decision_max_age,
                champion=self._champion(session, facts.name) if alias == CHAMPION else statement.champion,
            )
            check_fresh(statement, terms)
        return statement

    def _champion(self, session: Session, name: str) -> ChampionRef | None:
        version = self._alias_now(session, name, CHAMPION)
        if not version:
            return None
        statement = self._word(session, name, version)
        if statement is None:
            raise GateRefusedError(
                f"the present champion of {name}, version {version}, has no valid envelope to be compared with: judge "
                f"it again (pillsnap registry judge {version}), or go back to a former one (pillsnap registry rollback)"
            )
        return ChampionRef(version=version, bundle_sha256=statement.bundle_sha256)

    def _word(self, session: Session, name: str, version: str) -> Statement | None:
        """What the gate has signed of a version; one that no trusted key has signed counts as nothing."""
        tags = self._get_sql_model_version(session, name, int(version), eager=True).to_mlflow_entity().tags
        envelope = tags.get(ENVELOPE_TAG)
        if envelope is None:
            return None
        try:
            return open_envelope(envelope, TrustRoot.find().ring())
        except TamperedError:
            return None

    def _facts(self, name: str, version: Any) -> VersionFacts:
        entry = self.get_model_version(name, version)
        return facts_at(entry, self.get_model_version_download_uri(name, version))

    def _alias_now(self, session: Session, name: str, alias: str) -> str:
        for entry in self._get_registered_model(session, name).registered_model_aliases:
            if entry.alias == alias:
                return str(entry.version)
        return ""

    def _former_champions(self, name: str) -> list[str]:
        return former_champions_in(self.get_registered_model(name).tags)

    def _remember_champion(self, session: Session, name: str, version: str) -> None:
        former = [version, *(entry for entry in self._former_champions(name) if entry != version)]
        super().set_registered_model_tag(name, RegisteredModelTag(FORMER_CHAMPIONS_TAG, json.dumps(former[:100])))

    def _check_idle(self, session: Session, name: str, what: str) -> None:
        model = self._get_registered_model(session, name)
        held = [entry.alias for entry in model.registered_model_aliases if entry.alias in NEEDED]
        held += [entry.current_stage for entry in model.model_versions if entry.current_stage in STAGES]
        had = any(tag.key == FORMER_CHAMPIONS_TAG for tag in model.registered_model_tags)
        if held or had:
            raise GateRefusedError(
                f"{name} has {f'a {held[0]}' if held else 'had a champion'} and cannot be {what}: what the gate has "
                "signed is signed for this name, and the record belongs to it"
            )

    # ---- transactions

    @contextmanager
    def _joining_session(self, read_only: bool = True) -> Iterator[Session]:
        """MLflow's sessions; within `_transaction` all of them are that one."""
        outer = getattr(self._open, "session", None)
        if outer is not None:
            yield outer
            return
        with self._own_session(read_only) as session:
            yield session

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        """One transaction for MLflow's own writes, the checks and the record. Only one at a time, in all processes."""
        with self._own_session(read_only=False) as session:
            audit.lock(session)
            self._open.session = session
            try:
                yield session
                session.flush()
            except PillSnapError as error:  # MLflow would make an internal error of it
                raise refusal(str(error)) from error
            finally:
                self._open.session = None

    @contextmanager
    def _asked(self, action: str, model: str, version: str, alias: str) -> Iterator[Question]:
        """Around a guarded call: who asks, and a refusal that is written down and becomes MLflow's."""
        try:
            asked = Question(current_actor(), action, model, version)
        except ConfigError as error:
            raise refusal(str(error)) from error
        try:
            yield asked
        except (PillSnapError, MlflowException) as error:
            reason = error if isinstance(error, PillSnapError) else error.__cause__
            if not isinstance(reason, PillSnapError):
                raise  # MLflow's own: no such version, no database …
            with self._own_session(read_only=False) as session:
                audit.lock(session)
                audit.append(session, asked.refused(alias, str(reason)))
            raise refusal(str(reason)) from reason


class GatedStore(_Gate):
    """For one workspace."""


class _GatedWorkspaceStore(_Gate, WorkspaceAwareSqlAlchemyStore):
    """For servers with workspaces."""


def _now_ms() -> int:
    return int(time.time() * 1000)
