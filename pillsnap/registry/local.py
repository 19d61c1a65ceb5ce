"""The registry's database, opened directly: for its record, which no server shows, and for what stands by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from mlflow.entities.model_registry.model_version_stages import STAGE_DELETED_INTERNAL
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlModelVersionTag, SqlRegisteredModelAlias
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from pillsnap.core.errors import GateRefusedError, StoreError
from pillsnap.core.passwords import hide_passwords
from pillsnap.gate.admission import NEEDED, check_bound, check_verdict
from pillsnap.gate.envelope import ENVELOPE_TAG
from pillsnap.gate.trust import TrustRoot
from pillsnap.registry.artifacts import BehindProxyError, facts_at
from pillsnap.registry.rules import STAGES
from pillsnap.registry.store import gated_store
from pillsnap.registry.verification import Standing
from pillsnap.registry.versions import trusted_statement
from pillsnap.tracking.store import GATED, first_line, registry_errors, registry_uri, tracking_uri


def open_registry() -> SqlAlchemyStore:
    """The store behind MLFLOW_TRACKING_URI. Raises StoreError: that is a server, is not there, or cannot be used."""
    uri = registry_uri(tracking_uri())
    if not uri.startswith(GATED):
        raise StoreError(
            f"the record lies in the registry's database, and {hide_passwords(uri)} is none: run this where the "
            "server runs, with MLFLOW_TRACKING_URI set to its --backend-store-uri"
        )
    file = uri.removeprefix(GATED).removeprefix("sqlite:///")
    if uri.removeprefix(GATED).startswith("sqlite:///") and not Path(file).is_file():
        raise StoreError(f"{file}: no such database; set MLFLOW_TRACKING_URI to that of the registry")
    with registry_errors():
        return gated_store(uri)


def standing(connection: sa.Connection) -> Standing:
    """What stands now. Raises StoreError."""
    # from the tables: MLflow's search leaves out what somebody has given the tag of a prompt
    alias: Any = SqlRegisteredModelAlias
    entry: Any = SqlModelVersion
    tag: Any = SqlModelVersionTag
    same = (tag.name == entry.name) & (tag.version == entry.version) & (tag.key == ENVELOPE_TAG)
    aliases = sa.select(alias.name, alias.alias, alias.version).where(alias.alias.in_(NEEDED))
    stages = sa.select(entry.name, entry.version, entry.current_stage).where(entry.current_stage.in_(STAGES))
    envelopes = (
        sa.select(entry.name, entry.version, entry.creation_time, tag.value)
        .outerjoin(tag, same)
        .where(entry.current_stage != STAGE_DELETED_INTERNAL)
    )
    with registry_errors():
        return Standing(
            {(name, of): str(version) for name, of, version in connection.execute(aliases)},
            {(name, str(version)): str(stage) for name, version, stage in connection.execute(stages)},
            {
                (name, str(v), made if isinstance(made, int) else 0): text or ""
                for name, v, made, text in connection.execute(envelopes)
            },
        )


def unproven(store: SqlAlchemyStore, now: Standing) -> tuple[list[str], list[str]]:
    """Which of those that stand as champion or challenger would not be loaded, and why.

    Args:
        store: the registry.
        now: what stands, of `standing`.

    Returns:
        A sentence for each that has not proven itself, and one for each whose files cannot be seen from here (only
        its envelope was checked).
    """
    ring = TrustRoot.find().ring()
    placed = {(model, version, alias): alias for (model, alias), version in now.aliases.items()}
    placed |= {(model, version, STAGES[stage]): stage for (model, version), stage in now.stages.items()}
    wrong, unseen = [], []
    for (model, version, alias), said in sorted(placed.items()):
        try:
            entry = store.get_model_version(model, version)
            statement = trusted_statement(entry, ring)
            check_verdict(statement, alias)
            check_bound(statement, facts_at(entry, store.get_model_version_download_uri(model, version)))
        except BehindProxyError as error:
            unseen.append(f"{said}: {error}")
        except GateRefusedError as error:
            wrong.append(f"{said}, and not loaded: {error}")
        except MlflowException as error:
            wrong.append(f"{said}, and not loaded: {model} version {version}: {first_line(error)}")
    return wrong, unseen
