"""One suite for every engine: the contract of `Engine`, then what each of them is in particular."""

from __future__ import annotations

import builtins
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import pytest
from onnx import TensorProto, helper, numpy_helper

from pillsnap.core.bundle import EngineName
from pillsnap.core.errors import BundleError
from pillsnap.inference import engines
from pillsnap.inference.session import PillSession

HAS_BF16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
bf16 = pytest.param("openvino-bf16", marks=pytest.mark.skipif(not HAS_BF16, reason="this processor has no bf16"))
EVERY = ["onnxruntime", "openvino", bf16]
SIDE = 32


def save(toys: SimpleNamespace, path: Path, engine: str, graph: onnx.GraphProto | None = None) -> Path:
    metadata = toys.toy_metadata(toys.toy_catalog(6)).model_copy(update={"engine": engine})
    return toys.save_model(path, graph or toys.toy_graph(toys.toy_colors(6)), metadata.to_props())


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def conv_graph() -> onnx.GraphProto:
    """A convolution over every pixel, so that the engine's precision shows in the answer."""
    rng = np.random.default_rng(3)
    constants = [
        numpy_helper.from_array(rng.normal(0, 1 / 255, (6, 3, 3, 3)).astype(np.float32), "kernel"),
        numpy_helper.from_array(np.asarray([2, 3], np.int64), "axes"),
    ]
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel"], ["maps"], kernel_shape=[3, 3]),
        helper.make_node("ReduceMean", ["maps", "axes"], ["logits"], keepdims=0),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIDE, SIDE, 3])
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 6]) for n in ("logits", "probabilities")]
    return helper.make_graph(nodes, "conv", [image], outputs, constants)


# --- the contract


@pytest.mark.parametrize("engine", EVERY)
class TestEveryEngine:
    def test_answers_as_the_others_do(self, toys: SimpleNamespace, tmp_path: Path, engine: str) -> None:
        expected = PillSession.load(save(toys, tmp_path / "o.onnx", "onnxruntime", conv_graph())).predict(images(5))
        session = PillSession.load(save(toys, tmp_path / "b.onnx", engine, conv_graph()), threads=1)
        found = session.predict(images(5))
        scale = np.abs(expected.logits_NK).max()
        np.testing.assert_allclose(found.logits_NK, expected.logits_NK, atol=2e-2 * scale)
        assert (found.logits_NK.argmax(1) == expected.logits_NK.argmax(1)).all()
        assert found.logits_NK.dtype == found.probabilities_NK.dtype == np.float32
        np.testing.assert_allclose(found.probabilities_NK.sum(axis=1), 1, rtol=1e-2)

    def test_takes_any_number_of_images(self, toys: SimpleNamespace, tmp_path: Path, engine: str) -> None:
        session = PillSession.load(save(toys, tmp_path / "b.onnx", engine), threads=1)
        together = session.predict(images(7)).logits_NK
        alone = np.concatenate([session.predict(image[np.newaxis]).logits_NK for image in images(7)])
        np.testing.assert_allclose(together, alone, rtol=1e-2)
        assert session.predict(images(3)[:, ::-1]).logits_NK.shape == (3, 6)  # not contiguous

    def test_may_be_called_from_several_threads(self, toys: SimpleNamespace, tmp_path: Path, engine: str) -> None:
        session = PillSession.load(save(toys, tmp_path / "b.onnx", engine), threads=1)
        expected = [session.predict(images(2, seed)).logits_NK for seed in range(24)]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda seed: session.predict(images(2, seed)).logits_NK, range(24)))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_what_it_returned_stays(self, toys: SimpleNamespace, tmp_path: Path, engine: str) -> None:
        session = PillSession.load(save(toys, tmp_path / "b.onnx", engine), threads=1)
        first = session.predict(images(1, 0)).logits_NK
        kept = first.copy()
        session.predict(images(1, 1))
        np.testing.assert_array_equal(first, kept)
        first[:] = 0  # the caller's own

    def test_says_what_it_is(self, toys: SimpleNamespace, tmp_path: Path, engine: str) -> None:
        session = PillSession.load(save(toys, tmp_path / "b.onnx", engine), threads=1)
        assert (session.engine.name, session.threads) == (engine, 1)
        assert session.provider.startswith("CPU")  # else the gate's latency profile would not take it
        assert session.engine.version == {"onnxruntime": ort.__version__}.get(engine, ov.__version__.partition("-")[0])

    def test_refuses_a_graph_that_it_does_not_read(self, toys: SimpleNamespace, tmp_path: Path, engine: str) -> None:
        graph = toys.toy_graph(toys.toy_colors(6))
        graph.node[2].op_type = "NoSuchOperator"
        with pytest.raises(BundleError, match=r"b\.onnx: is not an ONNX model that (ONNX Runtime|OpenVINO) \d.* reads"):
            PillSession.load(save(toys, tmp_path / "b.onnx", engine, graph))

    def test_a_foreign_engine_changes_no_check(self, toys: SimpleNamespace, tmp_path: Path, engine: str) -> None:
        with pytest.raises(BundleError, match="dynamic batch"):
            PillSession.load(save(toys, tmp_path / "b.onnx", engine, toys.toy_graph(toys.toy_colors(6), batch=1)))
        graph = toys.toy_graph(toys.toy_colors(6))
        graph.initializer[0].data_location = TensorProto.EXTERNAL
        entry = graph.initializer[0].external_data.add()
        entry.key, entry.value = "location", "weights.bin"
        with pytest.raises(BundleError, match="lie in another file"):
            PillSession.load(save(toys, tmp_path / "c.onnx", engine, graph))
        session = PillSession.load(
            save(toys, tmp_path / "d.onnx", engine, toys.toy_graph(toys.toy_colors(6), nan=True))
        )
        with pytest.raises(BundleError, match="NaN"):
            session.predict(images(1))


# --- which one


@pytest.mark.parametrize("engine", EVERY)
def test_the_metadata_name_the_engine(
    toys: SimpleNamespace, tmp_path: Path, engine: EngineName, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    open_engine = engines.open_engine

    def watch(name: EngineName, *arguments: Any) -> engines.Engine:
        opened.append(name)
        return open_engine(name, *arguments)

    monkeypatch.setattr("pillsnap.inference.session.open_engine", watch)
    PillSession.load(save(toys, tmp_path / "b.onnx", engine), threads=1)
    assert opened == [engine]


def test_the_two_precisions_of_openvino_differ(toys: SimpleNamespace, tmp_path: Path) -> None:
    if not HAS_BF16:
        pytest.skip("this processor has no bf16")
    exact, f32, rough = (
        PillSession.load(save(toys, tmp_path / f"{name}.onnx", name, conv_graph()), threads=1).predict(images(4))
        for name in ("onnxruntime", "openvino", "openvino-bf16")
    )
    scale = np.abs(exact.logits_NK).max()
    assert np.abs(f32.logits_NK - exact.logits_NK).max() < 1e-5 * scale
    assert np.abs(rough.logits_NK - exact.logits_NK).max() > 1e-4 * scale


def test_openvino_computes_one_photo_at_a_time(toys: SimpleNamespace, tmp_path: Path) -> None:
    """Faster, and what the gate measures in batches is to the last bit what a server answers to single photos."""
    session = PillSession.load(save(toys, tmp_path / "b.onnx", "openvino", conv_graph()), threads=1)
    together = session.predict(images(5))
    for place, image_HWC_u8 in enumerate(images(5)):
        alone = session.predict(image_HWC_u8[np.newaxis])
        np.testing.assert_array_equal(alone.logits_NK[0], together.logits_NK[place])
    compiled: Any = session.engine
    assert compiled._model.input(0).partial_shape.is_static


def test_without_openvino_it_is_said_how_to_get_it(
    toys: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "openvino":
            raise ModuleNotFoundError("No module named 'openvino'", name="openvino")
        return real_import(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    said = r"b\.onnx: is for engine 'openvino', .*pip install 'pillsnap\[openvino\]' -c constraints\.txt"
    with pytest.raises(BundleError, match=said):
        PillSession.load(save(toys, tmp_path / "b.onnx", "openvino"))
    PillSession.load(save(toys, tmp_path / "c.onnx", "onnxruntime"))  # which needs none


def test_a_processor_without_bf16_is_refused_and_does_not_answer_otherwise(
    toys: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OldProcessor:
        def get_property(self, device: str, name: str) -> Any:
            return {"OPTIMIZATION_CAPABILITIES": ["FP32", "INT8"], "FULL_DEVICE_NAME": "Old CPU"}[name]

    monkeypatch.setattr(ov, "Core", OldProcessor)
    with pytest.raises(BundleError, match=r"\(Old CPU\) does not compute in bf16; .*pillsnap quantise --engine openv"):
        PillSession.load(save(toys, tmp_path / "b.onnx", "openvino-bf16"))


def test_openvino_reports_nothing_to_anybody(toys: SimpleNamespace, tmp_path: Path) -> None:
    """Its package sends an event when it is imported, where its telemetry is installed."""
    bundle = save(toys, tmp_path / "b.onnx", "openvino")
    code = (
        "import sys; from pathlib import Path; from pillsnap.inference.session import PillSession\n"
        "assert 'openvino' not in sys.modules\n"
        f"PillSession.load(Path({str(bundle)!r}))\n"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')], 'openvino' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-2] == "[] True"
