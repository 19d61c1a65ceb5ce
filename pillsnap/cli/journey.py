"""The steps that several commands are made of: find the data, train, export, evaluate, judge.

Each step takes what the one before left (manifest, checkpoint, bundle, evidence) and tells the MLflow run.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pillsnap.cli.progress import Progress
from pillsnap.core.errors import DataError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.core.files import sha256_json, write_json
from pillsnap.core.manifest import SUMMARY_FILE, Manifest

if TYPE_CHECKING:
    from pillsnap.data.prepare import PrepareResult
    from pillsnap.exporting.export import ExportResult
    from pillsnap.gate.decision import Decision
    from pillsnap.gate.policy import Policy
    from pillsnap.tracking.run import TrackedRun
    from pillsnap.training.batches import TrainingData
    from pillsnap.training.trainer import FitResult

_log = logging.getLogger(__name__)
DEMO = "demo"
EXPERIMENT_NAME = "pillsnap"


def find_data(name: str, workspace: Path) -> Manifest:
    """The manifest behind ``--data``: made from the raw pictures where it is not there yet.

    Such a manifest records the reference preprocessing, whatever the experiment does: all experiments on the same
    pictures share one manifest, and their evidence can be compared.

    Raises:
        DataError: neither a manifest nor raw pictures.
    """
    if name == DEMO:
        return _prepare_raw(render_demo(workspace), workspace / "demo" / "data", "demo").manifest
    folder = Path(name)
    if (folder / SUMMARY_FILE).is_file():
        return Manifest.load(folder)
    if (folder / "drugs.json").is_file():
        target = f"{folder.resolve().name}-{sha256_json(str(folder.resolve()))[:8]}"
        return _prepare_raw(folder, workspace / "data" / target, folder.resolve().name).manifest
    raise DataError(
        f"{folder.absolute()}: holds neither {SUMMARY_FILE} (a prepared data set) nor drugs.json (raw pictures). "
        "A relative path starts at the current folder, under mlflow run at the project: give an absolute one"
    )


def render_demo(workspace: Path) -> Path:
    """The raw pictures of the embedded demo data; rendered where they are not there."""
    from pillsnap.synthetic.dataset import DemoSpec, render_dataset

    root = workspace / "demo" / "raw"
    with Progress() as progress:
        render_dataset(root, DemoSpec(), lambda done, total: progress("rendering", done, total))
    return root


def _prepare_raw(raw: Path, out: Path, name: str) -> PrepareResult:
    from pillsnap.data.prepare import PrepareRequest, prepare
    from pillsnap.data.sources import raw_layout

    drugs, studio, real = raw_layout(raw)
    request = PrepareRequest(
        drugs=drugs,
        studio=studio,
        real=real,
        out=out,
        name=name,
    )
    with Progress() as progress:
        return prepare(request, progress)


def load_training_data(config: ExperimentConfig, manifest: Manifest, workspace: Path) -> TrainingData:
    """The prepared images of a manifest (made where there are none), and which of them train."""
    from pillsnap.data.cache import PreparedCache
    from pillsnap.training.batches import TrainingData

    if manifest.summary.get("preprocessing_fingerprint") != config.preprocessing.fingerprint:
        _log.info(
            "this experiment preprocesses in its own way (%d px, fingerprint %s), not as the manifest records",
            config.preprocessing.target_size,
            config.preprocessing.fingerprint,
        )
    with Progress() as progress:
        cache = PreparedCache.build(manifest, config.preprocessing, workspace / "cache", progress=progress)
    return TrainingData.of(manifest, cache, config)


class RunLogger:
    """Tells the MLflow run and the reader how the training goes."""

    def __init__(self, run: TrackedRun, epochs: int) -> None:
        self._run = run
        self._epochs = epochs
        self._started = time.monotonic()
        self.done_before = 0
        """Epochs of a former process."""

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        """Figures of the last updates."""
        self._run.log_metrics(metrics, step)

    def on_resume(self, epoch: int, step: int) -> None:
        """The training goes on: epochs of another process say nothing of the time that is left."""
        self.done_before = epoch
        self._run.set_tags({"pillsnap.resumed_after": f"epoch {epoch}, update {step}"})

    def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Figures of an epoch, and how long it will still take."""
        self._run.log_metrics(metrics, epoch)
        self._run.flush()  # before the epoch's checkpoint: a process that is killed after it would not tell it again
        left_s = (time.monotonic() - self._started) / (epoch - self.done_before) * (self._epochs - epoch)
        real = f", real {metrics['val_real_top1']:.1%}" if "val_real_top1" in metrics else ""
        _log.info(
            "epoch %d of %d: loss %.3f, validation top-1 %.1f %%, top-5 %.1f %%%s, %.0f images/s, %.0f s to go",
            epoch, self._epochs, metrics["train_loss"], 100 * metrics["val_top1"], 100 * metrics["val_top5"], real,
            metrics["images_per_s"], left_s,
        )  # fmt: skip


def train_step(
    run: TrackedRun, config: ExperimentConfig, manifest: Manifest, workspace: Path, *, deadline: float | None = None
) -> FitResult:
    """Train, or go on where this run stopped; parameters, figures, curves and the best checkpoint go to the run.

    ``deadline``, of `time.monotonic`: no epoch is begun that would end later.
    """
    from pillsnap.data.audit_report import AUDIT_FILE
    from pillsnap.data.prepare import REPORT_FILE
    from pillsnap.training.curves import draw_learning_curves
    from pillsnap.training.device import Device
    from pillsnap.training.trainer import fit

    folder = run_folder(workspace, run)
    run.log_config(config.model_dump(mode="json"))
    run.log_text(config.to_yaml(), "experiment.yaml")
    run.log_dataset(manifest)
    for name in (AUDIT_FILE, REPORT_FILE):
        if (manifest.root / name).is_file():  # a manifest that was moved here alone is enough to train on
            run.log_file(manifest.root / name, "data")
    device = Device.choose(config.training.mixed_precision)
    run.set_tags({"pillsnap.kind": "training", "device": str(device)})
    data = load_training_data(config, manifest, workspace)
    _log.info(
        "training %s on %d images, validating on %d (%s)",
        config.model.backbone, len(data.train_indices), len(data.val_indices), device,
    )  # fmt: skip
    logger = RunLogger(run, config.training.epochs)
    result = fit(config, data, folder / "checkpoints", logger, deadline=deadline)
    for entry in result.history[: logger.done_before]:  # of a run that is new; one that goes on has them
        run.log_metrics({key: value for key, value in entry.items() if key != "epoch"}, int(entry["epoch"]))
    run.set_tags({"pillsnap.stopped": result.stopped})
    draw_learning_curves(result.history, folder / "learning_curves.png")
    run.log_file(folder / "learning_curves.png")
    run.log_file(result.best_checkpoint, "checkpoints")
    best = {f"best_{key}": value for key, value in result.best_metrics.items() if key.startswith("val_")}
    run.log_metrics({**best, "best_epoch": result.best_epoch})
    return result


def export_step(run: TrackedRun, checkpoint: Path, manifest: Manifest, workspace: Path) -> ExportResult:
    """Write the bundle, prove its parity, log it as the run's model."""
    from pillsnap.exporting.export import export_bundle
    from pillsnap.tracking.models import log_bundle
    from pillsnap.tracking.source import CodeVersion
    from pillsnap.training.checkpoint import Checkpoint

    folder = run_folder(workspace, run)
    result = export_bundle(
        Checkpoint.load(checkpoint),
        manifest,
        folder / "pillsnap.onnx",
        run_id=run.run_id,
        git_commit=str(CodeVersion.current()),
    )
    write_json(folder / "export.json", result.report())
    run.log_file(folder / "export.json", "export")
    log_bundle(run, result.bundle)
    return result


def evaluate_step(run: TrackedRun, bundle: Path, manifest: Manifest, workspace: Path) -> Path:
    """Measure the bundle on the test split; evidence and pictures go to the run. Returns the report's folder."""
    from pillsnap.evaluation.evidence import evaluate
    from pillsnap.evaluation.report import figures_table, write_report

    with Progress() as progress:
        result = evaluate(
            bundle, manifest, run_id=run.run_id, progress=lambda done, total: progress("test images", done, total)
        )
    folder = write_report(result, manifest, run_folder(workspace, run) / "evaluation")
    run.log_folder(folder, "evaluation")
    run.log_metrics({f"test_{name}": metric.value for name, metric in result.evidence.metrics.items()})
    click.echo(figures_table(result.evidence))
    for note in result.evidence.notes:
        click.echo(f"note: {note}")
    return folder


def gate_step(run: TrackedRun, bundle: Path, evaluation: Path, manifest: Manifest, policy: Policy) -> Decision:
    """Judge the evidence; the decision goes to the run."""
    from pillsnap.core.evidence import Evidence
    from pillsnap.core.files import sha256_file
    from pillsnap.evaluation.report import EVIDENCE_FILE
    from pillsnap.gate.decision import decide

    decision = decide(
        Evidence.load(evaluation / EVIDENCE_FILE),
        policy,
        bundle_sha256=sha256_file(bundle),
        manifest_hash=manifest.hash,
    )
    decision.save(bundle.parent / "decision.json")
    run.log_file(bundle.parent / "decision.json", "gate")
    run.log_text(decision.markdown(), "gate/decision.md")
    run.set_tags(
        {
            "gate.verdict": str(decision.verdict),
            "gate.reasons": "; ".join(decision.reasons)[:5000],
            "mlflow.note.content": decision.markdown(),  # the run's description in the UI
        }
    )
    return decision


def run_folder(workspace: Path, run: TrackedRun) -> Path:
    """Where the files of one MLflow run lie."""
    folder = workspace / "runs" / run.run_id
    folder.mkdir(parents=True, exist_ok=True)
    return folder
