"""The challenger answers the same photos in the background, and nobody waits for it or sees it.

It takes one photo at a time in a thread of its own; photos that come meanwhile are skipped, so it costs at most one
core, and no memory.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor

from pillsnap.core.errors import PillSnapError
from pillsnap.serving.answering import Answered
from pillsnap.serving.following import Follower, Nobody
from pillsnap.serving.metrics import Metrics
from pillsnap.serving.settings import ServeSettings
from pillsnap.serving.slot import Slot
from pillsnap.serving.sources import ModelSource, RegistrySource

_log = logging.getLogger(__name__)


class Shadow:
    """Compares; with no source it does nothing."""

    def __init__(self, source: ModelSource | None, poll_s: float, metrics: Metrics) -> None:
        self.metrics = metrics
        self.slot = Slot()
        # told to nobody: an alarm of the challenger is none of the champion
        self._follower = None if source is None else Follower(self.slot, source, poll_s, Nobody(), told_as="shadow: ")
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._busy: Future[None] | None = None

    @classmethod
    def of(cls, settings: ServeSettings, metrics: Metrics) -> Shadow:
        """As the settings say. Raises ConfigError."""
        followed = settings.followed
        wanted = settings.shadow and followed is not None
        source = RegistrySource(followed[0], "challenger", settings.home, 1) if wanted and followed else None
        return cls(source, settings.poll_s, metrics)

    def start(self) -> None:
        """Begin to follow the challenger."""
        if self._follower is not None:
            self._follower.start()

    def stop(self) -> None:
        """End it."""
        if self._follower is not None:
            self._follower.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def see(self, photo: bytes, found: Answered) -> None:
        """Let the challenger answer what the champion has answered, if it is free."""
        if self._follower is None:
            return
        if self.slot.model is None:
            self.metrics.shadow.labels("no_challenger").inc()
        elif self._busy is not None and not self._busy.done():
            self.metrics.shadow.labels("skipped").inc()
        else:
            self._busy = self._pool.submit(self._compare, photo, found)

    def _compare(self, photo: bytes, found: Answered) -> None:
        model = self.slot.model
        try:
            assert model is not None
            theirs = model.session.identify(photo, 1)[0].kcode
        except PillSnapError as error:
            _log.warning("the challenger cannot answer: %s", error)
            self.metrics.shadow.labels("failed").inc()
            return
        ours = found.answer.predictions[0].kcode
        self.metrics.shadow.labels("agrees" if ours == theirs else "differs").inc()
