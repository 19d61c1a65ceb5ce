"""What is counted, for Prometheus. With several worker processes the counts of all are summed by its files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

from pillsnap.core.errors import ConfigError
from pillsnap.serving.slot import LoadedModel

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Metrics:
    """The figures of one process."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter(
            "pillsnap_requests", "Answered requests", ["route", "status", "code"], registry=registry
        )
        self.request_seconds = Histogram(
            "pillsnap_request_seconds", "From the last byte in to the last byte out", ["route"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.stage_seconds = Histogram(
            "pillsnap_stage_seconds", "Of one photo, by stage", ["stage"], buckets=_SECONDS, registry=registry
        )
        self.confidence = Histogram(
            "pillsnap_confidence", "Of the first answer: a drift shows here first", buckets=_SHARES, registry=registry
        )
        self.unsure = Counter("pillsnap_unsure", "Answers that are called not sure", registry=registry)
        self.remarks = Counter("pillsnap_photo_warnings", "Remarks of the validator", ["code"], registry=registry)
        self.waiting = Gauge(
            "pillsnap_inside", "Requests that wait or are worked on", registry=registry, multiprocess_mode="livesum"
        )
        self.loads = Counter("pillsnap_model_loads", "Models put in place since the start", registry=registry)
        self.model = Gauge(
            "pillsnap_model_info", "1 for the model that answers", ["name", "version", "sha256", "kept"],
            registry=registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self.source_up = Gauge(
            "pillsnap_registry_up", "0: the registry does not answer or names no model", registry=registry,
            multiprocess_mode="livemin",
        )  # fmt: skip
        self.refused = Gauge(
            "pillsnap_champion_refused", "ALARM when 1: the registry names a model that has not proven itself",
            registry=registry, multiprocess_mode="livemax",
        )  # fmt: skip
        self.shadow = Counter(
            "pillsnap_shadow", "Photos that the challenger answered too", ["outcome"], registry=registry
        )
        self._shown: tuple[str, ...] | None = None
        if MULTIPROCESS in os.environ:
            _take_room(Path(os.environ[MULTIPROCESS]))

    def loaded(self, model: LoadedModel) -> None:
        """Another model answers from now on."""
        if self._shown is not None:
            if MULTIPROCESS in os.environ:
                self.model.labels(*self._shown).set(0)
            else:
                self.model.remove(*self._shown)
        self._shown = (model.name, model.version or "", model.session.sha256, "yes" if model.kept else "no")
        self.model.labels(*self._shown).set(1)
        self.loads.inc()

    def stands(self, *, source_up: bool, refused: bool) -> None:
        """After a look at the registry."""
        self.source_up.set(int(source_up))
        self.refused.set(int(refused))

    def answered(self, stages_ms: Mapping[str, float], confidence: float, unsure: bool, remarks: list[str]) -> None:
        """One photo was answered."""
        for stage, time_ms in stages_ms.items():
            self.stage_seconds.labels(stage).observe(time_ms / 1000)
        self.confidence.observe(confidence)
        if unsure:
            self.unsure.inc()
        for code in remarks:
            self.remarks.labels(code).inc()

    def text(self) -> bytes:
        """In Prometheus' text format."""
        if MULTIPROCESS not in os.environ:
            return generate_latest(self._registry)
        _forget_the_dead(Path(os.environ[MULTIPROCESS]))
        together = CollectorRegistry()
        multiprocess.MultiProcessCollector(together)
        return generate_latest(together)


def _take_room(folder: Path) -> None:
    """Make the disk give what this process's files of counters are long; they are made full of holes.

    A count that finds no room for its page would end the process without a word (SIGBUS).
    """
    for path in folder.glob(f"*_{os.getpid()}.db"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                raise ConfigError(
                    f"{folder}: no room for the counters of a worker ({error.strerror}); make room, or name another "
                    "folder for temporary files in TMPDIR"
                ) from error


def _forget_the_dead(folder: Path) -> None:
    """A worker that was killed would leave its alarm, or the end of one, for as long as the server runs."""
    for process_id in {int(file.stem.rpartition("_")[2]) for file in folder.glob("gauge_live*_*.db")}:
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            multiprocess.mark_process_dead(process_id, str(folder))
        except PermissionError:
            pass  # somebody else's by now; ours would let us
