"""How fast a training is beside other busy processes, by how its threads wait for each other.

    python benchmarks/shared_machine.py
    python benchmarks/shared_machine.py --set model.backbone=tf_efficientnet_lite0 --set "model.kwargs={}"

One process for each way, because OpenMP reads it while torch is loaded. They take turns, a few seconds each: one
measures, the others sleep. The neighbours are processes that only count. The pictures are noise.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WAYS: dict[str, dict[str, str]] = {
    "default": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=0": {"GOMP_SPINCOUNT": "0"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "default, 1 thread": {"OMP_NUM_THREADS": "1"},
}
_CLEARED = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
_IMAGES = 4096
Measured = tuple[float, float]
"""Images per second, CPU-seconds (loader's worker included) per 1,000 images."""


class Training:
    """A process that trains when it is asked to."""

    def __init__(self, way: dict[str, str], arguments: Sequence[str]) -> None:
        clean = {name: value for name, value in os.environ.items() if name not in _CLEARED}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--child", *arguments],
            env={**clean, **way},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.about = self._answer()

    def measure(self, workers: int, seconds: float) -> Measured:
        """Train for so long."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"workers": workers, "seconds": seconds}) + "\n")
        self._process.stdin.flush()
        found = self._answer()
        return found["images_per_s"], found["cpu_s_per_1000"]

    def end(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the training process ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes that only count, as long as the block lasts."""
    code = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
    busy = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def train_when_asked(arguments: Sequence[str]) -> None:
    """The child: a JSON line on standard input is a measurement to make, its answer a line on standard output."""
    import psutil
    import torch  # before `pillsnap.training`, which sets what OpenMP then reads
    from training_speed import BareLoop, noise_data

    from pillsnap.core.experiment import ExperimentConfig, parse_override
    from pillsnap.training.batches import train_loader

    options = _parser().parse_args(arguments)
    overrides = {
        "model.pretrained": False,
        "model.weights": None,
        "data.batch_size": 32,
        **dict(map(parse_override, options.set)),
    }
    config = ExperimentConfig.load(options.experiment, overrides)
    loop = BareLoop(config)

    def cpu_s() -> float:
        me = psutil.Process()
        times = [process.cpu_times() for process in (me, *me.children())]
        return float(sum(entry.user + entry.system for entry in times))

    with tempfile.TemporaryDirectory(prefix="shared-machine-") as folder:
        data = noise_data(config, _IMAGES, Path(folder))
        loaders = {
            workers: train_loader(data, config.with_overrides({"data.workers": workers}), cuda=False)[0]
            for workers in options.loader_workers
        }
        endless = {workers: _endless(loader) for workers, loader in loaders.items()}
        in_memory = [next(endless[options.loader_workers[0]]) for _ in range(4)]
        for _ in range(3):
            loop.step(*in_memory[0])
        print(json.dumps({"threads": torch.get_num_threads(), "backbone": config.model.backbone}), flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            batches = endless[asked["workers"]]
            loop.step(*next(batches))
            images, before, start = 0, cpu_s(), time.perf_counter()
            while time.perf_counter() - start < asked["seconds"]:
                loop.step(*next(batches))
                images += config.data.batch_size
            wall_s, used_s = time.perf_counter() - start, cpu_s() - before
            print(json.dumps({"images_per_s": images / wall_s, "cpu_s_per_1000": 1000 * used_s / images}), flush=True)


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, default=Path("experiments/demo.yaml"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the experiment; repeatable")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2], help="how many other busy processes")
    parser.add_argument("--loader-workers", type=int, nargs="+", default=[1], help="of the loader; 0: in the training")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    return parser


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--child"]:
        train_when_asked(sys.argv[2:])
        return
    options = _parser().parse_args()
    trainings = {name: Training(way, sys.argv[1:]) for name, way in WAYS.items()}
    cases = [(busy, workers) for workers in options.loader_workers for busy in options.busy]
    found: dict[tuple[str, int, int], list[Measured]] = {}
    for done in range(options.rounds):
        for busy, workers in cases:
            with busy_processes(busy):
                for name, training in trainings.items():
                    found.setdefault((name, busy, workers), []).append(training.measure(workers, options.seconds))
        print(f"round {done + 1} of {options.rounds}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    about = next(iter(trainings.values())).about
    for training in trainings.values():
        training.end()
    print(f"{about['backbone']}, {len(os.sched_getaffinity(0))} cores")
    print("images/s (CPU-seconds per 1,000 images), medians; columns: other busy processes, loader workers")
    print("| way | threads | " + " | ".join(f"{busy} busy, {workers} w" for busy, workers in cases) + " |")
    print("|---" * (2 + len(cases)) + "|")
    for name, training in trainings.items():
        cells = []
        for busy, workers in cases:
            speeds, costs = zip(*found[name, busy, workers], strict=True)
            cells.append(f"{statistics.median(speeds):.0f} ({statistics.median(costs):.1f})")
        print(f"| {name} | {training.about['threads']} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
