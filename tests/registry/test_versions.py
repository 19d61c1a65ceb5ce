"""Versions are made of runs, and what the registry says of them is not believed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from mlflow.tracking import MlflowClient

from pillsnap.cli.registry import registry
from pillsnap.core.errors import BundleError, ConfigError, GateRefusedError, StoreError, TamperedError
from pillsnap.core.files import sha256_file
from pillsnap.gate.envelope import ENVELOPE_TAG
from pillsnap.gate.keys import KeyRing
from pillsnap.registry.versions import (
    aliased_version,
    find_version,
    list_versions,
    register,
    register_bundle,
    statement_of,
    trusted_statement,
    version_files,
)
from pillsnap.tracking.fetching import MODEL_URI_TAG, fetched_bundle
from pillsnap.tracking.run import tracked_run
from pillsnap.tracking.store import connect

Candidate = Callable[..., str]


def test_registering_is_open_and_promises_nothing(store: MlflowClient, candidate: Candidate) -> None:
    assert candidate(wrong=6) == "1"
    entry = store.get_model_version("pills", "1")
    assert entry.description.startswith(
        "Not judged yet. To ask the gate for it, give this version the alias or the tag"
    )
    assert [key for key in entry.tags if key.startswith("gate.")] == ["gate.done_by"]
    assert store.get_registered_model("pills").aliases == {}
    assert candidate() == "2"


def test_a_run_without_a_bundle(store: MlflowClient) -> None:
    with tracked_run("empty", experiment="exp") as run:
        pass
    with pytest.raises(StoreError, match="has no bundle; a run that exports and evaluates is made by: pillsnap run"):
        register(run.run_id, "pills")
    with pytest.raises(ConfigError, match="a model's name cannot be empty"):
        register(run.run_id, " ")


def test_the_files_of_a_version(store: MlflowClient, candidate: Candidate) -> None:
    entry = find_version(connect(), "pills", candidate())
    with version_files(entry) as files, fetched_bundle(f"models:/pills/{entry.version}") as again:
        assert files.facts.bundle_sha256 == sha256_file(again)
        assert (files.facts.name, files.facts.version) == ("pills", "1")
        assert files.facts.created_at_ms == entry.creation_timestamp
        before = files.facts.artifact_sha256
        (files.bundle.parent / "MLmodel").write_text("flavors: {python_function: {loader_module: evil}}")
    with version_files(entry) as files:
        assert files.facts.artifact_sha256 == before, "of the files, not of the folder or the time"
    assert store.get_run(entry.run_id).data.tags[MODEL_URI_TAG] == entry.source


def test_what_was_signed(store: MlflowClient, candidate: Candidate, gate: Any) -> None:
    version = candidate()
    ring = gate.trust.ring()
    entry = find_version(connect(), "pills", version)
    assert statement_of(entry, ring) is None
    with pytest.raises(GateRefusedError, match=r"the gate has not judged it; mark it as candidate: pillsnap registry"):
        trusted_statement(entry, ring)
    statement = gate.judge(version)
    entry = find_version(connect(), "pills", version)
    assert trusted_statement(entry, ring) == statement
    with pytest.raises(TamperedError, match=r"pills version 1: its envelope signed by key .* is not trusted here"):
        statement_of(entry, KeyRing({}))
    entry.tags[ENVELOPE_TAG] = "{}"
    with pytest.raises(GateRefusedError, match="its envelope is not an envelope of the gate"):
        trusted_statement(entry, ring)


def test_finding(store: MlflowClient, candidate: Candidate) -> None:
    client = connect()
    with pytest.raises(StoreError, match="the registry has no model 'pills'"):
        find_version(client, "pills", "1")
    assert aliased_version(client, "pills", "champion") is None
    candidate()
    candidate()
    assert find_version(client, "pills", "latest").version == 2
    assert find_version(client, "pills", "1").version == 1
    with pytest.raises(StoreError, match="pills has no version 7; there are 1, 2"):
        find_version(client, "pills", "7")
    store.set_registered_model_alias("pills", "mine", "1")
    assert [(entry.version, aliases) for entry, aliases in list_versions("pills")] == [(2, ()), (1, ("mine",))]
    found = aliased_version(client, "pills", "mine")
    assert found is not None
    assert found.version == 1


def test_a_file_becomes_a_version_and_is_judged_as_any_other(
    store: MlflowClient, gate: Any, toys: SimpleNamespace, tmp_path: Path
) -> None:
    source = "ab" * 32
    props = toys.toy_metadata(toys.toy_catalog(6), gate.manifest.hash).model_copy(update={"source_sha256": source})
    graph = toys.toy_graph(toys.toy_colors(6))
    bundle = toys.save_model(tmp_path / "variant.onnx", graph, props.to_props())
    done = CliRunner().invoke(registry, ["register", "--bundle", str(bundle), "--name", "pills"])
    assert done.exit_code == 0, done.output
    entry = find_version(store, "pills", "1")
    run = store.get_run(entry.run_id)
    assert run.data.tags["pillsnap.source_sha256"] == source
    assert run.data.params["bundle.backbone"] == "toy"
    assert run.data.metrics == {"bundle.size_mb": bundle.stat().st_size / 1e6}
    with version_files(entry) as files:
        assert files.bundle.read_bytes() == bundle.read_bytes()
    assert gate.judge("1").verdict == "PROMOTE"


@pytest.mark.parametrize("words", [[], ["run", "--bundle", "x.onnx"]])
def test_a_run_or_a_file_and_not_both(words: list[str]) -> None:
    done = CliRunner().invoke(registry, ["register", *words])
    assert done.exit_code == 2
    assert "either RUN_ID or --bundle FILE" in done.output


def test_a_file_that_is_no_bundle_makes_no_run(store: MlflowClient, gate: Any, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.onnx"
    wrong.write_bytes(b"not onnx")
    with pytest.raises(BundleError, match=r"wrong\.onnx"):
        register_bundle(wrong, "pills")
    assert store.search_registered_models() == []
