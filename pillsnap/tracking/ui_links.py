"""Addresses within MLflow's web page. Pure.

MLflow 3.17 opens in its view for chat models, where an experiment shows its traces (none) and the menu has no registry:
each address names the other view, *Model training*.
"""

from __future__ import annotations

from urllib.parse import quote, urlsplit

_VIEW = "?workflowType=machine_learning"


def server_of(store_uri: str) -> str:
    """The address of the server that a store is, without a login; empty: it is none, and `make ui` shows it."""
    parts = urlsplit(store_uri)
    if parts.scheme not in ("http", "https"):
        return ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


def start_page(server: str) -> str:
    """The first page of a server: ``http://127.0.0.1:5000/#/?workflowType=machine_learning``."""
    return f"{server}/#/{_VIEW}"


def version_page(server: str, name: str, version: str) -> str:
    """The page of a model version at a server."""
    return f"{server}/#/models/{quote(name, safe='')}/versions/{version}{_VIEW}"


def artifact_link(experiment_id: str, run_id: str, path: str) -> str:
    """An artifact of a run, opened, as a link from another page of the same server."""
    return f"#/experiments/{experiment_id}/runs/{run_id}/artifacts/{quote(path)}{_VIEW}"
