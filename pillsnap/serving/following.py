"""A thread that keeps the slot at what the registry says: loads and warms the new model, then switches.

Fails towards what was proven: a registry that is away, a champion that does not verify, a bundle that cannot be loaded
leave the present model in place, raise an alarm in the metrics, and are looked at again.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Protocol

from pillsnap.core.errors import BundleError, PillSnapError, StoreError
from pillsnap.serving.slot import LoadedModel, Slot
from pillsnap.serving.sources import ModelSource

_log = logging.getLogger(__name__)
_PATIENCE_S = 5.0
_FIRST_LOOK_S = 5.0
"""After which a start goes on with the kept copy: a registry that hangs is tried three times, 20 s each."""


@dataclass(frozen=True)
class Standing:
    """How things stand between this server and its source."""

    source_up: bool
    refused: str | None
    """Why what the source names is not served; for the log and ``/readyz``, in one word: see `Follower`."""


class Figures(Protocol):
    """Where it is counted; see `metrics.Metrics`."""

    def loaded(self, model: LoadedModel) -> None:
        """Another model answers from now on."""

    def stands(self, *, source_up: bool, refused: bool) -> None:
        """After a look at the source."""


class Nobody:
    """`Figures` that nobody sees: of a follower whose alarms are none of the server's."""

    def loaded(self, model: LoadedModel) -> None:
        """Not counted."""

    def stands(self, *, source_up: bool, refused: bool) -> None:
        """Not counted."""


class Follower:
    """Looks at once, then every ``poll_s``, in a thread of its own.

    ``standing.refused`` is ``not_proven`` or ``not_loadable``: the whole sentence, which may name paths, is logged.
    """

    def __init__(
        self,
        slot: Slot,
        source: ModelSource,
        poll_s: float,
        metrics: Figures,
        first_look_s: float = _FIRST_LOOK_S,
        told_as: str = "",
    ) -> None:
        """``told_as`` begins what it logs, where there is another one."""
        self.slot = slot
        self.source = source
        self.poll_s = poll_s
        self.first_look_s = first_look_s
        self.metrics = metrics
        self.standing = Standing(source_up=True, refused=None)
        self._stop = threading.Event()
        self._looked = threading.Event()
        self._placing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="follow", daemon=True)
        self._said: str | None = None
        self._told_as = told_as

    def start(self) -> None:
        """Begin to look, in the background."""
        self._thread.start()

    def settle(self) -> None:
        """Wait for the first look; where it takes too long, go on with the kept copy meanwhile."""
        if not self._looked.wait(self.first_look_s):
            late = StoreError(f"there is no answer after {self.first_look_s:g} s; it is still waited for")
            self._stay(Standing(source_up=False, refused=None), late)

    def stop(self) -> None:
        """End the thread. A look that hangs at a registry which does not answer is left behind."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE_S)

    def look(self) -> None:
        """One look. Raises nothing."""
        try:
            model = self.source.look(self.slot.model)
        except StoreError as error:
            self._stay(Standing(source_up=False, refused=None), error)
            return
        except PillSnapError as error:
            word = "not_loadable" if isinstance(error, BundleError) else "not_proven"
            self._stay(Standing(source_up=True, refused=word), error)
            return
        except Exception as error:  # a thread that dies would leave an old model in place for ever, unseen
            _log.exception("looking for the model failed")
            self._stay(Standing(source_up=False, refused=None), error)
            return
        self._stand(Standing(source_up=True, refused=None), None)
        if model is not None:
            self._place(model)

    def _stay(self, standing: Standing, error: Exception) -> None:
        """With the present model; where there is none, with the last one that was proven."""
        self._stand(standing, error)
        if self.slot.model is not None:
            return
        try:
            model = self.source.kept()
        except Exception as second:  # see `look`
            _log.warning("the kept copy cannot be loaded: %s", second, exc_info=not isinstance(second, PillSnapError))
            return
        if model is not None:
            self._place(model)

    def _place(self, model: LoadedModel) -> None:
        """By one assignment, between two requests. A kept copy never takes the place of what the registry named."""
        with self._placing:
            former = self.slot.model
            if model.kept and former is not None:
                return
            self.slot.model = model
            self.metrics.loaded(model)
        was = "" if former is None else f"; before: {former.title}"
        what = "the kept copy of " if model.kept else ""
        _log.info("%sserving %s%s, sha256 %s%s", self._told_as, what, model.title, model.session.sha256[:12], was)

    def _run(self) -> None:
        self.look()
        self._looked.set()
        while not self._stop.wait(self.poll_s):
            self.look()

    def _stand(self, standing: Standing, error: Exception | None) -> None:
        self.standing = standing
        self.metrics.stands(source_up=standing.source_up, refused=standing.refused is not None)
        said = None if error is None else str(error)
        if said != self._said:
            if said is not None:
                stays = "there is no model" if self.slot.model is None else "the present model stays"
                _log.warning("%s%s: %s", self._told_as, stays, said)
            else:
                _log.info("%sthe registry answers, and its model is the one that is served", self._told_as)
        self._said = said
