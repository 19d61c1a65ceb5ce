"""Builders for tests: a tiny bundle made without torch, and tiny manifests of coloured pictures.

The model takes the mean colour of the picture and answers the class whose colour is nearest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pyarrow as pa
from onnx import TensorProto, helper, numpy_helper

from pillsnap.core.bundle import RETIRED_LOGIT, BundleClass, BundleMetadata, Provenance
from pillsnap.core.catalog import Catalog, Drug
from pillsnap.core.files import sha256_bytes
from pillsnap.core.manifest import ROW_SCHEMA, Manifest
from pillsnap.core.preprocessing_spec import ClaheSpec, PreprocessingSpec

SIDE = 32
COLORS = np.asarray(
    [(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40), (200, 40, 200), (40, 200, 200)], np.float32
)
SPEC = PreprocessingSpec(target_size=SIDE, clahe=ClaheSpec(enabled=False))


def toy_catalog(classes: int, retired: tuple[int, ...] = ()) -> Catalog:
    drugs = tuple(
        Drug(
            kcode=f"K-{990001 + i}",
            drug_name=f"가상정{i}",
            manufacturer="가상제약",
            form="tablet",
            retired=i in retired,
        )
        for i in range(classes)
    )
    return Catalog(version="toy", drugs=drugs)


def toy_graph(
    colors_K3: np.ndarray,
    *,
    image_type: int = TensorProto.UINT8,
    batch: str | int = "N",
    nan: bool = False,
    retired: tuple[int, ...] = (),
) -> onnx.GraphProto:
    """logits = -|mean colour - class colour|² / 1000, without the part that all classes share."""
    weights_3K = (2 * colors_K3.T / 1000).astype(np.float32)
    bias_K = (-(colors_K3**2).sum(axis=1) / 1000).astype(np.float32)
    bias_K[list(retired)] = RETIRED_LOGIT
    if nan:
        bias_K = bias_K * np.float32("nan")
    constants = [
        numpy_helper.from_array(weights_3K, "weights"),
        numpy_helper.from_array(bias_K, "bias"),
        numpy_helper.from_array(np.asarray([1, 2], np.int64), "axes"),
    ]
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["color"], keepdims=0),
        helper.make_node("MatMul", ["color", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    image = helper.make_tensor_value_info("image", image_type, [batch, SIDE, SIDE, 3])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, len(colors_K3)])
        for name in ("logits", "probabilities")
    ]
    return helper.make_graph(nodes, "toy", [image], outputs, constants)


def toy_metadata(catalog: Catalog, manifest_hash: str = "0" * 64) -> BundleMetadata:
    return BundleMetadata(
        classes=tuple(
            BundleClass(kcode=d.kcode, drug_name=d.drug_name, manufacturer=d.manufacturer, retired=d.retired)
            for d in catalog.drugs
        ),
        preprocessing=SPEC,
        preprocessing_fingerprint=SPEC.fingerprint,
        temperature=1.0,
        provenance=Provenance(
            manifest_hash=manifest_hash, backbone="toy", git_commit="0" * 40, run_id="run-1", pillsnap_version="0"
        ),
    )


def save_model(path: Path, graph: onnx.GraphProto, props: dict[str, str]) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, props)
    path.write_bytes(model.SerializeToString())
    return path


def toy_colors(classes: int) -> np.ndarray:
    if classes <= len(COLORS):
        return COLORS[:classes].copy()
    return np.random.default_rng(1).integers(30, 226, (classes, 3)).astype(np.float32)


def toy_picture(color_3: np.ndarray, side: int = SIDE) -> np.ndarray:
    """B, G, R of this colour (R, G, B) on the average, in squares of two shades: of an even one no answer is sure."""
    shade = np.where(np.indices((4, 4)).sum(axis=0) % 2, 12, -12)
    squares = np.clip(color_3[::-1] + shade[..., None], 0, 255).astype(np.uint8)
    return cv2.resize(squares, (side, side), interpolation=cv2.INTER_NEAREST)


def save_manifest(
    root: Path, colors_K3: np.ndarray, images: list[tuple[int, int, str, str]], retired: tuple[int, ...] = ()
) -> Manifest:
    """``images``: (label, label whose colour is painted, split, domain), one row each."""
    rng = np.random.default_rng(0)
    catalog = toy_catalog(len(colors_K3), retired)
    rows: list[dict[str, Any]] = []
    for number, (label, painted, split, domain) in enumerate(images):
        color = np.clip(colors_K3[painted] + rng.normal(0, 6, 3), 0, 255)
        data = cv2.imencode(".png", toy_picture(color))[1].tobytes()
        path = root / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        real = domain == "real"
        rows.append(
            {
                "path": path.name,
                "kcode": catalog.kcodes[label],
                "label": label,
                "split": split,
                "domain": domain,
                "group": f"g{number}",
                "background": number % 3 if real else None,
                "light": number % 2 if real else None,
                "side": (number // 2) % 2 if real else None,
                "elevation": None,
                "rotation": None,
                "sha256": sha256_bytes(data),
            }
        )
    manifest = Manifest.build(root, {"name": "toy"}, pa.Table.from_pylist(rows, ROW_SCHEMA), catalog)
    manifest.save()
    return manifest


def save_bundle(path: Path, colors_K3: np.ndarray, manifest_hash: str = "0" * 64, **graph: Any) -> Path:
    metadata = toy_metadata(toy_catalog(len(colors_K3), graph.get("retired", ())), manifest_hash)
    return save_model(path, toy_graph(colors_K3, **graph), metadata.to_props())
