"""Which run of a workspace goes on when a command is started again.

``<workspace>/runs/<run id>/run.json`` says what a run trains and whether it is finished. A run that a living process
works on is locked: the kernel ends the lock with the process, however that ends.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pillsnap.core.errors import ConfigError, DataError, PillSnapError
from pillsnap.core.file_lock import FileLock
from pillsnap.core.files import read_json, sha256_file, sha256_json, write_json

if TYPE_CHECKING:
    from pillsnap.core.experiment import ExperimentConfig
    from pillsnap.core.manifest import Manifest
    from pillsnap.tracking.run import TrackedRun

_log = logging.getLogger(__name__)
RECORD_FILE = "run.json"
CHECKPOINTS = "checkpoints"
_LOCK_FILE = ".lock"
_FORMAT = 1
RESUMABLE_TAG = "pillsnap.resumable"


@dataclass
class ResumableRun:
    """An open MLflow run with its folder, and what of its work is done."""

    tracked: TrackedRun
    folder: Path
    record: dict[str, Any] = field(repr=False)
    unfinished: str = ""
    """Why the run is not finished when the command ends well; empty: it is."""

    def note(self, **values: Any) -> None:
        """Keep something in the record."""
        self.record = {**self.record, **values}
        write_json(self.folder / RECORD_FILE, self.record)

    def once(self, step: str, made_from: str, make: Callable[[], Path]) -> Path:
        """A file that is made only where this run has not made it before, from the same source.

        Args:
            step: name in the record.
            made_from: digest of the source.
            make: makes the file, within the folder of the run.
        """
        done = self.record.get(step)
        if isinstance(done, dict) and done.get("made_from") == made_from:
            path = self.folder / str(done.get("file"))
            if path.is_file() and sha256_file(path) == done.get("sha256"):
                _log.info("%s before: %s", step, path)
                return path
        path = make()
        self.note(**{step: {"made_from": made_from, "file": path.name, "sha256": sha256_file(path)}})
        return path


@contextmanager
def resumable_run(
    command: str, config: ExperimentConfig, manifest: Manifest, workspace: Path, *, experiment: str, fresh: bool = False
) -> Iterator[ResumableRun]:
    """The unfinished run of the same command, experiment and data, or a new one.

    Args:
        command: ``train`` or ``run``.
        config: the experiment; values that change no weight may be others.
        manifest: the data set.
        workspace: where the runs lie.
        experiment: of MLflow, for a new run.
        fresh: never go on.

    Raises:
        StoreError: the tracking store cannot be reached.
        DataError: the workspace cannot be written.
    """
    from pillsnap.tracking.names import run_name
    from pillsnap.tracking.resuming import find_run, pointing_at, warn_of_other_code
    from pillsnap.tracking.run import tracked_run
    from pillsnap.training.state import material_config

    what = {"command": command, "name": config.name, "config": material_config(config), "manifest_hash": manifest.hash}
    identity = sha256_json(what)
    runs = workspace / "runs"
    with FileLock() as lock, ExitStack() as stack:
        former = None if fresh else _claim(runs, identity, lock)
        known = find_run(former.name) if former is not None else None
        if known is not None:
            warn_of_other_code(known)
            stack.enter_context(pointing_at(known))
        resume = known.info.run_id if known is not None else ""
        opened = tracked_run(run_name(config), experiment=experiment, workspace=workspace, resume=resume)
        with opened as tracked:
            folder = runs / tracked.run_id
            folder.mkdir(parents=True, exist_ok=True)
            if known is not None:
                _log.info("goes on with the unfinished run %s (--fresh starts anew)", tracked.run_id)
            else:
                if former is not None:
                    _log.warning(
                        "the tracking store no longer knows the run %s: its weights go on in a new run, %s",
                        former.name, tracked.run_id,
                    )  # fmt: skip
                    _hand_over(former, folder)
                lock.take(folder / _LOCK_FILE)
            run = ResumableRun(tracked, folder, _read_record(folder) or {})
            run.note(format=_FORMAT, identity=identity, run_id=tracked.run_id, finished=False, **what)
            tracked.set_tags({RESUMABLE_TAG: "true"})
            try:
                yield run
            except ConfigError:
                raise  # the same command would be refused again
            except BaseException as error:
                # an error before the first checkpoint would most likely come again
                if not isinstance(error, PillSnapError) or (folder / CHECKPOINTS).is_dir():
                    _log.warning("the run %s can go on: start the same command again", tracked.run_id)
                raise
            tracked.set_tags({RESUMABLE_TAG: str(bool(run.unfinished)).lower()})
        # after the end of the MLflow run: one that is killed in between is opened again, and ended
        run.note(finished=not run.unfinished)


def _hand_over(former: Path, folder: Path) -> None:
    """Give the checkpoints of a run to another one; what is left of the former is not unfinished any more."""
    if (former / CHECKPOINTS).is_dir():
        os.rename(former / CHECKPOINTS, folder / CHECKPOINTS)
    write_json(former / RECORD_FILE, {**(_read_record(former) or {}), "finished": True})


def _claim(runs: Path, identity: str, lock: FileLock) -> Path | None:
    """The folder of the newest unfinished run of this identity that nobody works on, locked."""
    with_times = []
    for path in runs.glob(f"*/{RECORD_FILE}"):
        with suppress(OSError):
            with_times.append((path.stat().st_mtime_ns, path.parent))
    for _, folder in sorted(with_times, reverse=True):
        if not _is_unfinished(folder, identity):
            continue
        if not lock.take(folder / _LOCK_FILE):
            _log.warning("another process works on the run %s of the same experiment: it is left alone", folder.name)
        elif _is_unfinished(folder, identity):  # the one that had the lock may have finished it
            return folder
        else:
            lock.release()
    return None


def _is_unfinished(folder: Path, identity: str) -> bool:
    record = _read_record(folder)
    return record is not None and record.get("identity") == identity and record.get("finished") is False


def _read_record(folder: Path) -> dict[str, Any] | None:
    try:
        record = read_json(folder / RECORD_FILE)
    except DataError:
        return None
    return record if isinstance(record, dict) and record.get("format") == _FORMAT else None
