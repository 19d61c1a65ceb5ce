"""Addresses within MLflow's web page."""

from __future__ import annotations

import pytest

from pillsnap.tracking.ui_links import artifact_link, server_of, start_page, version_page


def test_pages_open_in_model_training() -> None:
    view = "?workflowType=machine_learning"
    assert start_page("http://[::1]:5000") == f"http://[::1]:5000/#/{view}"
    link = artifact_link("7", "r", "evaluation/report.html")
    assert link == f"#/experiments/7/runs/r/artifacts/evaluation/report.html{view}"
    page = version_page("http://host", "알약 1", "2")
    assert page == f"http://host/#/models/%EC%95%8C%EC%95%BD%201/versions/2{view}"


@pytest.mark.parametrize(
    ("uri", "server"),
    [
        ("https://kim:geheim@host:8443/mlflow/", "https://host:8443/mlflow"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("gated+sqlite:////x/mlflow.db", ""),
        ("postgresql://u:p@h/d", ""),
        ("databricks", ""),
    ],
)
def test_the_server_of_a_store_without_its_login(uri: str, server: str) -> None:
    assert server_of(uri) == server
