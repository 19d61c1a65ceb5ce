"""What a run has logged, on its way to the store: written down first, sent by a thread, kept until it has arrived.

Whoever logs waits for one line on the local disk, never for the store. A store that does not answer is tried again
with growing pauses; what it has not taken when the run ends is sent by `Outbox.send` of a later process.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from mlflow.tracking import MlflowClient

from pillsnap.tracking.delivery import RefusedError, deliver, joined
from pillsnap.tracking.journal import Entry, Journal, Placed
from pillsnap.tracking.store import first_line

_log = logging.getLogger(__name__)
OUTBOX = "outbox"
REFUSED_FILE = "refused.jsonl"
_FILES = "files"
_AT_ONCE = 500  # entries that are looked at together
_PACE_S = 1.0
"""How often the thread looks: figures of one second share one call."""
_LONGEST_PAUSE_S = 30.0


class Outbox:
    """The outbox of one run. `start` sends in the background, `send` here and now; both until `close`."""

    def __init__(self, folder: Path, run_id: str, connect: Callable[[], MlflowClient], wait_s: float = 0.0) -> None:
        """Open a run's outbox, or go on with it.

        Args:
            folder: of the outbox.
            run_id: the run.
            connect: makes a client of the store; called when something is sent.
            wait_s: how long to wait for another process that has it open.

        Raises:
            StoreError: another process has it open.
        """
        self.folder = folder
        self._run_id = run_id
        self._connect = connect
        self._client: MlflowClient | None = None
        self._journal = Journal(folder, wait_s)
        self._sending = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._files = sum(1 for _ in (folder / _FILES).glob("*"))
        self.last_error: Exception | None = None
        """Why the store did not take what was sent last; None where it did."""
        self.refused = 0

    def entries(self) -> Iterator[Entry]:
        """Everything that the run has ever logged."""
        return (placed.entry for placed in self._journal.entries())

    def post(self, entry: Entry) -> None:
        """Write down what is to be sent. Raises OSError where the disk does not take it."""
        self._journal.add(entry)

    def keep(self, path: Path) -> str:
        """A copy of a file or folder as it is now (a hard link where that is possible); its name in the outbox."""
        self._files += 1
        kept = self.folder / _FILES / str(self._files) / path.name
        kept.parent.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, kept, copy_function=_link_or_copy)
        else:
            _link_or_copy(str(path), str(kept))
        return str(kept.relative_to(self.folder))

    def keep_text(self, text: str, name: str) -> str:
        """A text as a file; its name in the outbox."""
        self._files += 1
        kept = self.folder / _FILES / str(self._files) / name
        kept.parent.mkdir(parents=True)
        kept.write_text(text, encoding="utf-8")
        return str(kept.relative_to(self.folder))

    @property
    def is_all_sent(self) -> bool:
        """Nothing waits."""
        return self._journal.is_all_sent

    def waiting(self) -> int:
        """How many entries wait."""
        return sum(1 for _ in self._journal.entries(self._journal.sent))

    def start(self) -> None:
        """Send in the background from now on."""
        self._thread = threading.Thread(target=self._send_in_background, daemon=True, name=f"outbox-{self._run_id}")
        self._thread.start()

    def send(self) -> bool:
        """Send what waits, now. False where the store does not take it; it is kept."""
        with self._sending:
            try:
                self._send_all()
            except Exception as error:  # the clients of stores raise many kinds; all mean: not now
                self._note_outage(error)
                return False
            if self.last_error is not None:
                _log.info("the MLflow store answers again; everything that was kept has been sent")
            self.last_error = None
            return True

    def close(self) -> bool:
        """End the thread, send what waits, and close. Returns whether everything has arrived."""
        try:
            self._end_thread()
            all_sent = self.send()
            if all_sent:
                shutil.rmtree(self.folder / _FILES, ignore_errors=True)
            return all_sent
        finally:
            self._journal.close()

    def _end_thread(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _send_in_background(self) -> None:
        pause_s = _PACE_S
        while not self._stop.wait(pause_s):
            pause_s = _PACE_S if self.send() else min(2 * pause_s, _LONGEST_PAUSE_S)

    def _send_all(self) -> None:
        while not self._journal.is_all_sent:
            placed = list(islice(self._journal.entries(self._journal.sent), _AT_ONCE))
            if not placed:  # what is left are damaged lines
                return
            self._send_some(placed)

    def _send_some(self, placed: list[Placed]) -> None:
        if self._client is None:
            self._client = self._connect()
        done = 0
        for entry, count in joined(item.entry for item in placed):
            try:
                deliver(self._client, self._run_id, entry, self.folder)
            except RefusedError as error:
                self._put_aside(entry, error)
            done += count
            self._journal.mark_sent(placed[done - 1].end)

    def _put_aside(self, entry: Entry, error: RefusedError) -> None:
        """An entry that will never be taken must not hold up the others."""
        self.refused += 1
        path = self.folder / REFUSED_FILE
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"error": str(error), "entry": entry}, ensure_ascii=False) + "\n")
        _log.warning("the MLflow store refuses what the run logs as %s (%s); kept in %s", entry["kind"], error, path)

    def _note_outage(self, error: Exception) -> None:
        if self.last_error is None and not self._stop.is_set():
            _log.warning(
                "the MLflow store does not take what the run logs (%s); the work goes on, it is kept in %s and sent "
                "when the store answers again", first_line(error)[:200], self.folder,
            )  # fmt: skip
        self.last_error = error


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)  # files are replaced, never written into: the link stays what it was
    except OSError:
        shutil.copy2(source, target)
    return target
