from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper

from pillsnap.cli.main import cli
from pillsnap.core.bundle import BundleMetadata
from pillsnap.core.errors import BundleError, ConfigError, DataError, EvidenceError, ImageError, TamperedError
from pillsnap.core.evidence import Evidence, Metric
from pillsnap.core.files import sha256_file
from pillsnap.core.manifest import Manifest
from pillsnap.evaluation import evidence as evidence_module
from pillsnap.evaluation import metrics, pictures
from pillsnap.evaluation.card import model_card
from pillsnap.evaluation.evidence import EvaluationResult, evaluate
from pillsnap.evaluation.examples import mistakes_in_order
from pillsnap.evaluation.latency import choose_photos, measure_latency
from pillsnap.evaluation.predict import Predictions, predict_split
from pillsnap.evaluation.report import PREDICTIONS_FILE, report_text, write_report
from pillsnap.gate.decision import Status, decide
from pillsnap.gate.policy import DEFAULT_PATH, MinimumTestImages, Policy
from pillsnap.inference.session import PillSession

# (label, painted as, split, domain): of 10 test images 7 are right, of 5 real ones 4; class 5 has none.
IMAGES = [
    *[(0, 0, "test", "real")] * 2,
    (0, 1, "test", "real"),
    *[(1, 1, "test", "real")] * 2,
    *[(2, 2, "test", "studio")] * 2,
    (2, 3, "test", "studio"),
    (3, 2, "test", "studio"),
    (4, 4, "test", "studio"),
    *[(5, 5, "train", "real")] * 2,
    (0, 0, "val", "real"),
]


@pytest.fixture(scope="module")
def house(toys: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("house")
    manifest = toys.save_manifest(root / "manifest", toys.toy_colors(6), IMAGES)
    bundle = toys.save_bundle(root / "model.onnx", toys.toy_colors(6), manifest.hash)
    return SimpleNamespace(manifest=manifest, bundle=bundle, result=evaluate(bundle, manifest, threads=1))


@pytest.fixture
def small(toys: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """A copy that a test may damage."""
    manifest = toys.save_manifest(tmp_path / "manifest", toys.toy_colors(6), IMAGES)
    return SimpleNamespace(manifest=manifest, bundle=toys.save_bundle(tmp_path / "model.onnx", toys.toy_colors(6)))


def test_figures_are_those_of_the_painted_pictures(house: SimpleNamespace) -> None:
    evidence = house.result.evidence
    top1, real = evidence.metrics["top1"], evidence.metrics["real_top1"]
    assert (top1.value, top1.images) == (0.7, 10)
    assert (real.value, real.images) == (0.8, 5)
    assert evidence.metrics["studio_top1"].value == 0.6
    assert top1.low < 0.7 < top1.high
    assert evidence.metrics["size_mb"].value == house.bundle.stat().st_size / 1e6
    assert evidence.metrics["latency_p95_ms"].value == evidence.latency.p95_ms >= evidence.latency.p50_ms > 0
    assert 0 <= evidence.metrics["ece"].value <= 1
    assert evidence.confusions == (
        ("K-990001", "K-990002", 1), ("K-990003", "K-990004", 1), ("K-990004", "K-990003", 1),
    )  # fmt: skip
    assert evidence.failures == ("K-990004", "K-990001", "K-990003")


def test_how_many_answers_are_sure_and_right_is_measured(
    house: SimpleNamespace, toys: SimpleNamespace, tmp_path: Path
) -> None:
    assert "sure_share" not in house.result.evidence.calibration, "this bundle names no threshold"
    metadata = toys.toy_metadata(toys.toy_catalog(6), house.manifest.hash)
    props = metadata.model_copy(update={"unsure_below": 0.5}).to_props()
    bundle = toys.save_model(tmp_path / "t.onnx", toys.toy_graph(toys.toy_colors(6)), props)
    calibration = evaluate(bundle, house.manifest).evidence.calibration
    assert calibration["unsure_below"] == 0.5
    assert calibration["sure_share"] == 1, "the toy is sure of every colour"
    assert calibration["right_when_sure"] == pytest.approx(0.7)


def test_calibration_counted_by_hand() -> None:
    """Four answers of a net whose temperature is 2; the first is wrong, and the two first are real photos."""
    probabilities_NK = np.asarray([[0.8, 0.2], [0.6, 0.4], [0.6, 0.4], [0.9, 0.1]], np.float32)
    session: Any = SimpleNamespace(metadata=SimpleNamespace(temperature=2.0, unsure_below=0.7))
    predictions = Predictions(pa.table({"n": range(4)}), np.asarray([1, 0, 0, 0]), probabilities_NK)
    right_N, real_N = np.asarray([False, True, True, True]), np.asarray([True, True, False, False])
    found = evidence_module._calibration(session, predictions, right_N, real_N, 0.425)
    assert found == pytest.approx(
        {
            "temperature": 2.0,
            "ece": 0.425,
            # without the temperature the net says 0.9412, 0.6923, 0.6923 and 0.9878: the first and last share a bin
            "ece_uncalibrated": (abs(0.9645 - 0.5) * 2 + (1 - 0.6923) * 2) / 4,
            "unsure_below": 0.7,
            "sure_share": 0.5,
            "right_when_sure": 0.5,
            "real_ece": (0.8 + 0.4) / 2,
            "real_sure_share": 0.5,
            "real_right_when_sure": 0.0,
        },
        abs=1e-3,
    )


def test_an_answer_to_a_picture_in_which_nothing_can_be_seen_counts_as_not_sure(
    toys: SimpleNamespace, tmp_path: Path
) -> None:
    """As when it is served: a black picture among four, which the audit was told to allow."""
    manifest = toys.save_manifest(tmp_path / "m", np.zeros((2, 3), np.float32), [(0, 0, "test", "real")])
    metadata = toys.toy_metadata(toys.toy_catalog(2), manifest.hash).model_copy(update={"unsure_below": 0.1})
    bundle = toys.save_model(tmp_path / "b.onnx", toys.toy_graph(toys.toy_colors(2)), metadata.to_props())
    assert evaluate(bundle, manifest).evidence.calibration["sure_share"] == 0
    session_of_two = PillSession.load(bundle, threads=1)
    doubted = predict_split(session_of_two, manifest)
    assert doubted.doubted_N is not None
    assert doubted.doubted_N.tolist() == [True]
    assert doubted.sure_N(0.1).tolist() == [False]
    seen = toys.save_manifest(tmp_path / "n", toys.toy_colors(2), [(0, 0, "test", "real"), (1, 1, "test", "studio")])
    assert predict_split(session_of_two, seen).sure_N(0.1).tolist() == [True, True]
    probabilities_NK = np.asarray([[0.9, 0.1]] * 4, np.float32)
    rows, labels_N = pa.table({"n": range(4)}), np.zeros(4, np.int64)
    predictions = Predictions(rows, labels_N, probabilities_NK, doubted_N=np.asarray([True, False, False, False]))
    session: Any = SimpleNamespace(metadata=SimpleNamespace(temperature=1.0, unsure_below=0.7))
    right_N, real_N = np.asarray([False, True, True, True]), np.asarray([True, True, False, False])
    found = evidence_module._calibration(session, predictions, right_N, real_N, 0.1)
    assert (found["sure_share"], found["right_when_sure"]) == (0.75, 1)
    assert (found["real_sure_share"], found["real_right_when_sure"]) == (0.5, 1)


def test_attack_answers_that_hang_on_the_batch_are_measured_alone(
    house: SimpleNamespace, toys: SimpleNamespace, tmp_path: Path
) -> None:
    """A graph that takes the mean over its batch would answer batches of one drug better than any phone's photo."""
    graph = toys.toy_graph(toys.toy_colors(6))
    for node in graph.node:
        if "color" in node.input:
            node.input[0] = "shared_color"
    graph.initializer.append(numpy_helper.from_array(np.asarray([0], np.int64), "batch_axis"))
    graph.node.insert(2, helper.make_node("ReduceMean", ["color", "batch_axis"], ["mean_color"], keepdims=1))
    graph.node.insert(3, helper.make_node("Sub", ["color", "color"], ["nothing"]))
    graph.node.insert(4, helper.make_node("Add", ["nothing", "mean_color"], ["shared_color"]))
    metadata = toys.toy_metadata(toys.toy_catalog(6), house.manifest.hash)
    bundle = toys.save_model(tmp_path / "coupled.onnx", graph, metadata.to_props())
    found = evaluate(bundle, house.manifest, champion=bundle, quantised=bundle)
    assert found.evidence.metrics["top1"].value == 0.7
    np.testing.assert_array_equal(found.predictions.predicted_N, house.result.predictions.predicted_N)


def test_the_worst_value_of_a_condition() -> None:
    light = {"0": Metric(value=0.9, images=40), "1": Metric(value=0.5, images=30), "2": Metric(value=0.1, images=29)}
    found = metrics.worst_slices({"light": light, "side": {"0": Metric(value=0.1, images=99)}}, enough=30)
    assert found == {"light": ("1", light["1"])}


def test_what_studio_pictures_hide_is_noted(toys: SimpleNamespace, tmp_path: Path) -> None:
    images = [(0, 0, "test", "real")] * 3 + [(1, 1, "test", "studio")] * 3
    images += [(2, 2, "test", "studio")] * 7 + [(2, 2, "test", "real"), (2, 1, "test", "real")]
    images += [(3, 1, "test", "real")]
    manifest = toys.save_manifest(tmp_path / "m", toys.toy_colors(4), images)
    evidence = evaluate(toys.save_bundle(tmp_path / "b.onnx", toys.toy_colors(4), manifest.hash), manifest).evidence
    assert evidence.failures == ("K-990004",), "8 of 9 pictures of the third drug are right, but 1 of 2 photos"
    notes = " ".join(evidence.notes)
    assert "Without a real test photo, so judged on studio pictures alone: K-990002." in notes
    assert "Under 70% on real photos, worst first: K-990004 (0%), K-990003 (50%)." in notes


def test_what_the_first_weights_learned_from_is_noted(
    house: SimpleNamespace, toys: SimpleNamespace, tmp_path: Path
) -> None:
    metadata = toys.toy_metadata(toys.toy_catalog(6), house.manifest.hash)
    provenance = metadata.provenance.model_copy(update={"also_learned_from": ("b" * 64,)})
    started = metadata.model_copy(update={"provenance": provenance})
    bundle = toys.save_model(tmp_path / "b.onnx", toys.toy_graph(toys.toy_colors(6)), started.to_props())
    result = evaluate(bundle, house.manifest)
    assert "learned from other data (manifest bbbbbbbbbbbb…)" in " ".join(result.evidence.notes)
    assert "that the training never saw" not in model_card(result.evidence, result.metadata, None, longest=5000)
    assert "that the training never saw" in model_card(house.result.evidence, house.result.metadata, None, longest=5000)


def test_evidence_names_what_it_is_of(house: SimpleNamespace) -> None:
    evidence = house.result.evidence
    assert evidence.bundle_sha256 == sha256_file(house.bundle)
    assert evidence.manifest_hash == house.manifest.hash
    assert evidence.run_id == "run-1"
    assert (evidence.latency.runs, evidence.latency.threads) == (200, 1)
    assert evidence.latency.image.startswith("5 real test image")
    assert {"python", "onnxruntime", "pillsnap", "hardware"} <= evidence.environment.keys()


def test_evidence_and_report_name_the_engine_that_answered(
    toys: SimpleNamespace, house: SimpleNamespace, tmp_path: Path
) -> None:
    metadata = toys.toy_metadata(toys.toy_catalog(6), house.manifest.hash).model_copy(update={"engine": "openvino"})
    bundle = toys.save_model(tmp_path / "b.onnx", toys.toy_graph(toys.toy_colors(6)), metadata.to_props())
    evidence = evaluate(bundle, house.manifest, threads=1).evidence
    assert evidence.latency.provider == "CPU OpenVINO f32"
    assert evidence.environment["openvino"] == PillSession.load(bundle).engine.version
    assert "onnxruntime" not in evidence.environment
    assert f", CPU OpenVINO f32, OpenVINO {evidence.environment['openvino']}." in report_text(evidence, [])
    usual = house.result.evidence
    assert f"CPUExecutionProvider, ONNX Runtime {usual.environment['onnxruntime']}." in report_text(usual, [])


def test_a_class_without_test_images_is_absent_not_zero(house: SimpleNamespace) -> None:
    last = house.result.evidence.classes[5]
    assert (last.images, last.top1, last.real_top1) == (0, None, None)
    assert last.kcode not in house.result.evidence.failures
    assert any("K-990006" in note for note in house.result.evidence.notes)


def test_slices_are_of_real_photos_only(house: SimpleNamespace) -> None:
    slices = dict(house.result.evidence.slices)
    assert set(slices.pop("domain")) == {"real", "studio"}
    assert set(slices) == {"background", "light", "side"}
    for values in slices.values():
        assert sum(metric.images for metric in values.values()) == 5


def test_notes_say_what_limits_the_figures(house: SimpleNamespace, small: SimpleNamespace) -> None:
    notes = " ".join(house.result.evidence.notes)
    assert "Only 10 test images" in notes
    assert "top-5 says little: guessing alone reaches 83 %" in notes
    assert "another manifest" not in notes
    assert "another manifest" in " ".join(evaluate(small.bundle, small.manifest).evidence.notes)


def test_without_real_photos_there_is_no_real_figure(toys: SimpleNamespace, tmp_path: Path) -> None:
    manifest = toys.save_manifest(
        tmp_path / "m", toys.toy_colors(3), [(i % 3, i % 3, "test", "studio") for i in range(9)]
    )
    result = evaluate(toys.save_bundle(tmp_path / "b.onnx", toys.toy_colors(3)), manifest)
    assert "real_top1" not in result.evidence.metrics
    assert set(result.evidence.slices) == {"domain"}
    assert result.evidence.metrics["top5"].value == 1
    assert any("No real photos" in note for note in result.evidence.notes)
    assert (write_report(result, manifest, tmp_path / "report") / "mistakes.png").stat().st_size > 5000


def test_two_classes_all_wrong(toys: SimpleNamespace, tmp_path: Path) -> None:
    manifest = toys.save_manifest(tmp_path / "m", toys.toy_colors(2), [(0, 1, "test", "real"), (1, 0, "test", "real")])
    result = evaluate(toys.save_bundle(tmp_path / "b.onnx", toys.toy_colors(2)), manifest)
    assert result.evidence.metrics["top1"].value == 0
    write_report(result, manifest, tmp_path / "report")


def test_progress_counts_every_image(house: SimpleNamespace) -> None:
    seen: list[tuple[int, int]] = []
    session = PillSession.load(house.bundle)
    predictions = predict_split(session, house.manifest, "test", lambda done, total: seen.append((done, total)))
    assert seen == [(8, 10), (10, 10)]
    paths = predictions.rows["path"].to_pylist()
    for index in (0, 9):  # the order of the rows, whoever was prepared first
        data = (house.manifest.root / paths[index]).read_bytes()
        best = session.identify(data, top=1)[0]
        assert best.kcode == house.manifest.catalog.kcodes[predictions.predicted_N[index]]


def test_a_changed_image_is_tampered(small: SimpleNamespace) -> None:
    victim = small.manifest.root / small.manifest.split("test")["path"][3].as_py()
    victim.write_bytes(cv2.imencode(".png", np.zeros((32, 32, 3), np.uint8))[1].tobytes())
    with pytest.raises(TamperedError, match=victim.name):
        evaluate(small.bundle, small.manifest)
    victim.unlink()
    with pytest.raises(ImageError, match=victim.name):
        evaluate(small.bundle, small.manifest)


def test_other_classes_are_refused(toys: SimpleNamespace, house: SimpleNamespace, tmp_path: Path) -> None:
    fewer = toys.save_bundle(tmp_path / "fewer.onnx", toys.toy_colors(5))
    with pytest.raises(EvidenceError, match="5 classes in the bundle, 6 in the manifest"):
        evaluate(fewer, house.manifest)
    metadata: BundleMetadata = toys.toy_metadata(toys.toy_catalog(6))
    swapped = metadata.model_copy(update={"classes": metadata.classes[::-1]})
    bundle = toys.save_model(tmp_path / "swapped.onnx", toys.toy_graph(toys.toy_colors(6)), swapped.to_props())
    with pytest.raises(EvidenceError, match="class 0 is K-990006 in the bundle and K-990001"):
        evaluate(bundle, house.manifest)


RETIRED = [image for image in IMAGES if image[0] != 5 and image[1] != 5]


def test_a_retired_class_is_not_judged(toys: SimpleNamespace, tmp_path: Path) -> None:
    manifest = toys.save_manifest(tmp_path / "m", toys.toy_colors(6), RETIRED, retired=(5,))
    bundle = toys.save_bundle(tmp_path / "b.onnx", toys.toy_colors(6), manifest.hash, retired=(5,))
    result = evaluate(bundle, manifest, threads=1)
    evidence = result.evidence
    assert [one.kcode for one in evidence.classes] == [f"K-{990001 + k}" for k in range(5)]
    assert evidence.metrics["top1"].value == 0.7
    assert evidence.metrics["top5"].value == 1  # five drugs are in use
    notes = " ".join(evidence.notes)
    assert "not judged" not in notes
    assert "With 5 classes" in notes
    write_report(result, manifest, tmp_path / "report")
    few = Policy.load(Path(__file__).parents[2] / DEFAULT_PATH).model_copy(update={"minimum_test_images": _one_each()})
    decision = decide(evidence, few, bundle_sha256=evidence.bundle_sha256, manifest_hash=manifest.hash)
    [check] = [check for check in decision.checks if check.metric == "images_per_class"]
    assert (check.value, check.status) == (1, Status.PASS)


def _one_each() -> MinimumTestImages:
    return MinimumTestImages(total=1, real=1, per_class=1)


def test_a_bundle_that_could_answer_a_retired_drug_is_refused(toys: SimpleNamespace, tmp_path: Path) -> None:
    manifest = toys.save_manifest(tmp_path / "m", toys.toy_colors(6), RETIRED, retired=(5,))
    in_use = toys.save_bundle(tmp_path / "b.onnx", toys.toy_colors(6))
    with pytest.raises(EvidenceError, match=r"class 5 is K-990006 in the bundle and K-990006 \(retired\) in the mani"):
        evaluate(in_use, manifest)
    plain = toys.save_manifest(tmp_path / "plain", toys.toy_colors(6), IMAGES)
    with pytest.raises(EvidenceError, match=r"class 5 is K-990006 \(retired\) in the bundle and K-990006 in the mani"):
        evaluate(toys.save_bundle(tmp_path / "r.onnx", toys.toy_colors(6), retired=(5,)), plain)


def test_an_empty_test_split_is_refused(toys: SimpleNamespace, tmp_path: Path) -> None:
    manifest = toys.save_manifest(tmp_path / "m", toys.toy_colors(2), [(0, 0, "train", "real")])
    with pytest.raises(DataError, match="test split holds no images"):
        evaluate(toys.save_bundle(tmp_path / "b.onnx", toys.toy_colors(2)), manifest)


def test_a_model_that_answers_nan_is_refused(toys: SimpleNamespace, house: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="NaN"):
        evaluate(toys.save_bundle(tmp_path / "b.onnx", toys.toy_colors(6), nan=True), house.manifest)


def test_latency_goes_round_the_photos(house: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    session = PillSession.load(house.bundle, threads=1)
    photos, words = choose_photos(house.manifest, house.manifest.split("test"))
    assert len(photos) == 5
    assert "32×32 px" in words
    asked: list[bytes] = []
    monkeypatch.setattr(PillSession, "identify", lambda self, photo: asked.append(photo))
    latency = measure_latency(session, photos, words, runs=12, warm_up=3)
    assert asked == [photos[i % 5] for i in (0, 1, 2, *range(12))]
    assert latency.runs == 12


def test_report_is_a_whole_folder_of_real_pictures(house: SimpleNamespace, tmp_path: Path) -> None:
    folder = write_report(house.result, house.manifest, tmp_path / "out" / "report")
    names = {"classes.png", "confusion.png", "slices.png", "reliability.png", "mistakes.png"}
    assert {path.name for path in folder.glob("*.png")} == names
    for name in names:
        image = cv2.imread(str(folder / name))
        assert image is not None
        assert min(image.shape[:2]) > 250
        assert image.std() > 8
    assert Evidence.load(folder / "evidence.json") == house.result.evidence
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert all(f"]({name})" in text for name in names)
    assert "| K-990004 | 가상정3 | 1 | 0 % | no photos | K-990003 |" in text
    assert [path.name for path in folder.parent.iterdir()] == ["report"]


def test_predictions_say_what_was_answered(house: SimpleNamespace, tmp_path: Path) -> None:
    folder = write_report(house.result, house.manifest, tmp_path / "report")
    rows = pq.read_table(folder / PREDICTIONS_FILE).to_pylist()
    assert len(rows) == 10
    assert sum(row["label"] == row["predicted"] for row in rows) == 7
    wrong = next(row for row in rows if row["kcode"] == "K-990004")
    assert (wrong["predicted_kcode"], wrong["domain"]) == ("K-990003", "studio")
    assert wrong["true_rank"] > 1
    assert 0 < wrong["confidence"] <= 1


def test_a_former_report_is_replaced_and_nothing_else(house: SimpleNamespace, tmp_path: Path) -> None:
    folder = write_report(house.result, house.manifest, tmp_path / "report")
    (folder / "old.png").touch()
    write_report(house.result, house.manifest, folder)
    assert not (folder / "old.png").exists()
    other = tmp_path / "photos"
    other.mkdir()
    (other / "dear.jpg").touch()
    with pytest.raises(ConfigError, match="photos: holds other files"):
        write_report(house.result, house.manifest, other)
    with pytest.raises(ConfigError, match="is a file"):
        write_report(house.result, house.manifest, other / "dear.jpg")
    assert (other / "dear.jpg").exists()


def test_a_report_that_fails_leaves_the_former_one(
    house: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_report(house.result, house.manifest, tmp_path / "report")
    before = sorted(path.name for path in folder.iterdir())

    def fail(*_: Any) -> None:
        raise TamperedError("no")

    monkeypatch.setattr("pillsnap.evaluation.report.draw_all", fail)
    with pytest.raises(TamperedError):
        write_report(house.result, house.manifest, folder)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_pictures_of_100_classes_are_readable_in_size(house: SimpleNamespace) -> None:
    counts_KK = np.diag(np.arange(100))
    figure = pictures.draw_confusion(counts_KK, [f"K-{i:06d}" for i in range(100)])
    assert min(figure.canvas.get_width_height()) > 1400
    result = house.result.evidence.classes[0]
    many = [result.model_copy(update={"kcode": f"K-{i:06d}", "top1": i / 100}) for i in range(100)]
    assert pictures.draw_classes(many).canvas.get_width_height()[0] > 1800


def test_nothing_measured_at_all_draws_no_slices(house: SimpleNamespace) -> None:
    result: EvaluationResult = house.result
    assert pictures.draw_slices(result.evidence.model_copy(update={"metrics": {}, "slices": {}})) is None


def test_command_writes_the_report(house: SimpleNamespace, tmp_path: Path) -> None:
    arguments = ["evaluate", str(house.bundle), "--manifest", str(house.manifest.root)]
    done = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "report"), "--threads", "1"])
    assert done.exit_code == 0, done.output
    assert "Top-1                    70.0 %  (40.0–90.0 % over 10 sittings, 10 images)" in done.output
    assert "note: Only 10 test images" in done.output
    document = json.loads((tmp_path / "report" / "evidence.json").read_text(encoding="utf-8"))
    assert document["manifest_hash"] == Manifest.load(house.manifest.root).hash


def test_command_refuses_before_it_works(house: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    arguments = ["evaluate", str(house.bundle), "--manifest", str(house.manifest.root), "--out", str(tmp_path)]
    assert isinstance(CliRunner().invoke(cli, arguments).exception, ConfigError)
    assert CliRunner().invoke(cli, ["evaluate", str(house.bundle)]).exit_code == 2
    assert CliRunner().invoke(cli, [*arguments, "--threads", "0"]).exit_code == 2


def test_the_sheet_of_mistakes_goes_round_the_confused_pairs(house: SimpleNamespace) -> None:
    probabilities_NK = np.full((10, 6), 0.01, np.float32)
    labels = [0, 0, 0, 1, 1, 2, 2, 3, 4, 5]
    for index, (answered, confidence) in enumerate(
        [(1, 0.9), (1, 0.8), (1, 0.7), (0, 0.6), (0, 0.5), (2, 0.9), (2, 0.9), (3, 0.9), (4, 0.9), (5, 0.9)]
    ):
        probabilities_NK[index, answered] = confidence
    predictions = Predictions(house.result.predictions.rows, np.asarray(labels), probabilities_NK)
    assert mistakes_in_order(predictions) == [0, 3, 1, 4, 2]
