"""TensorBoard's event files: the same points that MLflow gets. Knows nothing of MLflow; needs no torch.

TensorBoard keeps 32-bit floats. A run that goes on starts a new file, which tells TensorBoard to forget the former
ones and then says all their points again: a killed process may not have written its last ones.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

_log = logging.getLogger(__name__)
Point = tuple[str, float, int, int]
"""Key, value, time (ms since 1970), step."""
_FLUSH_S = 5


class EventFiles:
    """The event files of one run, as TensorBoard's ``--logdir`` finds them."""

    def __init__(self, folder: Path, earlier: Iterable[Point] = ()) -> None:
        """Start a file.

        Args:
            folder: of the event files.
            earlier: the points that the run has already: they stand for the files that are there.
        """
        points = list(earlier)
        if points:
            _let_the_next_be_newest(folder)
        self._writer: EventFileWriter | None = EventFileWriter(str(folder), flush_secs=_FLUSH_S)
        if points:  # forget what was read from the former files
            self._writer.add_event(Event(step=0, session_log=SessionLog(status=SessionLog.START)))
        self.add(points)

    def add(self, points: Iterable[Point]) -> None:
        """Write points. A disk that does not take them costs TensorBoard's picture, nothing else."""
        if self._writer is None:
            return
        try:
            for key, value, time_ms, step in points:
                summary = Summary(value=[Summary.Value(tag=key, simple_value=value)])
                self._writer.add_event(Event(wall_time=time_ms / 1000, step=step, summary=summary))
        except OSError as error:
            _log.warning("TensorBoard's event file cannot be written (%s); MLflow has the figures", error)
            self._writer = None

    def close(self) -> None:
        """Write the rest."""
        if self._writer is None:
            return
        try:
            self._writer.close()
        except OSError as error:
            _log.warning("TensorBoard's event file cannot be written (%s); MLflow has the figures", error)
        self._writer = None


def _let_the_next_be_newest(folder: Path) -> None:
    """TensorBoard reads files in the order of the seconds in their names: no two may share one."""
    former = list(folder.glob("events.out.tfevents.*"))
    newest = max((int(path.name.split(".")[3]) for path in former), default=0)
    if newest > time.time() + 2:  # the clock was set back
        for path in former:
            path.unlink(missing_ok=True)
        return
    while newest >= int(time.time()):
        time.sleep(0.05)
