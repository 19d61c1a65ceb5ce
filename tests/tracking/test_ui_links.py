"""Addresses within MLflow's web page."""

from __future__ import annotations

import pytest

from pillsnap.tracking.ui_links import artifact_link, start_page, version_page


def test_pages_open_in_model_training() -> None:
    view = "?workflowType=machine_learning"
    assert start_page("http://[::1]:5000") == f"http://[::1]:5000/#/{view}"
    link = artifact_link("7", "r", "evaluation/report.html")
    assert link == f"#/experiments/7/runs/r/artifacts/evaluation/report.html{view}"
    page = version_page("알약 1", "2", "https://kim:geheim@host:8443/mlflow/")
    assert page == f"https://host:8443/mlflow/#/models/%EC%95%8C%EC%95%BD%201/versions/2{view}"


@pytest.mark.parametrize("uri", ["gated+sqlite:////x/mlflow.db", "postgresql://u:p@h/d", "databricks"])
def test_what_is_no_server_has_no_page(uri: str) -> None:
    assert version_page("pills", "1", uri) == ""
