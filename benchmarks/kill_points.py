"""Does a training that is killed end with the weights of one that was left alone? At many random moments.

    python benchmarks/kill_points.py --points 24 --commands 4

An undisturbed training of a small net first (all that is random is on: dropout, mixup, cutmix, erasing, EMA). Then one
training a point: killed at a random moment of its length (or when a checkpoint is half written, or by SIGTERM, or with
its newest checkpoint damaged afterwards), started again, and compared bit by bit: judged weights, weights, EMA,
optimizer, schedule, generators, history and the list of the best. Points of "command" kill the real ``pillsnap train``
and also ask MLflow: one run, FINISHED, each point of its curves once. Pictures are synthetic squares.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pillsnap.core.experiment import ExperimentConfig
from pillsnap.core.manifest import Manifest
from pillsnap.data.cache import PreparedCache
from pillsnap.training.batches import TrainingData
from pillsnap.training.sealed import load_sealed
from pillsnap.training.trainer import Nobody, fit

PROJECT = Path(__file__).parents[1]
EPOCHS = 8
OVERRIDES = {
    "training.epochs": EPOCHS,
    "training.ema_decay": 0.9,
    "model.drop_rate": 0.3,
    "augmentation.random_erasing": 0.5,
    "augmentation.mix_probability": 0.7,
    "logging.every_steps": 1,
}
CLOCKS = ("images_per_s", "train_s")


class Slow(Nobody):
    """Half of a training of this size would be its start: every update waits a little."""

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        """Wait."""
        time.sleep(0.01)


def train(root: Path, folder: Path) -> None:
    """One process: train, or go on."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    torch.set_num_threads(1)
    config = ExperimentConfig.load(root / "experiment.yaml")
    manifest = Manifest.load(root / "manifest")
    data = TrainingData.of(manifest, PreparedCache.open(manifest, config.preprocessing, root / "cache"), config)
    try:
        fit(config, data, folder, Slow())
    except KeyboardInterrupt:
        sys.exit(1)


def whole_state(folder: Path) -> dict[str, Any]:
    """All that the newest checkpoint holds, but for what a clock says."""
    state = load_sealed(folder / "last.pt")
    for entry in (*state["history"], state["metrics"]):
        for key in CLOCKS:
            entry.pop(key, None)
    return state


def same(first: Any, second: Any) -> bool:
    """Equal, tensors bit by bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(same(*pair) for pair in zip(first, second, strict=True))
    return bool(first == second)


def damage(path: Path, rng: random.Random) -> None:
    """Turn over one byte somewhere, or cut the file."""
    content = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        content[rng.randrange(len(content))] ^= 0xFF
    else:
        del content[rng.randrange(len(content)) :]
    path.write_bytes(content)


def epochs_done(folder: Path) -> int:
    """Of the newest sound state."""
    for name in ("last.pt", "previous.pt"):
        try:
            return int(load_sealed(folder / name)["epoch"])
        except Exception:  # noqa: S112
            continue
    return 0


def kill_one(start: Callable[[Path], Any], kind: str, folder: Path, length_s: float, rng: random.Random) -> str:
    """Start a training and end it in its middle; says when."""
    process = start(folder)
    started = time.monotonic()
    moment = rng.uniform(0.02, 0.98) * length_s
    skip = rng.randrange(EPOCHS)
    half_written: set[str] = set()
    while process.is_alive():
        if kind == "half-written":
            half_written |= {path.name for path in folder.glob(".*.part")}
            if len(half_written) > skip:
                break
            time.sleep(0.0001)
        elif time.monotonic() - started >= moment:
            break
        else:
            time.sleep(0.002)
    if process.is_alive():
        os.kill(process.pid, signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)
    process.join()
    if kind == "damaged" and (folder / "last.pt").exists():
        damage(folder / "last.pt", rng)
    return f"{time.monotonic() - started:.2f} s"


def of_fit(root: Path, points: int, rng: random.Random) -> int:
    """Kill trainings in processes that have torch imported already; returns how many ended otherwise."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pillsnap.training.trainer"])

    def start(folder: Path) -> Any:
        process = context.Process(target=train, args=(root, folder))
        process.start()
        return process

    start(root / "warm").join()
    began = time.monotonic()
    start(root / "undisturbed").join()
    length_s = time.monotonic() - began
    expected = whole_state(root / "undisturbed")
    print(f"undisturbed: {EPOCHS} epochs of 6 updates in {length_s:.2f} s\n")
    print("| point | how | after | epochs kept | ends bit-equal |\n|---|---|---|---|---|")
    kinds = ["kill -9"] * 3 + ["half-written"] * 2 + ["SIGTERM", "damaged"]
    failed = 0
    for number in range(points):
        kind, folder = kinds[number % len(kinds)], root / f"point-{number}"
        folder.mkdir()
        after = kill_one(start, kind, folder, length_s, rng)
        kept = epochs_done(folder)
        start(folder).join()
        files = {path.name for path in folder.iterdir()} == {path.name for path in (root / "undisturbed").iterdir()}
        equal = files and same(whole_state(folder), expected)
        failed += not equal
        print(f"| {number + 1} | {kind} | {after} | {kept} | {'yes' if equal else 'NO'} |", flush=True)
    return failed


def of_command(root: Path, points: int, rng: random.Random) -> int:
    """Kill the real command; returns how many ended otherwise."""
    from mlflow.tracking import MlflowClient

    def command(name: str) -> tuple[list[str], dict[str, str]]:
        arguments = ["--data", root / "manifest", "--config", root / "experiment.yaml", "--workspace", root / name]
        environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{root}/{name}.db", "OMP_NUM_THREADS": "1"}
        return [sys.executable, "-m", "pillsnap", "train", *map(str, arguments)], environment

    def end_of(name: str) -> dict[str, Any]:
        return whole_state(next((root / name).glob("runs/*/checkpoints")))

    started, environment = command("command")
    subprocess.run(started, cwd=PROJECT, env=environment, check=True, capture_output=True)
    expected, failed = end_of("command"), 0
    print("\n| point | how | epochs kept | same run, FINISHED | curves whole | ends bit-equal |")
    print("|---|---|---|---|---|---|")
    for number in range(points):
        started, environment = command(f"command-{number}")
        kind, epoch = ("kill -9", "SIGTERM")[number % 2], rng.randrange(1, EPOCHS)
        with subprocess.Popen(
            started, cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith(f"epoch {epoch} of"):
                    time.sleep(rng.uniform(0, 0.1))
                    process.send_signal(signal.SIGKILL if kind == "kill -9" else signal.SIGTERM)
                    break
            process.stderr.read()
        kept = epochs_done(next((root / f"command-{number}").glob("runs/*/checkpoints"), root / "none"))
        subprocess.run(started, cwd=PROJECT, env=environment, check=True, capture_output=True)
        client = MlflowClient(environment["MLFLOW_TRACKING_URI"])
        runs = client.search_runs([client.get_experiment_by_name("pillsnap").experiment_id])
        one = [run.info.status for run in runs] == ["FINISHED"]
        steps = Counter(point.step for point in client.get_metric_history(runs[0].info.run_id, "val/top1"))
        whole = steps == Counter(range(1, EPOCHS + 1))
        equal = same(end_of(f"command-{number}"), expected)
        failed += not (one and whole and equal)
        words = " | ".join("yes" if value else "NO" for value in (one, whole, equal))
        print(f"| {number + 1} | {kind}, after epoch {epoch} | {kept} | {words} |", flush=True)
    return failed


def main() -> None:
    """Parse, prepare, kill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=24, help="trainings that are killed")
    parser.add_argument("--commands", type=int, default=4, help="real commands that are killed")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    squares = runpy.run_path(str(PROJECT / "tests" / "training" / "squares.py"))
    rng = random.Random(arguments.seed)  # noqa: S311
    with tempfile.TemporaryDirectory(prefix="pillsnap-kill-") as name:
        root = Path(name)
        manifest = squares["save_squares"](root / "manifest")
        config: ExperimentConfig = squares["tiny_config"](OVERRIDES)
        (root / "experiment.yaml").write_text(config.to_yaml())
        PreparedCache.build(manifest, config.preprocessing, root / "cache", workers=1)
        failed = of_fit(root, arguments.points, rng) if arguments.points else 0
        failed += of_command(root, arguments.commands, rng) if arguments.commands else 0
    print(f"\n{arguments.points + arguments.commands} points, {failed} ended otherwise")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
