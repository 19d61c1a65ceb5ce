"""Export: a checkpoint becomes one ``.onnx`` file whose answers are those of PyTorch, proven on test images.

Normalisation, logits and calibrated probabilities are in the graph; classes, preprocessing and provenance in its
metadata. Legend: N batch, H height, W width, C channel, K class.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pillsnap import __version__
from pillsnap.core.bundle import (
    INPUT_NAME,
    OUTPUT_NAMES,
    RETIRED_LOGIT,
    BundleClass,
    BundleMetadata,
    Provenance,
    PyTorchParity,
)
from pillsnap.core.errors import BundleError, DataError
from pillsnap.core.files import sha256_file, writing_beside
from pillsnap.core.manifest import Manifest, Split
from pillsnap.core.preprocessing import InferencePreprocessor
from pillsnap.exporting.split_images import prepared_batches
from pillsnap.exporting.temperature import fit_temperature, fit_unsure_below, telling
from pillsnap.inference.session import PillSession
from pillsnap.training.backbone import PillNet
from pillsnap.training.checkpoint import Checkpoint

PARITY_TOLERANCE = 2e-3
"""Largest difference of a logit, as a share of the largest logit, between PyTorch and ONNX Runtime (float32)."""
PARITY_IMAGES = 64
_BATCH = 16


@dataclass(frozen=True)
class ExportResult:
    """A bundle, and the proof that it answers as the checkpoint does."""

    bundle: Path
    sha256: str
    size_mb: float
    temperature: float
    parity: PyTorchParity

    def report(self) -> dict[str, object]:
        """For the export report (JSON)."""
        return {**asdict(self), "bundle": self.bundle.name, "parity": self.parity.model_dump()}


class _BundleGraph(nn.Module):
    """``image_NHWC_u8`` → ``logits_NK``, ``probabilities_NK``. The logits of ``retired`` classes are shut."""

    retired_K: Tensor

    def __init__(self, net: PillNet, temperature: float, retired: Sequence[int] = (), classes: int = 0) -> None:
        super().__init__()
        self.net = net
        self.temperature = temperature
        self.has_retired = bool(retired)
        self.register_buffer("retired_K", torch.tensor([k in retired for k in range(classes)], dtype=torch.bool))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits_NK = self.net(image)
        if self.has_retired:  # else the graph is that of the net alone
            logits_NK = logits_NK.masked_fill(self.retired_K, RETIRED_LOGIT)
        return logits_NK, torch.softmax(logits_NK / self.temperature, dim=1)


def export_bundle(
    checkpoint: Checkpoint, manifest: Manifest, bundle: Path, *, run_id: str = "", git_commit: str = "unknown"
) -> ExportResult:
    """Write the bundle of a checkpoint and check it.

    Args:
        checkpoint: what was trained.
        manifest: the data set of the training: its validation split sets temperature and threshold (`telling`), its
            test split proves the parity.
        bundle: the ``.onnx`` file to write.
        run_id: MLflow run of the training.
        git_commit: of the code that trained.

    Raises:
        DataError: the manifest is another one, or has no validation or test images.
        BundleError: the graph cannot be exported, or answers differently from PyTorch.
    """
    if checkpoint.manifest_hash != manifest.hash:
        raise DataError(
            f"the checkpoint was trained on manifest {checkpoint.manifest_hash[:12]}, {manifest.root} is "
            f"{manifest.hash[:12]}; give the data set it was trained on"
        )
    net = checkpoint.build_net()
    retired = list(manifest.catalog.retired_indices)
    rows = _rows_of_split(manifest, "val", 2000)
    rows = rows.filter(telling(rows["domain"].to_pylist()))
    logits_NK, label_N = _logits_of(net, checkpoint, manifest, rows), manifest.labels(rows)
    logits_NK[:, retired] = RETIRED_LOGIT
    temperature = fit_temperature(logits_NK, label_N)
    unsure_below = fit_unsure_below(logits_NK, temperature, label_N)
    metadata = _metadata(checkpoint, manifest, temperature, unsure_below, run_id, git_commit)
    model = _to_onnx(_BundleGraph(net, temperature, retired, len(checkpoint.kcodes)).eval(), metadata)
    with writing_beside(bundle) as temporary:
        onnx.save(model, temporary)
        parity = _measure_parity(net, temporary, checkpoint, manifest)
        proven = metadata.model_copy(update={"parity": parity})
        onnx.helper.set_model_props(model, proven.to_props())
        onnx.save(model, temporary)
    return ExportResult(bundle, sha256_file(bundle), bundle.stat().st_size / 1e6, temperature, parity)


def _metadata(
    checkpoint: Checkpoint, manifest: Manifest, temperature: float, unsure_below: float, run_id: str, git_commit: str
) -> BundleMetadata:
    preprocessing = checkpoint.config.preprocessing
    return BundleMetadata(
        classes=tuple(
            BundleClass(
                kcode=drug.kcode, drug_name=drug.drug_name, manufacturer=drug.manufacturer, retired=drug.retired
            )
            for drug in manifest.catalog.drugs
        ),
        preprocessing=preprocessing,
        preprocessing_fingerprint=preprocessing.fingerprint,
        temperature=temperature,
        unsure_below=unsure_below,
        provenance=Provenance(
            manifest_hash=checkpoint.manifest_hash,
            backbone=checkpoint.config.model.backbone,
            git_commit=git_commit,
            run_id=run_id,
            pillsnap_version=__version__,
            also_learned_from=checkpoint.also_learned_from,
            first_weights=checkpoint.first_weights,
        ),
    )


def _to_onnx(graph: nn.Module, metadata: BundleMetadata) -> onnx.ModelProto:
    size = metadata.preprocessing.target_size
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=1024)
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        # The exporter prints its progress and warns of its own deprecations.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                input_names=[INPUT_NAME],
                output_names=list(OUTPUT_NAMES),
                dynamic_shapes=({0: batch},),
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # the exporter's errors have no common base
        raise BundleError(
            f"{metadata.provenance.backbone} cannot be exported to ONNX ({type(error).__name__}: {str(error)[:300]})"
        ) from error
    finally:
        exporter_log.setLevel(level)
    assert program is not None
    model = program.model_proto
    _forget_how_it_was_made(model)
    for key, value in metadata.to_props().items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    return model


def _forget_how_it_was_made(model: onnx.ModelProto) -> None:
    """The exporter notes the trace of calls at each node: paths of this machine, so other bytes on another one."""
    del model.metadata_props[:]
    graph = model.graph
    for entry in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del entry.metadata_props[:]
    for node in graph.node:
        node.ClearField("doc_string")


def _rows_of_split(manifest: Manifest, split: Split, limit: int) -> pa.Table:
    """The rows of a split; with more than ``limit`` so many, evenly over it."""
    rows = manifest.split(split)
    if rows.num_rows == 0:
        raise DataError(f"{manifest.root}: the {split} split is empty")
    if rows.num_rows > limit:
        rows = rows.take(np.linspace(0, rows.num_rows - 1, limit).astype(int))
    return rows


def _logits_of(net: PillNet, checkpoint: Checkpoint, manifest: Manifest, rows: pa.Table) -> NDArray[np.float32]:
    """``logits_NK``, a few images at a time: two thousand of 512 pixels are 1.6 GB."""
    preprocessor = InferencePreprocessor(checkpoint.config.preprocessing)
    return np.concatenate(
        [_run_torch(net, image_NHWC_u8) for image_NHWC_u8 in prepared_batches(manifest, rows, preprocessor, _BATCH)]
    )


def _run_torch(net: PillNet, images_NHWC_u8: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.inference_mode():
        parts = [net(torch.from_numpy(images_NHWC_u8[i : i + _BATCH])) for i in range(0, len(images_NHWC_u8), _BATCH)]
    return np.asarray(torch.cat(parts).numpy(), np.float32)


def checkpoint_logits(checkpoint: Checkpoint) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """The net of a checkpoint in PyTorch: ``image_NHWC_u8`` → ``logits_NK``, retired drugs among them."""
    net = checkpoint.build_net()
    return lambda images_NHWC_u8: _run_torch(net, images_NHWC_u8)


def _measure_parity(net: PillNet, bundle: Path, checkpoint: Checkpoint, manifest: Manifest) -> PyTorchParity:
    rows = _rows_of_split(manifest, "test", PARITY_IMAGES)
    preprocessor = InferencePreprocessor(checkpoint.config.preprocessing)
    images_NHWC_u8 = np.concatenate(list(prepared_batches(manifest, rows, preprocessor, _BATCH)))
    in_use = [index for index, drug in enumerate(manifest.catalog.drugs) if not drug.retired]
    expected_NK = _run_torch(net, images_NHWC_u8)[:, in_use]
    session = PillSession.load(bundle)
    # both a batch and single images: the batch axis must really be free
    answer = session.predict(images_NHWC_u8)
    if answer.probabilities_NK[:, list(manifest.catalog.retired_indices)].any():
        raise BundleError("the exported graph answers a retired drug; this is a fault of the exporter")
    actual_NK = answer.logits_NK[:, in_use]
    singles = [session.predict(image[np.newaxis]).logits_NK for image in images_NHWC_u8[:4]]
    single_NK = np.concatenate(singles)[:, in_use]
    scale = max(float(np.abs(expected_NK).max()), 1e-6)
    difference = max(
        float(np.abs(actual_NK - expected_NK).max()), float(np.abs(single_NK - expected_NK[: len(single_NK)]).max())
    )
    agreement = float((actual_NK.argmax(1) == expected_NK.argmax(1)).mean())
    parity = PyTorchParity(
        images=len(images_NHWC_u8), top1_agreement=agreement, largest_relative_difference=difference / scale
    )
    if not parity.largest_relative_difference <= PARITY_TOLERANCE:
        raise BundleError(
            f"the exported graph differs from PyTorch: {parity.largest_relative_difference:.2%} of the largest logit "
            f"on {parity.images} test images (allowed {PARITY_TOLERANCE:.2%}), top-1 agreement {agreement:.1%}"
        )
    return parity
