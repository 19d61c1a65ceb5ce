"""The steps that several commands are made of: find the data, train, export, evaluate, judge.

Each step takes what the one before left (manifest, checkpoint, bundle, evidence) and tells the MLflow run.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pillsnap.cli.progress import Progress, TrainingProgress
from pillsnap.cli.run_logger import RunLogger, training_report
from pillsnap.core.catalog import DRUG_LIST_FILE
from pillsnap.core.errors import DataError, TrainingError
from pillsnap.core.experiment import ExperimentConfig, is_fetched
from pillsnap.core.files import json_text, sha256_json, write_bytes, write_json
from pillsnap.core.manifest import SUMMARY_FILE, Manifest
from pillsnap.tracking.names import of_best, of_curves, of_test

if TYPE_CHECKING:
    from pillsnap.core.evidence import Evidence
    from pillsnap.data.prepare import PrepareResult
    from pillsnap.exporting.export import ExportResult
    from pillsnap.gate.decision import Decision
    from pillsnap.gate.policy import Policy
    from pillsnap.tracking.run import TrackedRun
    from pillsnap.training.batches import TrainingData
    from pillsnap.training.device import Device
    from pillsnap.training.trainer import FitResult

_log = logging.getLogger(__name__)
DEMO = "demo"


def check_before_data(config: ExperimentConfig, data_name: str) -> None:
    """What can be refused without a picture is refused before one is drawn, read or prepared, or a store is made.

    Raises:
        DataError: neither a manifest nor raw pictures.
        TrainingError: first weights or a teacher that are no file, or a package that is not installed.
        ConfigError: the experiment's backbone is none, or does not take its images; no such package of weights.
    """
    if data_name != DEMO:
        _check_data(data_name)
    _check_local_weights(config)
    from pillsnap.training.backbone import check_net

    check_net(config.model, config.preprocessing, 2)


def checked_data(config: ExperimentConfig, data_name: str, workspace: Path) -> Manifest:
    """`find_data`, when `check_before_data` and the tracking store have nothing against the work.

    Raises:
        StoreError: the store does not answer, which is better said before the work than after it.
    """
    from pillsnap.tracking.store import connect

    check_before_data(config, data_name)
    connect()
    return find_data(data_name, workspace)


def find_data(name: str, workspace: Path) -> Manifest:
    """The manifest behind ``--data``: made from the raw pictures where it is not there yet.

    Such a manifest records the reference preprocessing, whatever the experiment does: all experiments on the same
    pictures share one manifest, and their evidence can be compared.

    Raises:
        DataError: neither a manifest nor raw pictures.
    """
    if name == DEMO:
        return _prepare_raw(render_demo(workspace), workspace / "demo" / "data", "demo").manifest
    folder = _check_data(name)
    if (folder / SUMMARY_FILE).is_file():
        return Manifest.load(folder)
    target = f"{folder.resolve().name}-{sha256_json(str(folder.resolve()))[:8]}"
    return _prepare_raw(folder, workspace / "data" / target, folder.resolve().name).manifest


def _check_data(name: str) -> Path:
    folder = Path(name)
    if not any((folder / file).is_file() for file in (SUMMARY_FILE, DRUG_LIST_FILE)):
        raise DataError(
            f"{folder.absolute()}: holds neither {SUMMARY_FILE} (a prepared data set) nor {DRUG_LIST_FILE} (raw "
            "pictures). A relative path starts at the current folder, under mlflow run at the project: give an "
            "absolute one"
        )
    return folder


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


def with_local_weights(config: ExperimentConfig, workspace: Path) -> tuple[ExperimentConfig, dict[str, str]]:
    """The experiment with the checkpoint files that ``model.weights`` and ``distillation.teacher`` stand for.

    Returns:
        The experiment, and as tags the runs that the files are from (``weights.run_id``, ``teacher.run_id``).

    Raises:
        StoreError: no such run or model version, or one without a checkpoint.
    """
    from pillsnap.tracking.weights import fetch_weights

    files, runs = {}, {}
    for key, weights in _named_weights(config).items():
        if is_fetched(weights):
            fetched = fetch_weights(weights, workspace / "weights", key)
            _log.info("%s: %s is the best checkpoint of run %s", key, weights, fetched.run_id)
            files[key], runs[f"{key.rpartition('.')[2]}.run_id"] = str(fetched.path), fetched.run_id
    return config.with_overrides(files) if files else config, runs


def _named_weights(config: ExperimentConfig) -> dict[str, str]:
    """Key of the experiment → the weights that it names."""
    asked = {"model.weights": config.model.weights}
    if config.distillation is not None:
        asked["distillation.teacher"] = config.distillation.teacher
    return {key: weights for key, weights in asked.items() if weights is not None}


def _check_local_weights(config: ExperimentConfig) -> None:
    from pillsnap.training.packaged_weights import PREFIX, find_packaged_weights

    for key, weights in _named_weights(config).items():
        is_teacher = key == "distillation.teacher"
        if is_fetched(weights):
            continue
        if weights.startswith(PREFIX) and not is_teacher:
            find_packaged_weights(weights, config.model.backbone).require()
        elif not (Path(weights).is_file() or (is_teacher and Path(weights).is_dir())):
            raise TrainingError(f"{key}: {weights}: no such file (a relative path starts at {Path.cwd()})")


def look_at_teacher(config: ExperimentConfig, manifest: Manifest) -> dict[str, str]:
    """What is known of the teacher, as tags (``teacher.sha256`` and more); its faults, before any picture is prepared.

    Args:
        config: the experiment, its teacher a file (`with_local_weights`).
        manifest: the data set of the training to come.

    Raises:
        TrainingError: no such checkpoint, a damaged one, or one of other drugs.
    """
    if config.distillation is None:
        return {}
    from pillsnap.training.distillation import load_teacher

    found = load_teacher(config, manifest)
    return {f"teacher.{key}": str(value) for key, value in asdict(found[1]).items()} if found is not None else {}


def train_step(
    run: TrackedRun, config: ExperimentConfig, manifest: Manifest, workspace: Path, *, deadline: float | None = None
) -> FitResult:
    """Train, or go on where this run stopped; parameters, figures, curves and the best checkpoint go to the run.

    ``deadline``, of `time.monotonic`: no epoch is begun that would end later.
    """
    from pillsnap.data.audit_report import AUDIT_FILE
    from pillsnap.data.prepare import REPORT_FILE
    from pillsnap.tracking.machine_load import machine_load
    from pillsnap.tracking.origin import log_origin
    from pillsnap.training.curves import draw_learning_curves
    from pillsnap.training.device import Device
    from pillsnap.training.samples import draw_samples
    from pillsnap.training.trainer import fit

    folder = run_folder(workspace, run)
    run.log_config(config.model_dump(mode="json", exclude={"tuning"}))  # the file has it; a training is not tuned
    run.log_text(config.to_yaml(), "experiment.yaml")
    run.log_dataset(manifest)
    for name in (AUDIT_FILE, REPORT_FILE):
        if (manifest.root / name).is_file():  # a manifest that was moved here alone is enough to train on
            run.log_file(manifest.root / name, "data")
    device = Device.of(config)
    run.set_tags({"pillsnap.kind": "training", "device": str(device)})
    log_origin(run, _device_facts(device))
    startable, tags = with_local_weights(config, workspace)
    run.set_tags({**tags, **look_at_teacher(startable, manifest)})
    data = load_training_data(config, manifest, workspace)
    draw_samples(config, data, folder / "samples" / "augmented.png")
    run.log_file(folder / "samples" / "augmented.png", "samples")
    _log.info(
        "training %s on %d images, validating on %d (%s)",
        config.model.backbone, len(data.train_indices), len(data.val_indices), device,
    )  # fmt: skip
    updates = len(data.train_indices) // (config.data.batch_size * config.training.accumulate)
    with machine_load(run), TrainingProgress(config.training.epochs, updates) as progress:
        logger = RunLogger(run, progress)
        result = fit(startable, data, folder / "checkpoints", logger, deadline=deadline)
    for entry in result.history[: logger.done_before]:  # of a run that is new; one that goes on has them
        run.log_metrics(of_curves(entry), int(entry["epoch"]))
    run.set_tags({"pillsnap.stopped": result.stopped})
    if result.weights is not None:
        started = asdict(result.weights)
        first = started.pop("first_weights") or {}
        facts = {**started, "learned_from": ", ".join(result.weights.learned_from)}
        run.set_tags({f"weights.{key}": value for key, value in facts.items() if value})
        run.set_tags({f"first_weights.{key}": value or "not known" for key, value in first.items()})
    draw_learning_curves(result.history, folder / "learning_curves.png")
    run.log_file(folder / "learning_curves.png")
    write_bytes(folder / "report.md", training_report(config.name, result.history, result.best_epoch).encode())
    run.log_file(folder / "report.md")
    run.log_file(result.best_checkpoint, "checkpoints")
    run.log_metrics(of_best(result.best_metrics, result.best_epoch))
    return result


def _device_facts(device: Device) -> dict[str, object]:
    import torch

    cuda = device.torch_device.type == "cuda"
    return {
        "device": str(device),
        "torch_threads": torch.get_num_threads(),
        "torch_interop_threads": torch.get_num_interop_threads(),
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "cuda_cards": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
    }


def export_step(run: TrackedRun, checkpoint: Path, manifest: Manifest, workspace: Path) -> ExportResult:
    """Write the bundle, prove its parity, log it as the run's model."""
    from pillsnap.core.code_version import CodeVersion
    from pillsnap.exporting.export import export_bundle
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
    log_export(run, result)
    return result


def log_export(run: TrackedRun, result: ExportResult) -> None:
    """The bundle as the run's model, with its parity."""
    from pillsnap.tracking.run_model import log_bundle

    run.log_text(json_text(result.report()), "export/export.json")
    log_bundle(run, result.bundle)


def evaluate_step(run: TrackedRun, bundle: Path, manifest: Manifest, workspace: Path, policy: Policy) -> Path:
    """Measure the bundle on the test split; evidence and pictures go to the run. Returns the report's folder."""
    from pillsnap.core.cpu import usable_cores
    from pillsnap.core.evidence import EVALUATION_FOLDER
    from pillsnap.evaluation.evidence import evaluate
    from pillsnap.evaluation.report import figures_table, write_report

    with Progress() as progress:
        result = evaluate(
            bundle,
            manifest,
            run_id=run.run_id,
            threads=min(usable_cores(), policy.latency_profile.most_threads),
            progress=lambda done, total: progress("test images", done, total),
        )
    folder = write_report(result, manifest, run_folder(workspace, run) / EVALUATION_FOLDER)
    log_evaluation(run, result.evidence, manifest, folder)
    click.echo(figures_table(result.evidence))
    for note in result.evidence.notes:
        click.echo(f"note: {note}")
    return folder


def log_evaluation(run: TrackedRun, evidence: Evidence, manifest: Manifest, folder: Path) -> None:
    """Evidence, report and pictures, and the figures of the test split."""
    from pillsnap.core.evidence import EVALUATION_FOLDER

    run.log_folder(folder, EVALUATION_FOLDER)
    run.log_test_metrics(of_test(evidence.metrics), manifest)


def gate_step(run: TrackedRun, bundle: Path, evaluation: Path, manifest: Manifest, policy: Policy) -> Decision:
    """Judge the evidence; the decision goes to the run."""
    from pillsnap.core.evidence import EVIDENCE_FILE, Evidence
    from pillsnap.core.files import sha256_file
    from pillsnap.gate.decision import decide

    decision = decide(
        Evidence.load(evaluation / EVIDENCE_FILE),
        policy,
        bundle_sha256=sha256_file(bundle),
        manifest_hash=manifest.hash,
    )
    decision.save(bundle.parent / "decision.json")
    log_decision(run, decision)
    return decision


def log_decision(run: TrackedRun, decision: Decision) -> None:
    """The decision, as the run's description too."""
    from pillsnap.registry.rules import DECISION_TAG, REASONS_TAG

    run.log_text(json_text(decision.model_dump(mode="json")), "gate/decision.json")
    run.log_text(decision.markdown(), "gate/decision.md")
    run.set_tags(
        {
            DECISION_TAG: str(decision.verdict),
            REASONS_TAG: "; ".join(decision.reasons)[:5000],
            "mlflow.note.content": decision.markdown(),  # the run's description in the UI
        }
    )


def run_folder(workspace: Path, run: TrackedRun) -> Path:
    """Where the files of one MLflow run lie."""
    folder = workspace / "runs" / run.run_id
    folder.mkdir(parents=True, exist_ok=True)
    return folder
