from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from scipy.special import softmax

from pillsnap import __version__
from pillsnap.cli.main import cli
from pillsnap.core.bundle import BundleClass, BundleMetadata, Provenance
from pillsnap.core.errors import BundleError, DataError, ImageError, TamperedError
from pillsnap.core.files import sha256_file
from pillsnap.core.images import decode_rgb
from pillsnap.core.preprocessing import InferencePreprocessor, UnifiedPreprocessor
from pillsnap.evaluation.evidence import evaluate
from pillsnap.exporting import export as module
from pillsnap.exporting.export import export_bundle
from pillsnap.exporting.quantise import Recipe, make_variant
from pillsnap.exporting.temperature import fit_temperature, fit_unsure_below
from pillsnap.inference.session import PillSession

Tamper = Callable[[onnx.ModelProto], None]


@pytest.fixture
def session(house: SimpleNamespace) -> PillSession:
    return PillSession.load(house.bundle, threads=1)


def photos(house: SimpleNamespace, split: str = "test") -> list[bytes]:
    return [(house.manifest.root / path).read_bytes() for path in house.manifest.split(split)["path"].to_pylist()]


# --- the file


def test_one_file_without_external_data(house: SimpleNamespace, tmp_path: Path) -> None:
    assert [path.name for path in house.bundle.parent.iterdir()] == ["pillsnap.onnx"]
    model = onnx.load(house.bundle, load_external_data=False)
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)
    moved = tmp_path / "elsewhere.onnx"
    moved.write_bytes(house.bundle.read_bytes())
    PillSession.load(moved)
    onnx.checker.check_model(model, full_check=True)


def test_the_same_checkpoint_gives_the_same_bytes(house: SimpleNamespace, tmp_path: Path) -> None:
    again = export_bundle(house.checkpoint, house.manifest, tmp_path / "b.onnx", run_id="run-7", git_commit="abc123")
    assert again.sha256 == house.result.sha256
    assert (tmp_path / "b.onnx").read_bytes() == house.bundle.read_bytes()


def test_the_bytes_know_nothing_of_the_machine(house: SimpleNamespace) -> None:
    """The exporter writes the trace of calls into the file: another checkout would give other bytes."""
    data = house.bundle.read_bytes()
    for said in (str(Path(module.__file__).parent), "site-packages", "stack_trace", ".py", "pkg.torch"):
        assert said.encode() not in data, said


def test_interface(house: SimpleNamespace) -> None:
    graph = onnx.load(house.bundle).graph
    (image,) = graph.input
    assert (image.name, image.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    batch, *rest = image.type.tensor_type.shape.dim
    assert batch.dim_param
    assert [axis.dim_value for axis in rest] == [32, 32, 3]
    assert [output.name for output in graph.output] == ["logits", "probabilities"]
    for output in graph.output:
        assert output.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        batch, classes = output.type.tensor_type.shape.dim
        assert batch.dim_param
        assert classes.dim_value == 6


def test_metadata_is_complete(house: SimpleNamespace, session: PillSession) -> None:
    spec = house.checkpoint.config.preprocessing
    assert session.metadata == BundleMetadata(
        classes=tuple(
            BundleClass(kcode=f"K-{990001 + k}", drug_name=f"가상정{k}", manufacturer="가상제약") for k in range(6)
        ),
        preprocessing=spec,
        preprocessing_fingerprint=spec.fingerprint,
        temperature=house.result.temperature,
        unsure_below=session.metadata.unsure_below,
        provenance=Provenance(
            manifest_hash=house.manifest.hash,
            backbone="resnet18",
            git_commit="abc123",
            run_id="run-7",
            pillsnap_version=__version__,
        ),
        parity=house.result.parity,
    )  # fmt: skip
    props = {entry.key: entry.value for entry in onnx.load(house.bundle).metadata_props}
    assert props == session.metadata.to_props()


def test_when_it_is_not_sure_was_fitted_on_validation(house: SimpleNamespace, session: PillSession) -> None:
    rows = house.manifest.split("val")
    images = [session.preprocessor.prepare_for_model(house.manifest.read_image(path, sha256))
              for path, sha256 in zip(rows["path"].to_pylist(), rows["sha256"].to_pylist(), strict=True)]  # fmt: skip
    logits_NK = session.predict(np.concatenate(images)).logits_NK
    expected = fit_unsure_below(logits_NK, house.result.temperature, house.manifest.labels(rows))
    assert session.metadata.unsure_below == pytest.approx(expected, abs=0.011)


def test_the_report_is_of_this_file(house: SimpleNamespace) -> None:
    report = json.loads(json.dumps(house.result.report(), allow_nan=False))
    assert report["bundle"] == "pillsnap.onnx"
    assert report["sha256"] == sha256_file(house.bundle)
    assert report["size_mb"] == house.bundle.stat().st_size / 1e6
    assert report["parity"]["images"] == 24
    assert 0 <= report["parity"]["largest_relative_difference"] < 1e-4
    assert report["parity"]["top1_agreement"] == 1


# --- the answers


def test_any_number_of_images(session: PillSession) -> None:
    image_NHWC_u8 = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), np.uint8)
    together = session.predict(image_NHWC_u8).logits_NK
    alone = np.concatenate([session.predict(image[np.newaxis]).logits_NK for image in image_NHWC_u8])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)


def test_probabilities_are_the_softmax_at_the_temperature(house: SimpleNamespace, session: PillSession) -> None:
    answer = session.predict(session.preprocessor.prepare_batch(photos(house)))
    np.testing.assert_allclose(answer.probabilities_NK.sum(axis=1), 1, rtol=1e-5)
    expected = softmax(answer.logits_NK / house.result.temperature, axis=1)
    np.testing.assert_allclose(answer.probabilities_NK, expected, rtol=1e-4, atol=1e-6)
    assert abs(house.result.temperature - 1) > 0.02  # else this test would not see whether it is applied


def test_the_temperature_is_that_of_the_validation_split(house: SimpleNamespace, session: PillSession) -> None:
    logits_NK = session.predict(session.preprocessor.prepare_batch(photos(house, "val"))).logits_NK
    label_N = house.manifest.labels(house.manifest.split("val"))
    assert fit_temperature(logits_NK, label_N) == pytest.approx(house.result.temperature, rel=1e-3)


def test_confidences_are_fitted_on_real_photos_where_there_are_enough(
    house: SimpleNamespace, session: PillSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = house.manifest.split("val")
    real_N = np.asarray(rows["domain"].to_pylist()) == "real"
    assert 0 < real_N.sum() < len(real_N)
    monkeypatch.setattr("pillsnap.exporting.temperature.LEAST_PHOTOS", int(real_N.sum()))
    logits_NK = session.predict(session.preprocessor.prepare_batch(photos(house, "val"))).logits_NK[real_N]
    expected = fit_temperature(logits_NK, house.manifest.labels(rows)[real_N])
    assert abs(expected - house.result.temperature) > 1e-3 * expected, "else this test would see nothing"
    checkpoint = replace(house.checkpoint, also_learned_from=("d" * 64,))
    result = export_bundle(checkpoint, house.manifest, tmp_path / "b.onnx")
    assert result.temperature == pytest.approx(expected, rel=1e-3)
    metadata = PillSession.load(tmp_path / "b.onnx").metadata
    assert metadata.unsure_below == fit_unsure_below(logits_NK, result.temperature, house.manifest.labels(rows)[real_N])
    assert metadata.provenance.also_learned_from == ("d" * 64,)
    variant = make_variant(tmp_path / "b.onnx", house.manifest, tmp_path / "v.onnx", Recipe(precision="float"))
    assert variant.metadata.temperature == pytest.approx(expected, rel=2e-3)
    assert variant.metadata.provenance.also_learned_from == ("d" * 64,)


def test_both_ways_of_preprocessing_give_the_same_logits(house: SimpleNamespace, session: PillSession) -> None:
    """The specification's way: `process`, then the bare backbone. The bundle's way: pixels, all else in the graph."""
    spec = house.checkpoint.config.preprocessing
    backbone = house.checkpoint.build_net().backbone
    for photo in photos(house)[:6]:
        image_CHW_f32 = UnifiedPreprocessor(spec).process(decode_rgb(photo))
        with torch.inference_mode():
            by_specification = backbone(torch.from_numpy(image_CHW_f32)[None]).numpy()
        by_bundle = session.predict(InferencePreprocessor(spec).prepare_for_model(photo)).logits_NK
        scale = np.abs(by_specification).max()
        np.testing.assert_allclose(by_bundle, by_specification, atol=1e-4 * scale)


def test_the_bundle_knows_the_squares(house: SimpleNamespace, session: PillSession) -> None:
    kcodes = house.manifest.split("test")["kcode"].to_pylist()
    right = [session.identify(photo)[0].kcode == kcode for photo, kcode in zip(photos(house), kcodes, strict=True)]
    assert np.mean(right) > 0.4  # chance is 1/6


@pytest.fixture(scope="module")
def with_retired(
    house: SimpleNamespace, squares: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """The same net in a catalog where class 1 is retired, and so eager for it that it would answer nothing else."""
    root = tmp_path_factory.mktemp("retired")
    manifest = squares.save_squares(root / "m", {"val": 4, "test": 4}, retired=(1,))
    state = {key: value.clone() for key, value in house.checkpoint.state_dict.items()}
    state["backbone.fc.bias"][1] += 1000
    checkpoint = replace(house.checkpoint, manifest_hash=manifest.hash, state_dict=state)
    result = export_bundle(checkpoint, manifest, root / "b.onnx")
    return SimpleNamespace(manifest=manifest, checkpoint=checkpoint, bundle=root / "b.onnx", result=result)


def test_a_retired_drug_is_never_answered(with_retired: SimpleNamespace) -> None:
    session = PillSession.load(with_retired.bundle, threads=1)
    assert [entry.kcode for entry in session.metadata.classes] == [f"K-{990001 + k}" for k in range(6)]
    assert session.metadata.retired_indices == (1,)
    for photo in photos(with_retired):
        answers = session.identify(photo, top=6)
        assert [answer.rank for answer in answers] == [1, 2, 3, 4, 5]
        assert "K-990002" not in [answer.kcode for answer in answers]
        assert sum(answer.confidence for answer in answers) == pytest.approx(1, rel=1e-5)
    answer = session.predict(session.preprocessor.prepare_batch(photos(with_retired)))
    assert not answer.probabilities_NK[:, 1].any()
    assert (answer.logits_NK[:, 1] == np.float32(-1e9)).all()
    assert with_retired.checkpoint.build_net().state_dict()["backbone.fc.bias"][1] > 900  # the net itself would


def test_a_retired_drug_has_no_part_in_temperature_and_parity(
    house: SimpleNamespace, with_retired: SimpleNamespace
) -> None:
    session = PillSession.load(house.bundle, threads=1)  # the same weights, the class in use
    in_use = [0, 2, 3, 4, 5]
    logits_NK = session.predict(session.preprocessor.prepare_batch(photos(with_retired, "val"))).logits_NK[:, in_use]
    label_N = with_retired.manifest.labels(with_retired.manifest.split("val"))
    expected = fit_temperature(logits_NK, np.asarray([in_use.index(k) for k in label_N]))
    assert with_retired.result.temperature == pytest.approx(expected, rel=1e-3)
    assert with_retired.result.parity.largest_relative_difference < 1e-4
    assert with_retired.result.parity.top1_agreement == 1


def test_the_evaluation_takes_the_bundle_and_leaves_the_retired_drug_out(with_retired: SimpleNamespace) -> None:
    evidence = evaluate(with_retired.bundle, with_retired.manifest, threads=1).evidence
    assert [one.kcode for one in evidence.classes] == [f"K-{990001 + k}" for k in (0, 2, 3, 4, 5)]
    assert min(one.images for one in evidence.classes) == 4
    assert evidence.metrics["top5"].value == 1  # five drugs are in use
    assert not any("K-990002" in confusion[:2] for confusion in evidence.confusions)


def test_a_graph_that_would_answer_a_retired_drug_is_refused(
    with_retired: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    to_onnx = module._to_onnx
    forgetful = lambda graph, metadata: to_onnx(module._BundleGraph(graph.net, graph.temperature).eval(), metadata)  # noqa: E731
    monkeypatch.setattr(module, "_to_onnx", forgetful)
    with pytest.raises(BundleError, match="answers a retired drug"):
        export_bundle(with_retired.checkpoint, with_retired.manifest, tmp_path / "b.onnx")
    assert list(tmp_path.iterdir()) == []


# --- what is refused


def _scale_a_weight(model: onnx.ModelProto) -> None:
    tensor = max(model.graph.initializer, key=lambda entry: np.prod(entry.dims))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))


def _answer_nan(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32("nan"), tensor.name))


def _fix_the_batch(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1


def _forget_the_metadata(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (_scale_a_weight, r"differs from PyTorch: .* on 24 test images \(allowed 0\.20%\)"),
        (_answer_nan, "NaN"),
        (_fix_the_batch, "dynamic batch"),
        (_forget_the_metadata, "without PillSnap's metadata"),
    ],
)
@pytest.mark.parametrize("former", [None, b"the former bundle"])
def test_a_graph_that_answers_otherwise_is_refused(
    house: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tamper: Tamper,
    message: str,
    former: bytes | None,
) -> None:
    model = onnx.load(house.bundle)
    tamper(model)
    monkeypatch.setattr(module, "_to_onnx", lambda *_: model)
    target = tmp_path / "pillsnap.onnx"
    if former is not None:
        target.write_bytes(former)
    with pytest.raises(BundleError, match=message):
        export_bundle(house.checkpoint, house.manifest, target)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == (
        {} if former is None else {target.name: former}
    )


def test_parity_is_measured_on_the_test_images(
    house: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[np.ndarray] = []
    predict = PillSession.predict
    monkeypatch.setattr(module, "_to_onnx", lambda *_: onnx.load(house.bundle))
    monkeypatch.setattr(PillSession, "predict", lambda self, images: (asked.append(images), predict(self, images))[1])
    export_bundle(house.checkpoint, house.manifest, tmp_path / "b.onnx")
    spec = house.checkpoint.config.preprocessing
    np.testing.assert_array_equal(asked[0], InferencePreprocessor(spec).prepare_batch(photos(house)))
    assert [len(images) for images in asked[1:]] == [1, 1, 1, 1]


def test_a_net_that_cannot_be_exported_leaves_nothing(
    house: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("operator not supported")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(BundleError, match=r"resnet18 cannot be exported to ONNX \(RuntimeError: operator not supp"):
        export_bundle(house.checkpoint, house.manifest, tmp_path / "b.onnx")
    assert list(tmp_path.iterdir()) == []


def test_another_manifest_is_refused(house: SimpleNamespace, squares: SimpleNamespace, tmp_path: Path) -> None:
    other = squares.save_squares(tmp_path / "other", {"train": 1, "val": 1, "test": 1})
    with pytest.raises(DataError, match="give the data set it was trained on"):
        export_bundle(house.checkpoint, other, tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize("missing", ["val", "test"])
def test_an_empty_split_is_refused(
    house: SimpleNamespace,
    squares: SimpleNamespace,
    tmp_path: Path,
    missing: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_to_onnx", lambda *_: onnx.load(house.bundle))
    splits = {split: 1 for split in ("train", "val", "test") if split != missing}
    manifest = squares.save_squares(tmp_path / "m", splits)
    with pytest.raises(DataError, match=f"the {missing} split is empty"):
        export_bundle(replace(house.checkpoint, manifest_hash=manifest.hash), manifest, tmp_path / "b.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_changed_and_missing_images_are_refused(
    house: SimpleNamespace, squares: SimpleNamespace, tmp_path: Path
) -> None:
    manifest = squares.save_squares(tmp_path / "m", {"val": 1, "test": 1})
    checkpoint = replace(house.checkpoint, manifest_hash=manifest.hash)
    first, second = (manifest.root / path for path in manifest.split("val")["path"].to_pylist()[:2])
    first.write_bytes(second.read_bytes())
    with pytest.raises(TamperedError, match=first.name):
        export_bundle(checkpoint, manifest, tmp_path / "b.onnx")
    first.unlink()
    with pytest.raises(ImageError, match=first.name):
        export_bundle(checkpoint, manifest, tmp_path / "b.onnx")


def test_a_large_split_is_sampled_evenly(house: SimpleNamespace) -> None:
    rows = module._rows_of_split(house.manifest, "test", limit=6)
    assert rows.num_rows == 6
    assert set(house.manifest.labels(rows).tolist()) >= {0, 5}
    assert module._rows_of_split(house.manifest, "test", limit=100).num_rows == 24


def test_export_is_quiet_and_leaves_logging_as_it_was(
    house: SimpleNamespace, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            metadata = BundleMetadata.from_props(
                {entry.key: entry.value for entry in onnx.load(house.bundle).metadata_props}, "b"
            )
            graph = module._BundleGraph(house.checkpoint.build_net(), 2.0).eval()
            model = module._to_onnx(graph, metadata)
        assert log.level == logging.INFO
    finally:
        log.setLevel(before)
    assert capsys.readouterr().out == ""
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO] == []
    assert {entry.key: entry.value for entry in model.metadata_props} == metadata.to_props()


def test_the_parity_table_has_pytorch_beside_the_bundle(house: SimpleNamespace, tmp_path: Path) -> None:
    house.checkpoint.save(tmp_path / "c.pt")
    arguments = ["parity", str(house.bundle), "--manifest", str(house.manifest.root), "--images", "6"]
    done = CliRunner().invoke(cli, [*arguments, "--checkpoint", str(tmp_path / "c.pt"), "--threads", "1"])
    assert done.exit_code == 0, done.output
    assert "Against PyTorch, batch 1, direct" in done.output
    lines = [line for line in done.output.splitlines() if line.startswith("| pillsnap (float32, onnxruntime) ")]
    assert len(lines) == 4
    assert "| 100.00% |" in lines[0]
