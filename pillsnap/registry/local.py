"""The registry's database, opened directly: for the record, which MLflow's server does not show."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlRegisteredModelAlias
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from pillsnap.core.errors import StoreError
from pillsnap.gate.admission import NEEDED
from pillsnap.registry.rules import STAGES
from pillsnap.registry.store import gated_store
from pillsnap.tracking.store import GATED, registry_uri, store_errors, tracking_uri, without_password


def open_registry() -> SqlAlchemyStore:
    """The store behind MLFLOW_TRACKING_URI. Raises StoreError: that is a server, or cannot be used."""
    uri = registry_uri(tracking_uri())
    if not uri.startswith(GATED):
        raise StoreError(
            f"the record lies in the registry's database, and {without_password(uri)} is none: run this where the "
            "server runs, with MLFLOW_TRACKING_URI set to its --backend-store-uri"
        )
    with store_errors():
        return gated_store(uri)


def guarded_aliases(store: SqlAlchemyStore) -> dict[tuple[str, str], str]:
    """(model, alias) → version of the guarded aliases, as they stand now."""
    # from the tables: MLflow's search leaves out what somebody has given the tag of a prompt
    query: Any = sa.select(SqlRegisteredModelAlias.name, SqlRegisteredModelAlias.alias, SqlRegisteredModelAlias.version)
    with store_errors(), store.engine.connect() as connection:
        found = connection.execute(query.where(SqlRegisteredModelAlias.alias.in_(NEEDED)))
        return {(name, alias): str(version) for name, alias, version in found}


def guarded_stages(store: SqlAlchemyStore) -> dict[tuple[str, str], str]:
    """(model, version) → stage of the versions that are in a guarded stage of MLflow 2, as they stand now."""
    query: Any = sa.select(SqlModelVersion.name, SqlModelVersion.version, SqlModelVersion.current_stage)
    with store_errors(), store.engine.connect() as connection:
        found = connection.execute(query.where(SqlModelVersion.current_stage.in_(STAGES)))
        return {(name, str(version)): str(stage) for name, version, stage in found}
