from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto

from pillsnap.core.cpu import usable_cores
from pillsnap.core.errors import BundleError, ConfigError, ImageError
from pillsnap.core.files import sha256_file
from pillsnap.core.preprocessing_spec import ClaheSpec
from pillsnap.inference.session import PillSession


@pytest.fixture
def bundle(toys: SimpleNamespace, tmp_path: Path) -> Path:
    return toys.save_bundle(tmp_path / "model.onnx", toys.toy_colors(6))


def png(color: tuple[int, int, int], side: int = 50) -> bytes:
    return cv2.imencode(".png", np.full((side, side, 3), color[::-1], np.uint8))[1].tobytes()


def test_reads_what_the_bundle_says_of_itself(toys: SimpleNamespace, bundle: Path) -> None:
    session = PillSession.load(bundle, threads=1)
    assert [entry.kcode for entry in session.metadata.classes] == list(toys.toy_catalog(6).kcodes)
    assert session.sha256 == sha256_file(bundle)
    assert session.size_bytes == bundle.stat().st_size
    assert (session.threads, session.provider) == (1, "CPUExecutionProvider")
    assert PillSession.load(bundle).threads == usable_cores()


def test_loads_from_bytes_too(bundle: Path) -> None:
    assert PillSession.load(bundle.read_bytes()).sha256 == sha256_file(bundle)


def test_a_path_may_be_a_text(bundle: Path) -> None:
    assert PillSession.load(str(bundle)).sha256 == sha256_file(bundle)
    with pytest.raises(BundleError, match=r"nofile\.onnx: cannot be read"):
        PillSession.load("nofile.onnx")


def test_predict_agrees_with_the_formula(toys: SimpleNamespace, bundle: Path) -> None:
    session = PillSession.load(bundle)
    image_NHWC_u8 = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    answer = session.predict(image_NHWC_u8)
    colors_K3 = toys.toy_colors(6)
    mean_N3 = image_NHWC_u8.reshape(3, -1, 3).mean(axis=1)
    expected_NK = (2 * mean_N3 @ colors_K3.T - (colors_K3**2).sum(axis=1)) / 1000
    np.testing.assert_allclose(answer.logits_NK, expected_NK, rtol=1e-4)
    np.testing.assert_allclose(answer.probabilities_NK.sum(axis=1), 1, rtol=1e-5)
    assert answer.logits_NK.dtype == answer.probabilities_NK.dtype == np.float32


def test_identify_ranks_the_drugs(toys: SimpleNamespace, bundle: Path) -> None:
    session = PillSession.load(bundle)
    best = session.identify(png((40, 40, 200)), top=3)
    assert [candidate.rank for candidate in best] == [1, 2, 3]
    assert (best[0].kcode, best[0].drug_name, best[0].manufacturer) == ("K-990003", "가상정2", "가상제약")
    assert best[0].confidence >= best[1].confidence >= best[2].confidence
    assert len(session.identify(png((1, 2, 3)), top=99)) == 6


def test_an_answer_is_what_identify_says_with_the_time_of_each_stage(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = PillSession.load(bundle)
    ticks = iter([1.0, 1.002, 1.005, 1.015])
    monkeypatch.setattr("pillsnap.inference.session.time.perf_counter", lambda: next(ticks))
    answer = session.answer(png((40, 40, 200)), top=3)
    assert answer.stages_ms == {
        "decode": pytest.approx(2),
        "prepare": pytest.approx(3),
        "inference": pytest.approx(10),
    }
    monkeypatch.undo()
    assert answer.candidates == session.identify(png((40, 40, 200)), top=3)


def test_an_answer_says_whether_it_is_sure(toys: SimpleNamespace, bundle: Path) -> None:
    """By the bundle's threshold, or 0.5 where it names none; never of a picture in which nothing can be seen."""
    session = PillSession.load(bundle)
    seen = cv2.imencode(".png", toys.toy_picture(np.asarray([200, 40, 40]), 512))[1].tobytes()
    answer = session.answer(seen)
    assert (answer.sure, answer.doubts, session.unsure_below) == (True, (), 0.5)
    even = session.answer(png((200, 40, 40), 512))
    assert even.candidates[0].confidence > 0.9
    assert (even.sure, [doubt.code for doubt in even.doubts]) == (False, ["blank"])
    strict = toys.toy_metadata(toys.toy_catalog(6)).model_copy(update={"unsure_below": 0.9999, "temperature": 1.0})
    path = bundle.with_name("strict.onnx")
    session = PillSession.load(toys.save_model(path, toys.toy_graph(toys.toy_colors(6) / 4), strict.to_props()))
    assert (session.answer(seen).sure, session.unsure_below) == (False, 0.9999)


def test_a_small_net_that_decodes_smaller_sees_sharp_and_blurred_as_any_other(
    toys: SimpleNamespace, tmp_path: Path
) -> None:
    """Of 512 pixels it decodes 64, in which nothing is sharp: the picture is looked at as the audit does."""
    spec = toys.SPEC.model_copy(update={"decoding": "reduced"})
    update = {"preprocessing": spec, "preprocessing_fingerprint": spec.fingerprint}
    props = toys.toy_metadata(toys.toy_catalog(6)).model_copy(update=update).to_props()
    path = toys.save_model(tmp_path / "b.onnx", toys.toy_graph(toys.toy_colors(6)), props)
    session = PillSession.load(path)
    fine = np.tile(np.linspace(60, 180, 512)[None, :, None], (512, 1, 3)).astype(np.uint8)
    fine[np.arange(512) % 8 < 4] += 12
    sharp, blurred = (cv2.imencode(".jpg", image)[1].tobytes() for image in (fine, cv2.GaussianBlur(fine, (0, 0), 4)))
    assert session.preprocessor.decode(sharp).shape == (64, 64, 3)
    assert session.answer(sharp).doubts == ()
    assert [doubt.code for doubt in session.answer(blurred).doubts] == ["blurred"]


def test_the_stages_of_an_answer_are_the_whole_preprocessing(toys: SimpleNamespace, tmp_path: Path) -> None:
    """CLAHE on and a photo that is not square: the answer's own steps give what `prepare_for_model` gives."""
    spec = toys.SPEC.model_copy(update={"clahe": ClaheSpec(enabled=True)})
    update = {"preprocessing": spec, "preprocessing_fingerprint": spec.fingerprint}
    props = toys.toy_metadata(toys.toy_catalog(6)).model_copy(update=update).to_props()
    session = PillSession.load(toys.save_model(tmp_path / "b.onnx", toys.toy_graph(toys.toy_colors(6)), props))
    picture = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    photo = cv2.imencode(".png", picture)[1].tobytes()
    expected = session.predict(session.preprocessor.prepare_for_model(photo)).probabilities_NK[0]
    answered = {found.kcode: found.confidence for found in session.answer(photo, top=6).candidates}
    kcodes = [entry.kcode for entry in session.metadata.classes]
    assert [answered[kcode] for kcode in kcodes] == expected.tolist()


def test_a_retired_drug_is_never_named_even_if_the_graph_answers_it(toys: SimpleNamespace, tmp_path: Path) -> None:
    metadata = toys.toy_metadata(toys.toy_catalog(6, retired=(2,)))
    path = toys.save_model(tmp_path / "b.onnx", toys.toy_graph(toys.toy_colors(6)), metadata.to_props())
    answers = PillSession.load(path).identify(png((40, 40, 200)), top=6)
    assert [answer.rank for answer in answers] == [1, 2, 3, 4, 5]
    assert "K-990003" not in [answer.kcode for answer in answers]


def test_identify_refuses(bundle: Path) -> None:
    session = PillSession.load(bundle)
    with pytest.raises(ImageError, match=r"^pill\.jpg: is not a picture"):
        session.identify(b"not a picture", name="pill.jpg")
    with pytest.raises(ConfigError, match="top"):
        session.identify(png((1, 2, 3)), top=0)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 32, 32, 3), np.float32),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((0, 32, 32, 3), np.uint8),
        np.zeros((1, 3, 32, 32), np.uint8),
    ],
)
def test_predict_refuses_other_images(bundle: Path, image: np.ndarray) -> None:
    with pytest.raises(ImageError, match="N×32×32×3"):
        PillSession.load(bundle).predict(image)


def test_an_answer_that_is_no_number_is_refused(toys: SimpleNamespace, tmp_path: Path) -> None:
    session = PillSession.load(toys.save_bundle(tmp_path / "nan.onnx", toys.toy_colors(6), nan=True))
    with pytest.raises(BundleError, match="NaN"):
        session.identify(png((1, 2, 3)))


def test_what_is_no_bundle_is_refused(toys: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(BundleError, match=r"model\.onnx: cannot be read"):
        PillSession.load(path)
    path.write_bytes(b"")
    with pytest.raises(BundleError, match="empty"):
        PillSession.load(path)
    path.write_bytes(b"these bytes are not ONNX at all")
    with pytest.raises(BundleError, match="not an ONNX model"):
        PillSession.load(path)
    toys.save_model(path, toys.toy_graph(toys.toy_colors(6)), {})
    with pytest.raises(BundleError, match="without PillSnap's metadata"):
        PillSession.load(path)


def test_a_cut_bundle_is_refused(bundle: Path) -> None:
    data = bundle.read_bytes()
    for length in (1, len(data) // 4, len(data) // 2, len(data) - 1):
        with pytest.raises(BundleError):
            PillSession.load(data[:length])


def test_too_few_threads_are_refused(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="threads"):
        PillSession.load(bundle, threads=0)


def test_another_interface_is_refused(toys: SimpleNamespace, tmp_path: Path) -> None:
    colors = toys.toy_colors(6)
    path = tmp_path / "model.onnx"
    with pytest.raises(BundleError, match="uint8"):
        PillSession.load(toys.save_bundle(path, colors, image_type=TensorProto.FLOAT))
    with pytest.raises(BundleError, match="dynamic batch"):
        PillSession.load(toys.save_bundle(path, colors, batch=1))
    props = toys.toy_metadata(toys.toy_catalog(5)).to_props()
    with pytest.raises(BundleError, match="6 classes, its metadata 5"):
        PillSession.load(toys.save_model(path, toys.toy_graph(colors), props))
    graph = toys.toy_graph(colors)
    del graph.output[0]
    with pytest.raises(BundleError, match="'logits'"):
        PillSession.load(toys.save_model(path, graph, toys.toy_metadata(toys.toy_catalog(6)).to_props()))


def test_another_size_than_its_metadata_is_refused(toys: SimpleNamespace, tmp_path: Path) -> None:
    graph = toys.toy_graph(toys.toy_colors(6))
    graph.input[0].type.tensor_type.shape.dim[1].dim_value = 64
    props = toys.toy_metadata(toys.toy_catalog(6)).to_props()
    with pytest.raises(BundleError, match="axis H of the input is 64, its metadata says 32"):
        PillSession.load(toys.save_model(tmp_path / "model.onnx", graph, props))


def test_classes_are_counted_where_the_graph_does_not_name_them(toys: SimpleNamespace, tmp_path: Path) -> None:
    graph = toys.toy_graph(toys.toy_colors(6))
    for output in graph.output:
        output.type.tensor_type.shape.dim[1].CopyFrom(onnx.TensorShapeProto.Dimension(dim_param="K"))
    props = toys.toy_metadata(toys.toy_catalog(5)).to_props()
    with pytest.raises(BundleError, match=r"shape \(1, 6\), expected \(1, 5\)|6 classes, its metadata 5"):
        PillSession.load(toys.save_model(tmp_path / "model.onnx", graph, props))


@pytest.mark.parametrize(("largest", "refused"), [(64, False), (65, True), (-128, True)])
def test_8_bit_weights_whose_sums_overflow_on_some_processors_are_refused(
    bundle: Path, largest: int, refused: bool
) -> None:
    model = onnx.load(bundle)
    weights = np.asarray([[1, largest], [0, -1]], np.int8)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "kernel"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray([-128], np.int8), "zero_point"))
    if not refused:
        assert PillSession.load(model.SerializeToString()).metadata.classes
        return
    with pytest.raises(BundleError, match=rf"weights reach {abs(largest)} \(kernel\).*without VNNI.*pillsnap quantise"):
        PillSession.load(model.SerializeToString())
