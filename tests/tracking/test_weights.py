"""From ``model.weights`` to the checkpoint file that it stands for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.tracking import MlflowClient

from pillsnap.core.errors import BundleError, ConfigError, StoreError
from pillsnap.core.experiment import is_fetched
from pillsnap.core.files import sha256_file
from pillsnap.tracking.run import tracked_run
from pillsnap.tracking.run_model import log_bundle
from pillsnap.tracking.weights import fetch_weights

Train = Callable[..., SimpleNamespace]


@pytest.fixture
def train(store: MlflowClient, toys: SimpleNamespace, tmp_path: Path) -> Train:
    """A run as ``pillsnap run`` leaves it: its checkpoints, its bundle, its version in the registry."""

    def make(checkpoints: tuple[str, ...] = ("best-002.pt",), best_epoch: int = 2) -> SimpleNamespace:
        files = []
        with tracked_run("r", experiment="exp") as run:
            for name in checkpoints:
                file = tmp_path / run.run_id / name
                file.parent.mkdir(exist_ok=True)
                file.write_text(f"{run.run_id} {name}")
                run.log_file(file, "checkpoints")
                files.append(file)
            run.log_metrics({"best_epoch": best_epoch})
            bundle = toys.save_bundle(tmp_path / run.run_id / "pillsnap.onnx", toys.toy_colors(3))
            uri = log_bundle(run, bundle)
        if not store.search_registered_models():
            store.create_registered_model("pillsnap")
        version = store.create_model_version("pillsnap", uri, run_id=run.run_id).version
        return SimpleNamespace(run_id=run.run_id, files=files, uri=uri, version=version)

    return make


def test_every_form_leads_to_the_checkpoint_of_its_run(train: Train, store: MlflowClient, tmp_path: Path) -> None:
    first, second = train(), train()
    store.set_registered_model_alias("pillsnap", "mine", first.version)
    forms = {
        f"runs:/{first.run_id}": first,
        f"runs:/{second.run_id}/checkpoints/best-002.pt": second,
        f"models:/pillsnap/{first.version}": first,
        "models:/pillsnap@mine": first,
        "models:/pillsnap/latest": second,
        second.uri: second,
    }
    for uri, run in forms.items():
        assert is_fetched(uri)
        fetched = fetch_weights(uri, tmp_path / "weights")
        assert fetched.run_id == run.run_id, uri
        assert fetched.path.read_text() == run.files[0].read_text(), uri
        assert fetched.path.name == f"{sha256_file(run.files[0])}.pt"
    assert len(list((tmp_path / "weights").iterdir())) == 2, "one file for each checkpoint, nothing else left"


def test_of_several_checkpoints_the_best(train: Train, tmp_path: Path) -> None:
    run = train(("best-002.pt", "best-012.pt"), best_epoch=12)
    assert fetch_weights(f"runs:/{run.run_id}", tmp_path).path.read_text().endswith("best-012.pt")
    undecided = train(("best-002.pt", "best-012.pt"), best_epoch=7)
    with pytest.raises(StoreError, match=r"no one best checkpoint .*best-012\.pt.*name it as runs:/"):
        fetch_weights(f"runs:/{undecided.run_id}", tmp_path)


def test_a_bundle_leads_to_the_run_that_made_it(train: Train, toys: SimpleNamespace, tmp_path: Path) -> None:
    run = train()
    bundle = toys.save_bundle(tmp_path / "b.onnx", toys.toy_colors(3))
    _say_run(bundle, "")
    with pytest.raises(BundleError, match=r"b\.onnx: this bundle does not say which run .*\.pt"):
        fetch_weights(str(bundle), tmp_path)
    _say_run(bundle, run.run_id)
    assert fetch_weights(str(bundle), tmp_path).path.read_text() == run.files[0].read_text()


def _say_run(bundle: Path, run_id: str) -> None:
    import onnx

    from pillsnap.core.bundle import BundleMetadata

    model = onnx.load(bundle)
    metadata = BundleMetadata.from_props({prop.key: prop.value for prop in model.metadata_props}, "b")
    provenance = metadata.provenance.model_copy(update={"run_id": run_id})
    onnx.helper.set_model_props(model, metadata.model_copy(update={"provenance": provenance}).to_props())
    onnx.save(model, bundle)


def test_a_run_without_a_checkpoint(store: MlflowClient, tmp_path: Path) -> None:
    with tracked_run("r", experiment="exp") as run:
        pass
    with pytest.raises(StoreError, match=rf"run {run.run_id} has logged no one best checkpoint .*\(none\)"):
        fetch_weights(f"runs:/{run.run_id}", tmp_path)


def test_what_does_not_exist_is_named(train: Train, tmp_path: Path) -> None:
    train()
    for uri, message in {
        "runs:/" + "f" * 32: "f{32}",
        "models:/pillsnap/99": "99",
        "models:/pillsnap@champion": "champion",
        "models:/other/latest": "no version of 'other'",
        "models:/m-" + "0" * 32: "m-0",
    }.items():
        with pytest.raises(StoreError, match=message):
            fetch_weights(uri, tmp_path)
    with pytest.raises(BundleError, match=r"none\.onnx: no such file"):
        fetch_weights(str(tmp_path / "none.onnx"), tmp_path)
    (tmp_path / "x.onnx").write_bytes(b"\x00no model")
    with pytest.raises(BundleError, match=r"x\.onnx: is "):
        fetch_weights(str(tmp_path / "x.onnx"), tmp_path)


@pytest.mark.parametrize("uri", ["models:/pillsnap", "runs:/", "models:pillsnap/3", "models:/a/b/c", "runs:/x/y.onnx"])
def test_a_wrong_form_is_misconfigured(store: MlflowClient, tmp_path: Path, uri: str) -> None:
    with pytest.raises((ConfigError, BundleError)):
        fetch_weights(uri, tmp_path)


def test_files_are_left_alone() -> None:
    assert not is_fetched("weights.safetensors")
    assert not is_fetched("/some/where/best-003.pt")
