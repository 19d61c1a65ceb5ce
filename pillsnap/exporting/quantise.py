"""Variants of a bundle: 8-bit, or for another engine. Each is a bundle of its own, to be evaluated and judged.

Needs no PyTorch: the bundle is the source. Static quantisation, calibrated on training images that went through the
preprocessing that serves; which layers stay in float is measured on validation images, with the engine that will serve.
The same bundle and manifest give the same bytes. Legend: N images, H height, W width, C channel, K classes.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pyarrow as pa
from numpy.typing import NDArray

from pillsnap.core.bundle import BundleMetadata, Calibration, CalibrationName, EngineName, SourceParity
from pillsnap.core.errors import BundleError, DataError
from pillsnap.core.files import sha256_file, writing_beside
from pillsnap.core.manifest import Manifest
from pillsnap.exporting.bias_correction import correct_biases, input_means
from pillsnap.exporting.float_search import MOST_TRIALS, Loss, Trial, choose_float_layers, chosen, gates
from pillsnap.exporting.qdq import layers_of, prepared_graph, quantised_graph, save_ranges, set_temperature, tidy
from pillsnap.exporting.split_images import prepared_batches, spread_over_classes, spread_over_rows
from pillsnap.exporting.temperature import fit_temperature, fit_unsure_below, telling
from pillsnap.inference.session import PillSession

CALIBRATION_IMAGES = 256
LEAST_CALIBRATION_IMAGES = 16
VALIDATION_IMAGES = 1000
"""Of the temperature and of the agreement with the source; of each trial too, where the images are small."""
_SEARCH_PIXELS = 256 * 512 * 512
_BATCH = 8
Progress = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and how much in all."""


@dataclass(frozen=True)
class Recipe:
    """What variant is wanted."""

    precision: Literal["int8", "float"] = "int8"
    engine: EngineName = "onnxruntime"
    calibration: CalibrationName = "image-median"
    images: int = CALIBRATION_IMAGES
    """Training images of the calibration; fewer where there are fewer."""
    search: bool = True
    """Measure which layers stay in float; False: only those of squeeze-and-excitation."""


@dataclass(frozen=True)
class Variant:
    """A bundle that was made from another one."""

    bundle: Path
    sha256: str
    size_mb: float
    metadata: BundleMetadata
    trials: tuple[Trial, ...]
    """Of the search for layers that stay in float; empty where there was none."""


def make_variant(
    bundle: Path, manifest: Manifest, out: Path, recipe: Recipe, progress: Progress | None = None
) -> Variant:
    """Write a variant of ``bundle`` and measure how it agrees with it.

    Args:
        bundle: the source, in float32.
        manifest: of the same drugs: its training images set the ranges, its validation images choose the layers
            that stay in float, and the temperature.
        out: the ``.onnx`` file to write.
        recipe: what variant.
        progress: called now and then.

    Raises:
        BundleError: no bundle, one that is 8-bit already, or one that cannot be quantised or computed here.
        DataError: a manifest of other drugs, or with too few training or no validation images.
        ImageError, TamperedError: an image of the manifest is gone or another one.
    """
    source = PillSession.load(bundle)
    _check(source, manifest, recipe)
    tell = progress or (lambda *_: None)
    maker = _Maker(source, onnx.load_model_from_string(bundle.read_bytes()), manifest, recipe, tell)
    with tempfile.TemporaryDirectory(prefix="pillsnap-variant-") as folder:
        model, calibration, trials = maker.graph(Path(folder))
    metadata = maker.metadata(model, calibration)
    data = maker.bundle_bytes(model, metadata)
    PillSession.load(data)
    with writing_beside(out) as temporary:
        temporary.write_bytes(data)
    return Variant(out, sha256_file(out), out.stat().st_size / 1e6, metadata, trials)


class _Maker:
    """One variant in the making: what its steps share."""

    def __init__(
        self, source: PillSession, model: onnx.ModelProto, manifest: Manifest, recipe: Recipe, tell: Progress
    ) -> None:
        self.source, self.model, self.manifest, self.recipe, self.tell = source, model, manifest, recipe, tell
        classes = source.metadata.classes
        self.in_use = [index for index, entry in enumerate(classes) if not entry.retired]
        update = {
            "engine": recipe.engine,
            "precision": "int8" if recipe.precision == "int8" else "float32",
            "source_sha256": source.sha256,
            "parity": None,  # of the source with PyTorch
        }
        self.draft = source.metadata.model_copy(update=update)

    def graph(self, folder: Path) -> tuple[onnx.ModelProto, Calibration | None, tuple[Trial, ...]]:
        """The variant's graph, how it was calibrated, and what was tried."""
        if self.recipe.precision == "float":
            return self.model, None, ()
        prepared, ranges = folder / "prepared.onnx", folder / "ranges.json"
        graph = prepared_graph(self.model)
        layers = layers_of(graph)
        if not layers:
            raise BundleError(f"{self.source.source}: holds no layer that could be 8-bit")
        onnx.save(graph, prepared)
        rows = calibration_rows(self.manifest, self.recipe.images)
        images_1HWC_u8 = self._batches(rows, "calibration images", batch=1)
        save_ranges(prepared, images_1HWC_u8, self.recipe.calibration, ranges)

        means = input_means(graph, self._batches(rows, "means of layer inputs", batch=1))

        def quantised(float_layers: frozenset[str], corrected: bool) -> onnx.ModelProto:
            model = quantised_graph(
                prepared,
                ranges,
                self.recipe.calibration,
                float_layers,
                float_outputs=self.recipe.engine != "onnxruntime",
            )
            if corrected:
                correct_biases(model, graph, means)
            tidy(model)
            return model

        float_layers, corrected = gates(layers), True
        trials: tuple[Trial, ...] = ()
        if self.recipe.search:
            measure = self._measure(quantised)
            # a net that learned with the rounding has learned what there is to correct
            corrected = measure(float_layers, True).error <= measure(float_layers, False).error
            trials = choose_float_layers(layers, lambda in_float: measure(in_float, corrected))
            float_layers = chosen(trials).float_layers
        calibration = Calibration(
            method=self.recipe.calibration,
            images=rows.num_rows,
            manifest_hash=self.manifest.hash,
            float_layers=tuple(layer.name for layer in layers if layer.name in float_layers),
            layers=len(layers),
            biases_corrected=corrected,
        )
        return quantised(float_layers, corrected), calibration, trials

    def metadata(self, model: onnx.ModelProto, calibration: Calibration | None) -> BundleMetadata:
        """With the temperature and the agreement of the finished graph."""
        rows = spread_over_rows(self.manifest.split("val"), VALIDATION_IMAGES)
        ours = PillSession.load(self.bundle_bytes(model, self.draft))
        expected, found = [], []
        for image_NHWC_u8 in self._batches(rows, "validation images"):
            expected.append(self.source.predict(image_NHWC_u8).logits_NK)
            found.append(ours.predict(image_NHWC_u8).logits_NK)
        logits_NK = np.concatenate(found)
        parity = source_parity(np.concatenate(expected)[:, self.in_use], logits_NK[:, self.in_use])
        # rounded: what another machine computes differs in the last digits, and the file would too
        telling_N = telling(rows["domain"].to_pylist())
        logits_NK, label_N = logits_NK[telling_N], self.manifest.labels(rows)[telling_N]
        temperature = float(f"{fit_temperature(logits_NK, label_N):.4g}")
        update = {
            "temperature": temperature,
            "unsure_below": fit_unsure_below(logits_NK, temperature, label_N),
            "calibration": calibration,
            "source_parity": parity,
        }
        return self.draft.model_copy(update=update)

    def bundle_bytes(self, model: onnx.ModelProto, metadata: BundleMetadata) -> bytes:
        """The file: the graph with the temperature of the metadata, and the metadata."""
        complete = onnx.ModelProto()
        complete.CopyFrom(model)
        set_temperature(complete, metadata.temperature)
        onnx.helper.set_model_props(complete, metadata.to_props())
        onnx.checker.check_model(complete)
        return bytes(complete.SerializeToString(deterministic=True))

    def _measure(
        self, quantised: Callable[[frozenset[str], bool], onnx.ModelProto]
    ) -> Callable[[frozenset[str], bool], Loss]:
        rows = spread_over_rows(self.manifest.split("val"), search_images(self.source))
        batches = list(self._batches(rows, "search images"))
        expected_NK = np.concatenate([self.source.predict(batch).logits_NK for batch in batches])[:, self.in_use]
        trials = 0

        @functools.cache
        def measure(float_layers: frozenset[str], corrected: bool) -> Loss:
            nonlocal trials
            session = PillSession.load(self.bundle_bytes(quantised(float_layers, corrected), self.draft))
            found_NK = np.concatenate([session.predict(batch).logits_NK for batch in batches])[:, self.in_use]
            trials += 1
            self.tell("layers in float, trials", trials, MOST_TRIALS + 1)  # biases as they were too
            return loss_of(expected_NK, found_NK)

        return measure

    def _batches(self, rows: pa.Table, what: str, batch: int = _BATCH) -> Iterator[NDArray[np.uint8]]:
        done = 0
        for image_NHWC_u8 in prepared_batches(self.manifest, rows, self.source.preprocessor, batch):
            yield image_NHWC_u8
            done += len(image_NHWC_u8)
            self.tell(what, done, rows.num_rows)


def calibration_rows(manifest: Manifest, asked: int) -> pa.Table:
    """Training images, evenly over the classes.

    Raises:
        DataError: too few for ranges.
    """
    train = manifest.split("train")
    rows = spread_over_classes(train, asked)
    if rows.num_rows < LEAST_CALIBRATION_IMAGES:
        raise DataError(
            f"{manifest.root}: {rows.num_rows} images for the ranges of an 8-bit net ({train.num_rows} of training, "
            f"{asked} asked for, evenly over the classes); at least {LEAST_CALIBRATION_IMAGES} are needed"
        )
    return rows


def search_images(source: PillSession) -> int:
    """Validation images of each trial: 256 at 512 pixels, more of smaller ones."""
    return min(VALIDATION_IMAGES, max(1, _SEARCH_PIXELS // source.metadata.preprocessing.target_size**2))


def loss_of(expected_NK: NDArray[np.float32], found_NK: NDArray[np.float32]) -> Loss:
    """What a choice of float layers costs, from two sets of logits of the same images."""
    difference_N = np.abs(found_NK - expected_NK).mean(axis=1) / np.abs(expected_NK).max(axis=1).clip(min=1e-6)
    return Loss(_top1_agreement(expected_NK, found_NK), float(f"{np.median(difference_N):.3g}"))


def source_parity(expected_NK: NDArray[np.float32], found_NK: NDArray[np.float32]) -> SourceParity:
    """How two sets of logits of the same images agree."""
    difference_NK = np.abs(found_NK - expected_NK)
    scale = max(float(np.abs(expected_NK).max()), 1e-6)
    return SourceParity(
        images=len(expected_NK),
        top1_agreement=_top1_agreement(expected_NK, found_NK),
        mean_relative_difference=float(f"{difference_NK.mean() / scale:.3g}"),
        largest_relative_difference=float(f"{difference_NK.max() / scale:.3g}"),
    )


def _top1_agreement(expected_NK: NDArray[np.float32], found_NK: NDArray[np.float32]) -> float:
    return float(f"{(expected_NK.argmax(axis=1) == found_NK.argmax(axis=1)).mean():.6f}")


def _check(source: PillSession, manifest: Manifest, recipe: Recipe) -> None:
    if source.metadata.precision == "int8":
        raise BundleError(f"{source.source}: is 8-bit already; give the bundle that it was made from (float32)")
    ours = [(entry.kcode, entry.retired) for entry in source.metadata.classes]
    theirs = [(drug.kcode, drug.retired) for drug in manifest.catalog.drugs]
    if ours != theirs:
        raise DataError(
            f"{manifest.root}: is of other drugs than {source.source} ({len(theirs)} and {len(ours)} classes, or "
            "another order); give the data set that the model was trained on"
        )
    trained_on = source.metadata.provenance.manifest_hash
    if manifest.hash != trained_on:
        raise DataError(
            f"{manifest.root}: is another data set (manifest {manifest.hash[:12]}…) than the one that {source.source} "
            f"was trained on ({trained_on[:12]}…): what trains or validates in one may test in the other. Give that one"
        )
    if manifest.split("val").num_rows == 0:
        raise DataError(f"{manifest.root}: the val split is empty; it sets the temperature of the variant")
