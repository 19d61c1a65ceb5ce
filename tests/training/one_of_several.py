"""One process of a training that torchrun starts: DATA CACHE CONFIG FOLDER [FAILURE]. Run by ``test_distributed``.

FAILURE: what process 1 does in its second epoch: ``raise``, or ``die`` (killed, without a word); ``terminate``: the
launcher gets SIGTERM; ``terminate late``: when process 1 has waited for process 0 inside torch for a second.
``budget``, ``no time``: no failure, but process 0 has a deadline, in ten minutes or over already.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from pillsnap.core.experiment import ExperimentConfig
from pillsnap.core.manifest import Manifest
from pillsnap.data.cache import PreparedCache
from pillsnap.training import trainer
from pillsnap.training.batches import TrainingData
from pillsnap.training.distributed import process_group


class Told(trainer.Nobody):
    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        print(f"step {step} {metrics['step_loss']:.6f}", flush=True)

    def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        print(f"epoch {epoch}", flush=True)


def fail(how: str) -> None:
    if how == "raise":
        raise ValueError("a fault of its own")
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "terminate":
        os.kill(os.getppid(), signal.SIGTERM)
    if how == "terminate late":
        threading.Timer(1, lambda: os.kill(os.getppid(), signal.SIGTERM)).start()


def main(manifest: str, cache: str, config_file: str, folder: str, how: str = "") -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    torch.set_num_threads(1)
    config = ExperimentConfig.load(Path(config_file))
    loaded = Manifest.load(Path(manifest))
    data = TrainingData.of(loaded, PreparedCache.open(loaded, config.preprocessing, Path(cache)), config)
    with process_group() as ranks:
        if how:
            train_epoch = trainer._Trainer._train_epoch

            def failing(self: trainer._Trainer, epoch: int) -> dict[str, float]:
                if epoch == 2 and ranks.rank == 1:
                    fail(how)
                elif epoch == 2 and how == "terminate late":
                    time.sleep(60)
                return train_epoch(self, epoch)

            trainer._Trainer._train_epoch = failing  # type: ignore[method-assign]
        deadline = {"budget": time.monotonic() + 600, "no time": 0.0}.get(how) if ranks.is_first else None
        try:
            result = trainer.fit(config, data, Path(folder), Told(), deadline=deadline)
        except BaseException as error:
            print(f"process {ranks.rank} ended: {type(error).__name__}: {error}", flush=True)
            raise SystemExit(3) from error
        print(f"process {ranks.rank} of {ranks.world}: best epoch {result.best_epoch} of {len(result.history)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
