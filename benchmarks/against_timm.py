"""PillSnap's training beside timm's own script: same pictures, net, resolution, epochs, batches and optimiser.

    python benchmarks/against_timm.py --timm-script CHECKOUT/train.py --data MANIFEST_DIR

``train.py`` is in no release of timm: give the path of a checkout of huggingface/pytorch-image-models. Both trainings
are processes of their own that take turns; a watcher counts the rows of their ``summary.csv`` and reads clock and
processor time at each, so both are measured by the same hand, and without their start.

Only what both can do is on: crop, colour jitter without hue, erasing, mixup and cutmix as in the experiment; no
rotation, blur, CLAHE or average of the weights. What timm is given is `timm_options`.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from pillsnap.core.boxes import BOX_COLUMNS
from pillsnap.core.experiment import ExperimentConfig, parse_override
from pillsnap.core.manifest import Manifest
from pillsnap.data.cache import PreparedCache
from pillsnap.training.batches import TrainingData
from pillsnap.training.device import Device
from pillsnap.training.trainer import fit

COMMON = {
    "preprocessing.clahe.enabled": False,
    "model.pretrained": False,
    "model.weights": None,
    "training.ema_decay": None,
    "augmentation.rotation_degrees": 0,
    "augmentation.color_jitter.hue": 0,
    "augmentation.blur.probability": 0,
}
"""What the script has no option for is off; random weights at the start."""
SUMMARY = "summary.csv"
LAUNCHER = """
import runpy, sys, torch, timm.utils
if not torch.cuda.is_available():
    torch.cuda.synchronize = lambda *_: None
    choose = timm.utils.init_distributed_device
    timm.utils.init_distributed_device = lambda args: choose(setattr(args, "device", "cpu") or args)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Without a GPU, versions of the script that have no ``--device`` must be told, and kept from waiting for one."""
_POLL_S = 0.02


class Mark(NamedTuple):
    """When an epoch had ended."""

    clock_s: float
    cpu_s: float
    """Of the process and its workers."""


class Outcome(NamedTuple):
    """One training."""

    epoch_s: list[float]
    """From the end of an epoch to the end of the next: training, validation and checkpoint."""
    cpu_s: list[float]
    top1: list[float]
    """Percent of the validation split, of each epoch."""


def timm_options(config: ExperimentConfig, folder: Path, classes: int) -> list[str]:
    """The experiment in the words of timm's script."""
    training, augmentation, spec = config.training, config.augmentation, config.preprocessing
    warmup = round(training.warmup_epochs)
    options: dict[str, Any] = {
        "data-dir": folder,
        "class-map": folder / "classes.txt",
        "model": config.model.backbone,
        "num-classes": classes,
        "drop": config.model.drop_rate,
        "drop-path": config.model.drop_path_rate,
        "input-size": [3, spec.target_size, spec.target_size],
        "mean": spec.mean,
        "std": spec.std,
        "crop-pct": 1.0,  # validation: the whole centre square, as ours
        "interpolation": "bilinear",  # PIL's averages the pixels where it shrinks
        "train-interpolation": "bilinear",
        "batch-size": config.data.batch_size,
        "validation-batch-size": 2 * config.data.batch_size,
        "workers": config.data.workers,
        "opt": "adamw",
        "opt-kwargs": ["fused=True"],  # not its default on a CPU; the faster one is the fair rival
        "opt-eps": config.optimizer.eps,
        "opt-betas": config.optimizer.betas,
        "weight-decay": training.weight_decay,  # it spares biases and norms too
        "lr": training.base_lr,
        "sched": "cosine",
        "warmup-epochs": warmup,
        "warmup-lr": training.base_lr * config.schedule.warmup_factor,
        "epochs": training.epochs - warmup,  # with --warmup-prefix the warm-up comes on top
        "min-lr": training.min_lr,
        "smoothing": training.label_smoothing,
        "scale": augmentation.random_crop.scale,
        "ratio": augmentation.random_crop.ratio,
        "hflip": 0.0,
        "color-jitter": augmentation.color_jitter.brightness,
        "reprob": augmentation.random_erasing,
        "mixup": augmentation.mixup_alpha,
        "cutmix": augmentation.cutmix_alpha,
        "mixup-prob": augmentation.mix_probability,
        "checkpoint-hist": config.checkpoints.keep_best,
        "log-interval": 1000,
        "seed": config.seed,
    }
    if augmentation.cutmix_alpha > 0 and augmentation.cutmix_minmax is not None:
        options["cutmix-minmax"] = augmentation.cutmix_minmax
    if training.gradient_clip is not None:
        options["clip-grad"] = training.gradient_clip
    if config.model.kwargs:
        options["model-kwargs"] = [f"{name}={value!r}".replace(" ", "") for name, value in config.model.kwargs.items()]
    # the schedule of each update, and workers that outlive an epoch, as ours
    words = ["--sched-on-updates", "--warmup-prefix", "--channels-last", "--use-multi-epochs-loader"]
    device = Device.of(config)
    if device.autocast_dtype is not None:
        words += ["--amp", "--amp-dtype", str(device.autocast_dtype).removeprefix("torch.")]
    if device.torch_device.type == "cuda" and config.data.pin_memory:
        words.append("--pin-mem")
    for name, value in options.items():
        values = value if isinstance(value, list | tuple) else [value]
        words += [f"--{name}", *map(str, values)]
    return words


def lay_out(data: TrainingData, folder: Path) -> None:
    """The pictures as an ImageFolder: ``<split>/<K-CODE>/<row>.<ext>``, links to the same files."""
    manifest = data.manifest
    if any(manifest.rows[column].null_count < manifest.rows.num_rows for column in BOX_COLUMNS):
        raise SystemExit(f"{manifest.root}: has pictures of several pills, which timm cannot cut; prepare without them")
    paths, kcodes = manifest.rows["path"].to_pylist(), manifest.rows["kcode"].to_pylist()
    for split, indices in (("train", data.train_indices), ("validation", data.val_indices)):
        for row in map(int, indices):
            link = folder / split / kcodes[row] / f"{row}{Path(paths[row]).suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((manifest.root / paths[row]).resolve())
    (folder / "classes.txt").write_text("\n".join(manifest.catalog.kcodes) + "\n", encoding="utf-8")


def run_watched(command: list[str], folder: Path, threads: int) -> Outcome:
    """Run a training that writes a row to ``folder/summary.csv`` after each epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    summary, log = folder / SUMMARY, folder / "log.txt"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    marks: list[Mark] = []
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
        tree = psutil.Process(process.pid)
        try:
            while process.poll() is None:
                if summary.is_file() and summary.read_text(encoding="utf-8").count("\n") - 1 > len(marks):
                    marks.append(Mark(time.perf_counter(), _cpu_s(tree)))
                time.sleep(_POLL_S)
        finally:
            process.kill()
            process.wait()
    if process.returncode != 0 or len(marks) < 2:
        last = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
        raise SystemExit(f"{folder.name} ended with status {process.returncode}: {command[3:]}\n{last}")
    with summary.open(encoding="utf-8", newline="") as file:
        top1 = [float(row["eval_top1"]) for row in csv.DictReader(file)]
    spans = list(itertools.pairwise(marks))
    return Outcome(
        [after.clock_s - before.clock_s for before, after in spans],
        [after.cpu_s - before.cpu_s for before, after in spans],
        top1,
    )


def _cpu_s(process: psutil.Process) -> float:
    try:
        members = [process, *process.children(recursive=True)]
        return sum(sum(member.cpu_times()[:2]) for member in members)
    except psutil.NoSuchProcess:
        return float("nan")  # it has just ended: the epoch's share of the processor is not known


class SummaryWriter:
    """An observer that writes what timm's script writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_text("epoch,eval_top1\n", encoding="utf-8")

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        """Nothing."""

    def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """One row."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{epoch},{100 * metrics['val_top1']}\n")

    def on_resume(self, epoch: int, step: int) -> None:
        """Nothing: each training here is new."""


def train_ours(experiment: Path, manifest_dir: Path, cache: Path, folder: Path) -> None:
    """The process that `run_watched` watches."""
    config, manifest = ExperimentConfig.load(experiment), Manifest.load(manifest_dir)
    data = TrainingData.of(manifest, PreparedCache.open(manifest, config.preprocessing, cache), config)
    fit(config, data, folder / "checkpoints", SummaryWriter(folder / SUMMARY))


def compare(config: ExperimentConfig, options: argparse.Namespace, folder: Path) -> None:
    """Run both in turns and print the table."""
    manifest = Manifest.load(options.data)
    started = time.perf_counter()
    cache = PreparedCache.build(manifest, config.preprocessing, folder / "cache")
    build_s = time.perf_counter() - started
    data = TrainingData.of(manifest, cache, config)
    lay_out(data, folder / "pictures")
    print(
        f"{config.model.backbone}, {config.preprocessing.target_size} px, batches of {config.data.batch_size}, "
        f"{config.training.epochs} epochs, {len(data.train_indices)} + {len(data.val_indices)} pictures; "
        f"{Device.of(config)}, {options.threads} threads, "
        f"{config.data.workers} workers"
    )
    outcomes: dict[str, list[Outcome]] = {"timm": [], "PillSnap": []}
    for number in range(options.rounds):
        seeded = config.with_overrides({"seed": config.seed + number})
        experiment = folder / f"experiment-{number}.yaml"
        experiment.write_text(seeded.to_yaml(), encoding="utf-8")
        theirs, ours = folder / f"timm-{number}", folder / f"pillsnap-{number}"
        words = timm_options(seeded, folder / "pictures", len(manifest.catalog.drugs))
        script = [sys.executable, "-c", LAUNCHER, str(options.timm_script.resolve()), *words]
        commands = {
            "timm": ([*script, "--output", str(folder), "--experiment", theirs.name], theirs),
            "PillSnap": (
                [sys.executable, __file__, "ours", *map(str, (experiment, options.data, folder / "cache", ours))],
                ours,
            ),
        }
        for name in sorted(commands, reverse=number % 2 == 0):  # neither is always the first
            outcomes[name].append(run_watched(commands[name][0], commands[name][1], options.threads))
    print_table(outcomes, build_s)


def print_table(outcomes: dict[str, list[Outcome]], build_s: float) -> None:
    """A row for each training, then the ratios of the turns."""
    print("training | round | s an epoch | processor s an epoch | best top-1, % | last top-1, %")
    for name, rounds in outcomes.items():
        for number, outcome in enumerate(rounds):
            print(
                f"{name:8s} | {number:5d} | {statistics.median(outcome.epoch_s):10.2f} | "
                f"{statistics.median(outcome.cpu_s):20.2f} | {max(outcome.top1):13.1f} | {outcome.top1[-1]:13.1f}"
            )
    theirs, ours = outcomes["timm"], outcomes["PillSnap"]
    for title, key in (("time an epoch", "epoch_s"), ("processor time an epoch", "cpu_s")):
        ratios = [
            statistics.median(getattr(mine, key)) / statistics.median(getattr(rival, key))
            for mine, rival in zip(ours, theirs, strict=True)
        ]
        print(f"PillSnap ÷ timm, {title}: {statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})")
    gaps = [max(mine.top1) - max(rival.top1) for mine, rival in zip(ours, theirs, strict=True)]
    print(f"best top-1, PillSnap - timm: {statistics.mean(gaps):+.1f} points ({min(gaps):+.1f} to {max(gaps):+.1f})")
    print(f"the prepared cache, made once for all trainings on these pictures: {build_s:.1f} s")


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["ours"]:
        return train_ours(*map(Path, sys.argv[2:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timm-script", type=Path, required=True, help="train.py of a checkout of timm")
    parser.add_argument("--data", type=Path, required=True, help="folder of a prepared data set")
    parser.add_argument("--experiment", type=Path, default=Path("experiments/demo.yaml"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the experiment; repeatable")
    parser.add_argument("--epochs", type=int, default=5, help="of each training; the first is not timed")
    parser.add_argument("--rounds", type=int, default=2, help="trainings of each, with another seed every time")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each training")
    parser.add_argument("--folder", type=Path, help="where to write")
    options = parser.parse_args()
    if not options.timm_script.is_file():
        parser.error(f"--timm-script {options.timm_script}: no such file; it is train.py of a checkout of timm")
    if options.epochs < 3 or options.rounds < 1:
        parser.error("--epochs must be at least 3 (of which the first is not timed) and --rounds at least 1")
    overrides = {**COMMON, "training.epochs": options.epochs, **dict(map(parse_override, options.set))}
    folder = Path(tempfile.mkdtemp(prefix="against-timm-", dir=options.folder))
    try:
        compare(ExperimentConfig.load(options.experiment, overrides), options, folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
