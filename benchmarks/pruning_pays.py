"""Does pruning pay? TPE with pruning against random search without, at the same budget of epochs, over several seeds.

For each seed both studies train the same short trials on the same part of a data set, one process a trial, as
``pillsnap tune`` does, until they have spent the budget. Printed: the best value of each, and how many epochs the
pruned study had spent when it first reached the best of random search.

    python benchmarks/pruning_pays.py                       # the demo data, three seeds, about an hour on two cores
    python benchmarks/pruning_pays.py --trials 8 --epochs 3 --train-share 0.1 --seeds 0 1 2     # small
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import optuna

from pillsnap.cli import journey
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.training.batches import TrainingData
from pillsnap.tuning.storage import open_storage
from pillsnap.tuning.study import epochs_of, open_study, over
from pillsnap.tuning.supervisor import Supervisor
from pillsnap.tuning.trial import TrialJob
from pillsnap.tuning.worker import Order

SPACE = {
    "training.base_lr": {"low": 1e-4, "high": 3e-2, "log": True},
    "training.weight_decay": {"low": 1e-4, "high": 0.3, "log": True},
    "model.drop_rate": {"low": 0.0, "high": 0.5},
    "augmentation.strength": {"low": 0.0, "high": 2.0},
}
ARMS = {"random": {"sampler": "random", "pruning": False}, "pruned": {"sampler": "tpe", "pruning": True}}


def run_arm(
    arm: str, seed: int, data: TrainingData, folder: Path, asked: argparse.Namespace
) -> list[tuple[int, float]]:
    """Run one study to the budget; (epochs spent, best value so far) after each trial, in the order of their ends."""
    budget = asked.trials * asked.epochs
    settings = {"epochs": asked.epochs, "train_share": asked.train_share, "space": SPACE, **ARMS[arm]}
    settings |= {"pruning_startup_trials": 4, "pruning_warmup_epochs": 0, "floors": {}, "trials": asked.trials * 10}
    overrides = {"seed": seed, **{f"tuning.{key}": value for key, value in settings.items()}}
    config = ExperimentConfig.load(asked.config, overrides)
    storage = open_storage(f"sqlite:///{folder}/{arm}-{seed}.db", heartbeat_s=config.tuning.heartbeat_s)
    study = open_study(config, f"{arm}-{seed}", storage)
    cache = data.cache.folder.parent
    job = TrialJob(config, data.manifest.root, cache, folder / f"{arm}-{seed}", None)
    while (left := budget - epochs_of(study.trials)) > 0:
        # another trial of full length may not fit any more, but a started one is not cut: the same rule for both
        more = len(over(study.trials)) + max(left // asked.epochs, 1)
        order = Order(config, study.study_name, storage.url, more, "", 0, job)
        Supervisor(study, order, asked.workers, None, lambda: None).run()
    ended = sorted(over(study.get_trials()), key=lambda trial: trial.datetime_complete or trial.datetime_start)
    spent, best, line = 0, 0.0, []
    for trial in ended:
        spent += len(trial.intermediate_values)
        if trial.state == optuna.trial.TrialState.COMPLETE and trial.value is not None:
            best = max(best, trial.value)
        line.append((spent, best))
    storage.engine.dispose()
    return line


def main() -> None:
    """Print a row for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="demo")
    parser.add_argument("--config", type=Path, default=Path("experiments/demo.yaml"))
    parser.add_argument("--workspace", type=Path, default=Path("workspace"))
    parser.add_argument("--trials", type=int, default=16, help="whole trials that the budget is worth")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--train-share", type=float, default=0.4)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked = parser.parse_args()
    manifest = journey.find_data(asked.data, asked.workspace)
    data = journey.load_training_data(ExperimentConfig.load(asked.config), manifest, asked.workspace)
    budget = asked.trials * asked.epochs
    print(f"budget: {budget} epochs each; real-photo top-1 on the validation split\n")
    print("| seed | random, trials | best | pruned, trials | best | epochs to reach random's best | share | minutes |")
    print("|---" * 8 + "|")
    with tempfile.TemporaryDirectory() as folder:
        for seed in asked.seeds:
            started = time.monotonic()
            lines = {arm: run_arm(arm, seed, data, Path(folder), asked) for arm in ARMS}
            goal = lines["random"][-1][1]
            reached = next((spent for spent, best in lines["pruned"] if best >= goal), None)
            share = "not reached" if reached is None else f"{reached / budget:.0%}"
            cells = [
                seed, len(lines["random"]), f"{goal:.1%}", len(lines["pruned"]), f"{lines['pruned'][-1][1]:.1%}",
                reached or "-", share, f"{(time.monotonic() - started) / 60:.1f}",
            ]  # fmt: skip
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
