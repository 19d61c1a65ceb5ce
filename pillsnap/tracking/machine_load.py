"""How busy the machine is while a run works, as MLflow's system metrics.

MLflow's own monitors measure, under the names that its UI shows as "System metrics", and nvidia-smi asks the cards
(MLflow's monitor of them needs one more package). MLflow's thread is not used: what that cannot send is lost.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

from pillsnap.tracking.origin import query_gpus
from pillsnap.tracking.run import TrackedRun

_log = logging.getLogger(__name__)
PREFIX = "system/"
_EVERY_S = 10.0
_FIRST_AFTER_S = 1.0
"""A short run has a figure too."""


@contextmanager
def machine_load(run: TrackedRun, every_s: float = _EVERY_S) -> Iterator[None]:
    """Measure in a thread for as long as the block lasts. A figure's step counts ``every_s`` since the run's start."""
    stop = threading.Event()
    thread = threading.Thread(target=_measure, args=(run, every_s, stop), daemon=True, name="machine-load")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _measure(run: TrackedRun, every_s: float, stop: threading.Event) -> None:
    monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        _figures(monitors)  # the processor's first figure is since nothing
        pause_s = min(every_s, _FIRST_AFTER_S)
        while not stop.wait(pause_s):
            step = int((time.time() - run.started_ms / 1000) / every_s)
            run.log_metrics({PREFIX + name: value for name, value in _figures(monitors).items()}, step)
            pause_s = every_s
    except Exception as error:  # the edge of a thread that must never end a training
        _log.warning("the machine's load is not logged any more (%s: %s)", type(error).__name__, error)


def _figures(monitors: list[BaseMetricsMonitor]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        figures.update(monitor.aggregate_metrics())
        monitor.clear_metrics()
    return figures | gpu_figures(query_gpus("utilization.gpu,memory.used,memory.total,power.draw"))


def gpu_figures(lines: list[str]) -> dict[str, float]:
    """The figures of each card, under MLflow's names, from nvidia-smi's percent, MiB, MiB and watts."""
    figures: dict[str, float] = {}
    for number, line in enumerate(lines):
        busy, used_mib, total_mib, watts = (_number(text) for text in line.split(","))
        figures |= {
            f"gpu_{number}_utilization_percentage": busy,
            f"gpu_{number}_memory_usage_megabytes": used_mib * 1.048576,
            f"gpu_{number}_memory_usage_percentage": 100 * used_mib / total_mib,
            f"gpu_{number}_power_usage_watts": watts,
        }
    return {name: round(value, 1) for name, value in figures.items() if not math.isnan(value)}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan  # "[N/A]": this card does not say
