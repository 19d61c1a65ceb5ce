"""Evaluate a bundle on the test split of a manifest: the evidence that the gate judges.

Puts prediction, metrics and latency together and says in words what limits the figures. Draws nothing, decides
nothing.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
from scipy.special import softmax

import pillsnap
from pillsnap.clients.phone import PhoneClient
from pillsnap.core.bundle import BundleMetadata
from pillsnap.core.code_version import CodeVersion
from pillsnap.core.errors import EvidenceError
from pillsnap.core.evidence import Agreement, ClassResult, Evidence, Latency, Metric
from pillsnap.core.manifest import Manifest
from pillsnap.evaluation import metrics
from pillsnap.evaluation.comparison import compare
from pillsnap.evaluation.latency import choose_photos, hardware_name, measure_latency
from pillsnap.evaluation.predict import Answers, Predictions, Progress, Way, predict_ways
from pillsnap.inference.session import PillSession

SLICED_BY = ("background", "light", "side")
"""Conditions of the real photos."""
FEW_IMAGES = 250
"""Below this the 95 % interval of a share of 80 % is wider than ± 5 points."""
FEW_PER_CLASS = 5
ENOUGH_IN_SLICE = 30
"""A condition's value with fewer photos is not called the worst: its share is chance."""
CLIENT_IMAGES = 200
"""So many test images, evenly over the split, also go the way of the phone (crop, 512 pixels, JPEG)."""


@dataclass(frozen=True)
class EvaluationResult:
    """What was measured, and the answers that it was measured on."""

    evidence: Evidence
    predictions: Predictions
    metadata: BundleMetadata
    """Of the bundle."""


def evaluate(
    bundle: Path,
    manifest: Manifest,
    *,
    run_id: str = "",
    threads: int | None = None,
    progress: Progress | None = None,
    champion: Path | None = None,
    quantised: Path | None = None,
) -> EvaluationResult:
    """Measure ``bundle`` on the test split of ``manifest``.

    Args:
        bundle: the ``.onnx`` file.
        manifest: loaded, so its hash is that of its files.
        run_id: MLflow run; by default the one that the bundle names.
        threads: of ONNX Runtime; by default the cores that this process may use.
        progress: called with (images done, images in all).
        champion: the bundle of the present champion, to be compared on the same images.
        quantised: another bundle of the same checkpoint; how often it gives the same first answer.

    Raises:
        BundleError: not a bundle, or one that answers NaN; of the champion too.
        EvidenceError: the bundle's classes are not those of the manifest.
        DataError: the test split is empty, or an image of it cannot be used.
        TamperedError: an image was changed after the manifest was made.
    """
    session = PillSession.load(bundle, threads=threads)
    _check_classes(session, manifest, bundle)
    rows = manifest.split("test")
    phone = Way(session, before=PhoneClient().prepare, every=max(1, rows.num_rows // CLIENT_IMAGES))
    ways = {"direct": Way(session), "client": phone}
    if champion is not None:
        ways["champion"] = Way(PillSession.load(champion, threads=threads))
    if quantised is not None:
        ways["quantised"] = Way(PillSession.load(quantised, threads=threads))
        _check_classes(ways["quantised"].session, manifest, quantised)
    answers = dict(zip(ways, predict_ways(list(ways.values()), manifest, rows, progress), strict=True))
    direct = answers["direct"]
    labels_N, retired = manifest.labels(rows), session.metadata.retired_indices
    predictions = Predictions(rows, labels_N, direct.probabilities_NK, retired, direct.doubted_N)
    photos, image = choose_photos(manifest, predictions.rows)
    latency = measure_latency(session, photos, image)
    evidence = _evidence(session, manifest, predictions, latency, run_id)
    comparison = None
    if champion is not None:
        theirs = np.asarray(answers["champion"].probabilities_NK.argmax(axis=1), np.int64)
        groups_N = rows["group"].to_pylist()
        comparison = compare(predictions, session, theirs, ways["champion"].session, groups_N)
    more = {"agreements": _agreements(session, ways, answers), "comparison": comparison}
    return EvaluationResult(evidence.model_copy(update=more), predictions, session.metadata)


def _agreements(session: PillSession, ways: Mapping[str, Way], answers: Mapping[str, Answers]) -> dict[str, Agreement]:
    found = {}
    for name in ("client", "quantised"):
        if name in answers:
            direct_NK = answers["direct"].probabilities_NK[:: ways[name].every]
            other_NK = answers[name].probabilities_NK
            found[name] = Agreement(
                images=len(other_NK),
                top1=float((direct_NK.argmax(axis=1) == other_NK.argmax(axis=1)).mean()),
                largest_difference=float(np.abs(direct_NK - other_NK).max()),
            )
    parity = session.metadata.parity
    if parity is not None:
        found["pytorch"] = Agreement(images=parity.images, top1=parity.top1_agreement)
    return found


def _check_classes(session: PillSession, manifest: Manifest, bundle: Path) -> None:
    ours = [_class_name(entry.kcode, entry.retired) for entry in session.metadata.classes]
    theirs = [_class_name(drug.kcode, drug.retired) for drug in manifest.catalog.drugs]
    if ours == theirs:
        return
    if len(ours) != len(theirs):
        difference = f"{len(ours)} classes in the bundle, {len(theirs)} in the manifest"
    else:
        index = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        difference = f"class {index} is {ours[index]} in the bundle and {theirs[index]} in the manifest"
    raise EvidenceError(
        f"{bundle}: its classes are not those of {manifest.root} ({difference}); "
        "evaluate on a manifest of the drug list that the model was trained for"
    )


def _class_name(kcode: str, retired: bool) -> str:
    return f"{kcode} (retired)" if retired else kcode


def _evidence(
    session: PillSession, manifest: Manifest, predictions: Predictions, latency: Latency, run_id: str
) -> Evidence:
    labels_N, predicted_N = predictions.labels_N, predictions.predicted_N
    right_N = predicted_N == labels_N
    real_N = np.asarray([domain == "real" for domain in predictions.rows["domain"].to_pylist()], np.bool_)
    kcodes = manifest.catalog.kcodes
    counts_KK = metrics.confusion_matrix(labels_N, predicted_N, len(kcodes))
    real_counts_KK = metrics.confusion_matrix(labels_N[real_N], predicted_N[real_N], len(kcodes))
    names = [(drug.kcode, drug.drug_name) for drug in manifest.catalog.drugs]
    results = metrics.class_results(counts_KK, real_counts_KK, names)
    # A retired drug has no photos to be judged on and is never answered: it is no class of the evidence.
    classes = tuple(result for result, drug in zip(results, manifest.catalog.drugs, strict=True) if not drug.retired)
    groups_N = predictions.rows["group"].to_pylist()
    figures = metrics.top_metrics(predictions.ranks_N, real_N, groups_N)
    slices = _slices(predictions, right_N, real_N, groups_N)
    ece = metrics.expected_calibration_error(metrics.reliability(predictions.confidences_N, right_N))
    return Evidence(
        bundle_sha256=session.sha256,
        manifest_hash=manifest.hash,
        run_id=run_id or session.metadata.provenance.run_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        metrics={
            **figures,
            "latency_p50_ms": Metric(value=latency.p50_ms),
            "latency_p95_ms": Metric(value=latency.p95_ms),
            "size_mb": Metric(value=session.size_bytes / 1e6),
            "ece": Metric(value=ece, images=len(labels_N)),
        },
        slices=slices,
        worst_slices=metrics.worst_slices(slices, ENOUGH_IN_SLICE),
        look_alikes=metrics.look_alikes(counts_KK, kcodes),
        calibration=_calibration(session, predictions, right_N, real_N, ece),
        manifest_date=str(manifest.summary.get("date", "")),
        code=_code(),
        classes=classes,
        failures=metrics.failures(classes),
        confusions=metrics.confusions(counts_KK, kcodes),
        latency=latency,
        environment=_environment(session),
        notes=_notes(session, manifest, figures, classes),
    )


def _slices(
    predictions: Predictions, right_N: metrics.Bools, real_N: metrics.Bools, groups_N: list[str]
) -> dict[str, dict[str, Metric]]:
    rows = predictions.rows.filter(real_N)
    real_groups = [group for group, real in zip(groups_N, real_N, strict=True) if real]
    found = {"domain": metrics.slice_shares(right_N, predictions.rows["domain"].to_pylist(), groups_N)}
    for name in SLICED_BY:
        found[name] = metrics.slice_shares(right_N[real_N], rows[name].to_pylist(), real_groups)
    return {name: values for name, values in found.items() if values}


def _calibration(
    session: PillSession, predictions: Predictions, right_N: metrics.Bools, real_N: metrics.Bools, ece: float
) -> dict[str, float]:
    """The error of the confidences with the temperature of the bundle, and as it would be without (at 1); and what
    became of the threshold of "not sure". Of the real photos apart: they are what is sent."""
    temperature = session.metadata.temperature
    log_NK = np.log(np.maximum(predictions.probabilities_NK.astype(np.float64), 1e-38)) * temperature
    raw_NK = softmax(log_NK, axis=1)
    raw = metrics.reliability(raw_NK.max(axis=1).astype(np.float32), right_N)
    found = {
        "temperature": temperature,
        "ece": ece,
        "ece_uncalibrated": metrics.expected_calibration_error(raw),
    }
    unsure_below = session.metadata.unsure_below
    if unsure_below is not None:
        sure_N = predictions.sure_N(unsure_below)
        found |= {"unsure_below": unsure_below, **_selective(sure_N, right_N)}
    if real_N.any():
        confidences_N, right_N = predictions.confidences_N[real_N], right_N[real_N]
        found["real_ece"] = metrics.expected_calibration_error(metrics.reliability(confidences_N, right_N))
        if unsure_below is not None:
            found |= {f"real_{name}": value for name, value in _selective(sure_N[real_N], right_N).items()}
    return found


def _selective(sure_N: metrics.Bools, right_N: metrics.Bools) -> dict[str, float]:
    """How many test answers are called sure, and how many of these are right."""
    found = {"sure_share": float(sure_N.mean())}
    return {**found, "right_when_sure": float(right_N[sure_N].mean())} if sure_N.any() else found


def _code() -> dict[str, str]:
    version = CodeVersion.current()
    return {
        "pillsnap": pillsnap.__version__,
        "git_commit": version.commit,
        "uncommitted": "yes" if version.dirty else "no",
    }


def _notes(
    session: PillSession, manifest: Manifest, figures: dict[str, Metric], classes: tuple[ClassResult, ...]
) -> tuple[str, ...]:
    images = sum(result.images for result in classes)
    real = figures["real_top1"].images or 0 if "real_top1" in figures else 0
    notes = []
    provenance = session.metadata.provenance
    if provenance.manifest_hash != manifest.hash:
        notes.append("The model was trained on another manifest: it may have seen these test images in training.")
    elif others := [other for other in provenance.also_learned_from if other != manifest.hash]:
        named = ", ".join(f"{other[:12]}…" for other in others)
        notes.append(
            f"Its first weights or its teacher learned from other data (manifest {named}): where that does not keep "
            "the splits of this one (pillsnap data prepare --previous), it may have seen these test images."
        )
    if images < FEW_IMAGES:
        notes.append(f"Only {images} test images: read the intervals, not the single figures.")
    if real == 0:
        notes.append("No real photos in the test split: nothing here says how the model does in the hand.")
    elif real < FEW_IMAGES <= images:
        notes.append(f"Only {real} real test photos: read the interval of real_top1, not the single figure.")
    if 5 / len(classes) >= 0.2:
        chance = min(100.0, 500 / len(classes))
        notes.append(f"With {len(classes)} classes top-5 says little: guessing alone reaches {chance:.0f} %.")
    absent = [result.kcode for result in classes if result.images == 0]
    if absent:
        notes.append(f"Without a test image, so not judged: {_listing(absent)}.")
    unseen = [result.kcode for result in classes if result.images and result.real_top1 is None]
    if real and unseen:
        notes.append(f"Without a real test photo, so judged on studio pictures alone: {_listing(unseen)}.")
    tops = sorted((result.real_top1, result.kcode) for result in classes if result.real_top1 is not None)
    weak = [f"{kcode} ({top1:.0%})" for top1, kcode in tops if top1 < metrics.FAILURE_BELOW]
    if weak:
        notes.append(f"Under {metrics.FAILURE_BELOW:.0%} on real photos, worst first: {_listing(weak)}.")
    few = [result.kcode for result in classes if 0 < result.images < FEW_PER_CLASS]
    if few:
        notes.append(f"{len(few)} classes have fewer than {FEW_PER_CLASS} test images: {_listing(few)}.")
    return tuple(notes)


def _listing(kcodes: list[str], most: int = 10) -> str:
    more = f" and {len(kcodes) - most} more" if len(kcodes) > most else ""
    return ", ".join(kcodes[:most]) + more


def _environment(session: PillSession) -> dict[str, str]:
    return {
        "pillsnap": pillsnap.__version__,
        "python": platform.python_version(),
        session.engine.library: session.engine.version,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "system": platform.platform(),
        "hardware": hardware_name(),
    }
