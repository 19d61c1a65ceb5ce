"""Variants of a bundle that was trained on coloured squares: the graph, the metadata, what is refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from scipy.special import softmax

from pillsnap.cli.main import cli
from pillsnap.cli.quantise import quantise as quantise_command
from pillsnap.core.bundle import LARGEST_8_BIT_WEIGHT, RETIRED_LOGIT, BundleMetadata, EngineName
from pillsnap.core.errors import BundleError, DataError
from pillsnap.core.files import sha256_file
from pillsnap.core.manifest import Manifest
from pillsnap.evaluation.predict import predict_split
from pillsnap.exporting import quantise as module
from pillsnap.exporting.export import export_bundle
from pillsnap.exporting.quantise import Recipe, Variant, calibration_rows, loss_of, make_variant
from pillsnap.exporting.split_images import prepared_batches
from pillsnap.exporting.temperature import fit_temperature
from pillsnap.inference.session import PillSession
from pillsnap.tracking.models import load_bundle
from pillsnap.training.backbone import create_net
from pillsnap.training.checkpoint import Checkpoint
from pillsnap.training.eight_bits import EightBits


@pytest.fixture(scope="module")
def int8(house: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Variant:
    out = tmp_path_factory.mktemp("int8") / "int8.onnx"
    return make_variant(house.bundle, house.manifest, out, Recipe(images=60, search=False))


def test_weights_are_8_bit_in_one_small_file(house: SimpleNamespace, int8: Variant) -> None:
    model = onnx.load(int8.bundle, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert int8.bundle.stat().st_size < 0.4 * house.bundle.stat().st_size
    assert {entry.domain for entry in model.opset_import} == {""}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    kernels = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 4 and np.prod(tensor.dims) > 3]
    assert {tensor.data_type for tensor in kernels} == {onnx.TensorProto.INT8}
    zero_points = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    activations = {tensor.name: tensor.data_type for tensor in model.graph.initializer if tensor.name in zero_points}
    assert set(activations.values()) == {onnx.TensorProto.UINT8}
    scales = [t for t in model.graph.initializer if t.name.endswith("_scale") and len(t.dims) == 1 and t.dims[0] > 1]
    assert scales, "one scale a channel"


def test_it_answers_as_the_bundle_that_it_was_made_from(house: SimpleNamespace, int8: Variant) -> None:
    ours = predict_split(PillSession.load(int8.bundle, threads=1), house.manifest)
    theirs = predict_split(PillSession.load(house.bundle, threads=1), house.manifest)
    assert (ours.predicted_N == theirs.predicted_N).mean() > 0.9
    np.testing.assert_allclose(ours.probabilities_NK, theirs.probabilities_NK, atol=0.15)
    assert np.abs(ours.probabilities_NK - theirs.probabilities_NK).max() > 1e-6  # it is another net


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_engine_computes_what_the_graph_says_on_every_processor(
    house: SimpleNamespace, tmp_path: Path, engine: EngineName
) -> None:
    """Without VNNI sums of large 8-bit weights overflow in 16 bits; the graph taken literally knows no such thing."""
    recipe = Recipe(engine=engine, images=60, search=False)
    variant = make_variant(house.bundle, house.manifest, tmp_path / "int8.onnx", recipe)
    tensors = onnx.load(variant.bundle).graph.initializer
    kernels = [onnx.numpy_helper.to_array(tensor) for tensor in tensors if tensor.data_type == onnx.TensorProto.INT8]
    assert max(np.abs(kernel).max() for kernel in kernels if kernel.ndim > 1) == LARGEST_8_BIT_WEIGHT
    literally = ort.SessionOptions()
    literally.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    images_NHWC_u8 = train_images(house)
    expected_NK = ort.InferenceSession(variant.bundle, literally).run(["logits"], {"image": images_NHWC_u8})[0]
    found_NK = PillSession.load(variant.bundle, threads=1).predict(images_NHWC_u8).logits_NK
    float_NK = PillSession.load(house.bundle, threads=1).predict(images_NHWC_u8).logits_NK
    assert np.abs(found_NK - expected_NK).mean() < 0.1 * np.abs(found_NK - float_NK).mean()


def test_a_quantisation_aware_training_rounds_as_the_variant_does(house: SimpleNamespace, tmp_path: Path) -> None:
    """As coarsely, that is: ranges that differ in the third digit round other values up."""
    recipe = Recipe(engine="openvino", images=96, search=False)
    variant = make_variant(house.bundle, house.manifest, tmp_path / "int8.onnx", recipe)
    images_NHWC_u8 = train_images(house)
    net = house.checkpoint.build_net()
    with torch.inference_mode():
        float_NK = net(torch.from_numpy(images_NHWC_u8)).numpy()
        with EightBits():
            rounded_NK = net(torch.from_numpy(images_NHWC_u8)).numpy()
    variant_NK = PillSession.load(variant.bundle, threads=1).predict(images_NHWC_u8).logits_NK
    in_training, in_service = (np.abs(eight_NK - float_NK).mean() for eight_NK in (rounded_NK, variant_NK))
    assert 0.7 < in_training / in_service < 1.4


def train_images(house: SimpleNamespace) -> np.ndarray:
    """All training images, prepared, as one batch."""
    preprocessor = PillSession.load(house.bundle).preprocessor
    return np.concatenate(list(prepared_batches(house.manifest, house.manifest.split("train"), preprocessor, 8)))


def test_the_metadata_say_where_it_came_from(house: SimpleNamespace, int8: Variant) -> None:
    metadata = PillSession.load(int8.bundle).metadata
    source = PillSession.load(house.bundle).metadata
    assert metadata == int8.metadata
    assert (metadata.precision, metadata.engine, metadata.parity) == ("int8", "onnxruntime", None)
    assert metadata.source_sha256 == sha256_file(house.bundle)
    assert metadata.calibration is not None
    assert (metadata.calibration.method, metadata.calibration.images) == ("image-median", 60)
    assert metadata.calibration.manifest_hash == house.manifest.hash
    assert metadata.source_parity is not None
    assert metadata.source_parity.images == house.manifest.split("val").num_rows
    same = {"classes", "preprocessing", "preprocessing_fingerprint", "provenance"}
    assert metadata.model_dump(include=same) == source.model_dump(include=same)
    assert {p.key: p.value for p in onnx.load(int8.bundle).metadata_props} == metadata.to_props()


def test_logits_are_never_8_bit(int8: Variant) -> None:
    graph = onnx.load(int8.bundle).graph
    maker = {output: node for node in graph.node for output in node.output}
    assert maker["logits"].op_type == "Gemm"
    assert maker["pillsnap_tempered"].input[0] == "logits"


def test_the_temperature_is_its_own(house: SimpleNamespace, int8: Variant) -> None:
    session = PillSession.load(int8.bundle, threads=1)
    rows = house.manifest.split("val")
    photos = [(house.manifest.root / path).read_bytes() for path in rows["path"].to_pylist()]
    answer = session.predict(session.preprocessor.prepare_batch(photos))
    expected = fit_temperature(answer.logits_NK, house.manifest.labels(rows))
    assert session.metadata.temperature == pytest.approx(expected, rel=2e-3)
    probabilities_NK = softmax(answer.logits_NK / session.metadata.temperature, axis=1)
    np.testing.assert_allclose(answer.probabilities_NK, probabilities_NK, rtol=1e-4, atol=1e-6)


def test_the_same_bundle_and_manifest_give_the_same_bytes(
    house: SimpleNamespace, int8: Variant, tmp_path: Path
) -> None:
    again = make_variant(house.bundle, house.manifest, tmp_path / "b.onnx", Recipe(images=60, search=False))
    assert again.sha256 == int8.sha256


def test_mlflow_keeps_its_bytes(int8: Variant, tmp_path: Path) -> None:
    """MLflow writes a model anew from the object: the digest must survive that."""
    model, _ = load_bundle(int8.bundle)
    onnx.save(model, tmp_path / "b.onnx")
    assert sha256_file(tmp_path / "b.onnx") == int8.sha256


def test_calibration_sees_training_images_of_every_class(
    house: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    save_ranges = module.save_ranges

    def watch(prepared: Path, batches: object, calibration: str, ranges: Path) -> None:
        images = list(batches)
        seen.extend(images)
        save_ranges(prepared, images, calibration, ranges)

    monkeypatch.setattr(module, "save_ranges", watch)
    make_variant(house.bundle, house.manifest, tmp_path / "b.onnx", Recipe(images=18, search=False))
    assert [len(image) for image in seen] == [1] * 18  # one at a time: the memory stays
    preprocessor = PillSession.load(house.bundle).preprocessor
    label_of = {}
    for row in house.manifest.split("train").to_pylist():
        image = preprocessor.prepare_for_model((house.manifest.root / row["path"]).read_bytes())
        label_of[image.tobytes()] = row["label"]
    assert Counter(label_of[image.tobytes()] for image in seen) == dict.fromkeys(range(6), 3)


@pytest.mark.parametrize("calibration", ["percentile", "minmax", "entropy"])
def test_other_calibrations(house: SimpleNamespace, int8: Variant, tmp_path: Path, calibration: str) -> None:
    recipe = Recipe(calibration=calibration, images=18, search=False)
    variant = make_variant(house.bundle, house.manifest, tmp_path / "b.onnx", recipe)
    assert variant.metadata.calibration is not None
    assert variant.metadata.calibration.method == calibration
    assert variant.sha256 != int8.sha256


def test_the_search_puts_layers_in_float_and_says_which(house: SimpleNamespace, tmp_path: Path) -> None:
    variant = make_variant(house.bundle, house.manifest, tmp_path / "b.onnx", Recipe(images=18))
    calibration = variant.metadata.calibration
    assert calibration is not None
    assert len(variant.trials) >= 1
    kept = [trial for trial in variant.trials if trial.kept][-1]
    assert set(calibration.float_layers) == kept.float_layers
    model = onnx.load(variant.bundle)
    float_weights = {
        node.name: node.input[1] for node in model.graph.node if node.op_type in ("Conv", "Gemm")
        and node.input[1] in {tensor.name for tensor in model.graph.initializer}
    }  # fmt: skip
    assert set(float_weights) == kept.float_layers


@pytest.mark.parametrize("helps", [True, False])
def test_biases_are_corrected_where_that_helps(
    house: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helps: bool
) -> None:
    """It would undo what a net has learned that learned with the rounding."""
    quantised_graph = module.quantised_graph

    def times(model: onnx.ModelProto, factor: int) -> None:
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.INT32:
                bias = onnx.numpy_helper.to_array(tensor) * factor
                tensor.CopyFrom(onnx.numpy_helper.from_array(bias, tensor.name))

    def with_wrong_biases(*arguments: Any, **options: Any) -> onnx.ModelProto:
        model = quantised_graph(*arguments, **options)
        times(model, -1 if helps else 1)
        return model

    monkeypatch.setattr(module, "quantised_graph", with_wrong_biases)
    monkeypatch.setattr(module, "correct_biases", lambda model, *_: times(model, -1))
    variant = make_variant(house.bundle, house.manifest, tmp_path / "b.onnx", Recipe(images=18))
    calibration = variant.metadata.calibration
    assert calibration is not None
    assert calibration.biases_corrected is helps
    assert variant.trials[0].loss.error < 0.1
    parity = variant.metadata.source_parity
    assert parity is not None
    assert parity.mean_relative_difference < 0.05


def test_a_retired_drug_stays_shut(house: SimpleNamespace, squares: SimpleNamespace, tmp_path: Path) -> None:
    manifest = squares.save_squares(tmp_path / "m", {"train": 4, "val": 4, "test": 4}, retired=(1,))
    state = {key: value.clone() for key, value in house.checkpoint.state_dict.items()}
    state["backbone.fc.bias"][1] += 1000
    checkpoint = replace(house.checkpoint, manifest_hash=manifest.hash, state_dict=state)
    export_bundle(checkpoint, manifest, tmp_path / "source.onnx")
    variant = make_variant(tmp_path / "source.onnx", manifest, tmp_path / "b.onnx", Recipe(images=20, search=False))
    answers = predict_split(PillSession.load(variant.bundle, threads=1), manifest)
    assert not answers.probabilities_NK[:, 1].any()
    assert variant.metadata.source_parity is not None
    assert variant.metadata.source_parity.largest_relative_difference < 1  # the shut logit has no part in it
    image = np.zeros((1, 32, 32, 3), np.uint8)
    assert PillSession.load(variant.bundle).predict(image).logits_NK[0, 1] == np.float32(RETIRED_LOGIT)


def test_the_same_graph_for_another_engine(house: SimpleNamespace, tmp_path: Path) -> None:
    variant = make_variant(
        house.bundle, house.manifest, tmp_path / "b.onnx", Recipe(precision="float", engine="openvino")
    )
    session = PillSession.load(variant.bundle, threads=1)
    assert session.provider == "CPU OpenVINO f32"
    assert (variant.metadata.precision, variant.metadata.calibration, variant.trials) == ("float32", None, ())
    assert variant.metadata.source_sha256 == sha256_file(house.bundle)
    ours = predict_split(session, house.manifest)
    theirs = predict_split(PillSession.load(house.bundle, threads=1), house.manifest)
    np.testing.assert_allclose(ours.probabilities_NK, theirs.probabilities_NK, atol=1e-3)


def test_for_openvino_what_a_layer_gives_stays_in_float(house: SimpleNamespace, int8: Variant, tmp_path: Path) -> None:
    """Its kernels fuse the activation; ONNX Runtime's need 8 bits on both sides."""
    recipe = Recipe(engine="openvino", images=60, search=False)
    variant = make_variant(house.bundle, house.manifest, tmp_path / "b.onnx", recipe)

    def pairs(bundle: Path) -> int:
        return sum(node.op_type == "QuantizeLinear" for node in onnx.load(bundle).graph.node)

    assert 0 < pairs(variant.bundle) < pairs(int8.bundle)
    assert PillSession.load(variant.bundle).engine.name == "openvino"


def test_openvino_computes_hard_swish_within_the_layers(
    house: SimpleNamespace, squares: SimpleNamespace, tmp_path: Path, openvino_layers: Any
) -> None:
    config = squares.tiny_config({"model.backbone": "lcnet_035", "model.kwargs": {}})
    catalog = house.manifest.catalog
    net = create_net(config.model, config.preprocessing, len(catalog.drugs))
    checkpoint = Checkpoint(config, catalog.kcodes, house.manifest.hash, 1, {}, net.state_dict())
    bundle = export_bundle(checkpoint, house.manifest, tmp_path / "float.onnx").bundle
    recipe = Recipe(engine="openvino", images=60, search=False)
    variant = make_variant(bundle, house.manifest, tmp_path / "int8.onnx", recipe)
    layers = openvino_layers(onnx.load(variant.bundle))
    assert layers["Convolution"] + layers["GroupConvolution"] > 20
    assert layers["Math"] == 2, "hard sigmoid of its own: in the two gates alone"


# --- what is refused


def test_an_8_bit_bundle_is_no_source(house: SimpleNamespace, int8: Variant, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"int8\.onnx: is 8-bit already; give the bundle"):
        make_variant(int8.bundle, house.manifest, tmp_path / "b.onnx", Recipe())
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_of_other_drugs_is_refused(house: SimpleNamespace, toys: SimpleNamespace, tmp_path: Path) -> None:
    manifest = toys.save_manifest(tmp_path / "m", toys.toy_colors(5), [(0, 0, "train", "real")])
    with pytest.raises(DataError, match=r"is of other drugs .*\(5 and 6 classes"):
        make_variant(house.bundle, manifest, tmp_path / "b.onnx", Recipe())


def test_few_images_of_uneven_classes_are_counted_as_they_are_taken(house: SimpleNamespace) -> None:
    class Uneven:
        root = house.manifest.root

        def split(self, name: str) -> pa.Table:
            return pa.table({"label": [0] * 40 + [1, 2, 3]})

    with pytest.raises(DataError, match=r": 7 images .* \(43 of training, 16 asked for"):
        calibration_rows(Uneven(), 16)
    assert calibration_rows(Uneven(), 60).num_rows == 18


def test_the_loss_of_a_choice_is_that_of_the_typical_image() -> None:
    """The photos whose values are cut off, on purpose, are no reason to put layers in float."""
    rng = np.random.default_rng(0)
    expected_NK = rng.normal(size=(9, 5)).astype(np.float32)
    found_NK = expected_NK * np.float32(1.01)
    loss = loss_of(expected_NK, found_NK)
    expected_NK[0] *= 100  # cut off: comes out as small as the others
    found_NK[0] = expected_NK[0] / 10
    assert loss_of(expected_NK, found_NK) == replace(loss, error=pytest.approx(loss.error, rel=0.3))
    assert 0 < loss.error < 0.01
    found_NK[:5] = -found_NK[:5]  # most of them: that counts
    assert loss_of(expected_NK, found_NK).error > 30 * loss.error
    assert loss_of(expected_NK, found_NK).agreement == pytest.approx(4 / 9, abs=0.01)


def trained_on(bundle: Path, manifest: Manifest, out: Path) -> Path:
    """The bundle, as if it had been trained on this data set."""
    model = onnx.load(bundle)
    metadata = BundleMetadata.from_props({entry.key: entry.value for entry in model.metadata_props}, str(bundle))
    provenance = metadata.provenance.model_copy(update={"manifest_hash": manifest.hash})
    onnx.helper.set_model_props(model, metadata.model_copy(update={"provenance": provenance}).to_props())
    onnx.save(model, out)
    return out


def test_another_data_set_of_the_same_drugs_is_refused(
    house: SimpleNamespace, squares: SimpleNamespace, tmp_path: Path
) -> None:
    """Its validation images may be those that the gate tests with."""
    other = squares.save_squares(tmp_path / "other", {"train": 5, "val": 3, "test": 3})
    for precision in ("int8", "float"):
        with pytest.raises(DataError, match=r"other: is another data set \(manifest .*may test in the other"):
            make_variant(house.bundle, other, tmp_path / "b.onnx", Recipe(precision=precision))  # type: ignore[arg-type]
    assert not (tmp_path / "b.onnx").exists()


def test_too_few_images_are_refused(house: SimpleNamespace, squares: SimpleNamespace, tmp_path: Path) -> None:
    few = squares.save_squares(tmp_path / "few", {"train": 2, "val": 1, "test": 1})
    with pytest.raises(DataError, match=r"12 images .*12 of training, 256 asked for, .* at least 16 are needed"):
        make_variant(trained_on(house.bundle, few, tmp_path / "few.onnx"), few, tmp_path / "b.onnx", Recipe())
    with pytest.raises(DataError, match="3 asked for"):
        make_variant(house.bundle, house.manifest, tmp_path / "b.onnx", Recipe(images=3))
    blind = squares.save_squares(tmp_path / "blind", {"train": 4, "test": 1})
    with pytest.raises(DataError, match="the val split is empty"):
        make_variant(trained_on(house.bundle, blind, tmp_path / "blind.onnx"), blind, tmp_path / "b.onnx", Recipe())
    assert not (tmp_path / "b.onnx").exists()


def test_a_graph_without_layers_is_refused(toys: SimpleNamespace, tmp_path: Path) -> None:
    images = [(label, label, split, "real") for label in range(6) for split in ("train", "val") for _ in range(6)]
    graph = toys.toy_graph(toys.toy_colors(6))
    graph.node[2].op_type, graph.node[2].input[1] = "Mul", "color"
    graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "bias"))
    for output in graph.output:
        output.type.tensor_type.shape.dim[1].dim_value = 3
    manifest = toys.save_manifest(tmp_path / "three", toys.toy_colors(3), [image for image in images if image[0] < 3])
    metadata = toys.toy_metadata(toys.toy_catalog(3), manifest.hash)
    path = toys.save_model(tmp_path / "b.onnx", graph, metadata.to_props())
    with pytest.raises(BundleError, match=r"b\.onnx: holds no layer that could be 8-bit"):
        make_variant(path, manifest, tmp_path / "q.onnx", Recipe(search=False))


# --- the command


def test_the_command(house: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "b.onnx"
    arguments = ["quantise", str(house.bundle), "--manifest", str(house.manifest.root), "--out", str(out)]
    done = CliRunner().invoke(cli, [*arguments, "--images", "18", "--calibration", "minmax", "--no-search"])
    assert done.exit_code == 0, done.output
    assert "engine openvino" in done.output
    assert "8-bit: 14 of 14 layers" in done.output
    assert f"against {house.bundle} on" in done.output
    metadata = PillSession.load(out).metadata
    assert metadata.calibration is not None
    assert (metadata.calibration.method, metadata.calibration.images) == ("minmax", 18)


def test_the_command_recommends_what_the_recipe_does() -> None:
    asked = {parameter.name: parameter.default for parameter in quantise_command.params}
    recipe = Recipe()
    assert (asked["calibration"], asked["images"], asked["search"]) == (
        recipe.calibration,
        recipe.images,
        recipe.search,
    )


@pytest.mark.parametrize(("agreement", "warned"), [(0.9949, True), (0.995, False)])
def test_a_variant_that_answers_otherwise_is_called_one(
    house: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agreement: float, warned: bool
) -> None:
    measured = module.source_parity

    def parity(*logits: np.ndarray) -> object:
        return measured(*logits).model_copy(update={"top1_agreement": agreement})

    monkeypatch.setattr(module, "source_parity", parity)
    out = tmp_path / "variant.onnx"
    arguments = ["quantise", str(house.bundle), "--manifest", str(house.manifest.root), "--out", str(out)]
    done = CliRunner().invoke(cli, [*arguments, "--engine", "onnxruntime", "--precision", "float"])
    assert done.exit_code == 0, done.output
    assert ("warning: 0.5% of the answers are other ones" in done.stderr) is warned


def test_the_command_does_not_write_over_its_source(house: SimpleNamespace) -> None:
    before = house.bundle.read_bytes()
    arguments = ["quantise", str(house.bundle), "--manifest", str(house.manifest.root), "--out", str(house.bundle)]
    done = CliRunner().invoke(cli, arguments)
    assert "is the bundle itself" in str(done.exception)
    assert house.bundle.read_bytes() == before
