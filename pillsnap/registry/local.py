"""The registry's database, opened directly: for its record, which no server shows, and for what stands by it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlRegisteredModelAlias
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from pillsnap.core.errors import GateRefusedError, StoreError
from pillsnap.core.passwords import hide_passwords
from pillsnap.gate.admission import NEEDED, check_bound, check_verdict
from pillsnap.gate.trust import TrustRoot
from pillsnap.registry.artifacts import BehindProxyError, facts_at
from pillsnap.registry.rules import STAGES
from pillsnap.registry.store import gated_store
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


def guarded_aliases(connection: sa.Connection) -> dict[tuple[str, str], str]:
    """(model, alias) → version of the guarded aliases, as they stand now."""
    # from the tables: MLflow's search leaves out what somebody has given the tag of a prompt
    query: Any = sa.select(SqlRegisteredModelAlias.name, SqlRegisteredModelAlias.alias, SqlRegisteredModelAlias.version)
    with registry_errors():
        found = connection.execute(query.where(SqlRegisteredModelAlias.alias.in_(NEEDED)))
        return {(name, alias): str(version) for name, alias, version in found}


def guarded_stages(connection: sa.Connection) -> dict[tuple[str, str], str]:
    """(model, version) → stage of the versions that are in a guarded stage of MLflow 2, as they stand now."""
    query: Any = sa.select(SqlModelVersion.name, SqlModelVersion.version, SqlModelVersion.current_stage)
    with registry_errors():
        found = connection.execute(query.where(SqlModelVersion.current_stage.in_(STAGES)))
        return {(name, str(version)): str(stage) for name, version, stage in found}


def unproven(
    store: SqlAlchemyStore, aliases: Mapping[tuple[str, str], str], stages: Mapping[tuple[str, str], str]
) -> tuple[list[str], list[str]]:
    """Which of those that stand as champion or challenger would not be loaded, and why.

    Args:
        store: the registry.
        aliases: (model, alias) → version, of `guarded_aliases`.
        stages: (model, version) → stage, of `guarded_stages`.

    Returns:
        A sentence for each that has not proven itself, and one for each whose files cannot be seen from here (only
        its envelope was checked).
    """
    ring = TrustRoot.find().ring()
    standing = {(model, version, alias): alias for (model, alias), version in aliases.items()}
    standing |= {(model, version, STAGES[stage]): stage for (model, version), stage in stages.items()}
    wrong, unseen = [], []
    for (model, version, alias), said in sorted(standing.items()):
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
