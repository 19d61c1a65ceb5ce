"""The registry's database, opened directly: for the record, which MLflow's server does not show."""

from __future__ import annotations

from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from pillsnap.core.errors import StoreError
from pillsnap.gate.admission import NEEDED
from pillsnap.registry.rules import STAGES
from pillsnap.registry.store import SCHEME, gated_store
from pillsnap.tracking.store import registry_uri, store_errors, tracking_uri, without_password


def open_registry() -> SqlAlchemyStore:
    """The store behind MLFLOW_TRACKING_URI. Raises StoreError: that is a server, or cannot be used."""
    uri = registry_uri(tracking_uri())
    if not uri.startswith(SCHEME):
        raise StoreError(
            f"the record lies in the registry's database, and {without_password(uri)} is none: run this where the "
            "server runs, with MLFLOW_TRACKING_URI set to its --backend-store-uri"
        )
    with store_errors():
        return gated_store(uri)


def guarded_aliases(store: SqlAlchemyStore) -> dict[tuple[str, str], str]:
    """(model, alias) → version of the guarded aliases, as they stand now."""
    found: dict[tuple[str, str], str] = {}
    token = None
    with store_errors():
        while True:
            page = store.search_registered_models(page_token=token)
            for model in page:
                found |= {
                    (model.name, alias): str(version) for alias, version in model.aliases.items() if alias in NEEDED
                }
            token = page.token
            if not token:
                return found


def guarded_stages(store: SqlAlchemyStore) -> dict[tuple[str, str], str]:
    """(model, version) → stage of the versions that are in a guarded stage of MLflow 2, as they stand now."""
    found: dict[tuple[str, str], str] = {}
    token = None
    with store_errors():
        while True:
            page = store.search_model_versions(page_token=token)
            found |= {
                (entry.name, str(entry.version)): str(entry.current_stage)
                for entry in page
                if str(entry.current_stage) in STAGES
            }
            token = page.token
            if not token:
                return found
