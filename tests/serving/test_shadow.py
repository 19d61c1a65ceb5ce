"""The challenger in the background."""

from __future__ import annotations

from typing import Any

import pytest

from pillsnap.core.errors import GateRefusedError, StoreError
from pillsnap.serving.metrics import Metrics
from pillsnap.serving.shadow import Shadow


@pytest.mark.parametrize("error", [StoreError("no challenger"), GateRefusedError("not proven")])
def test_an_alarm_of_the_challenger_is_none_of_the_champion(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    class Source:
        def look(self, present: Any) -> None:
            raise error

        def kept(self) -> None:
            return None

    told: list[Any] = []
    monkeypatch.setattr(Metrics, "stands", lambda *_, **standing: told.append(standing))
    shadow = Shadow(Source(), 3600, Metrics())
    shadow.start()
    assert shadow._follower is not None
    shadow._follower.settle()
    assert shadow._follower.standing.source_up is not isinstance(error, StoreError)
    assert told == []
    shadow.stop()
