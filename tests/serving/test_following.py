"""The thread that keeps the slot up to date, with sources that do what sources can do."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pillsnap.core.errors import BundleError, GateRefusedError, StoreError
from pillsnap.inference.session import PillSession
from pillsnap.serving.following import Follower
from pillsnap.serving.metrics import Metrics
from pillsnap.serving.problems import ProblemError
from pillsnap.serving.slot import LoadedModel, Slot


class Source:
    """Answers what it is told to."""

    def __init__(self, *answers: LoadedModel | Exception | None, copy: Any = None) -> None:
        self.answers = list(answers)
        self.copy = copy

    def look(self, present: LoadedModel | None) -> LoadedModel | None:
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kept(self) -> LoadedModel | None:
        if isinstance(self.copy, Exception):
            raise self.copy
        return self.copy


@pytest.fixture(scope="module")
def session(bundle: Path) -> PillSession:
    return PillSession.load(bundle)


@pytest.fixture
def model(session: PillSession) -> Any:
    return lambda version, kept=False: LoadedModel(session, "pills", version, "champion", None, kept)


def follower_of(*answers: Any, copy: Any = None) -> Follower:
    return Follower(Slot(), Source(*answers, copy=copy), 3600, Metrics())


def wait_for(follower: Follower, version: str) -> None:
    end = time.monotonic() + 10
    while follower.slot.take().version != version and time.monotonic() < end:
        time.sleep(0.01)


def test_the_slot_holds_what_the_source_names(model: Any) -> None:
    follower = follower_of(model("1"), None, model("2"))
    seen = []
    for _ in range(3):
        follower.look()
        seen.append(follower.slot.take().version)
    assert seen == ["1", "1", "2"]
    text = follower.metrics.text().decode()
    assert "pillsnap_model_loads_total 2.0" in text
    assert 'version="2"' in text
    assert 'version="1"' not in text


@pytest.mark.parametrize(
    ("error", "up", "refused"),
    [
        (StoreError("away"), False, None),
        (GateRefusedError("no envelope"), True, "not_proven"),
        (BundleError("no ONNX"), True, "not_loadable"),
        (RuntimeError("a fault of ours"), False, None),
    ],
)
def test_whatever_goes_wrong_the_present_model_stays(model: Any, error: Exception, up: bool, refused: Any) -> None:
    follower = follower_of(model("1"), error)
    follower.look()
    follower.look()
    assert follower.slot.take().version == "1"
    assert (follower.standing.source_up, follower.standing.refused) == (up, refused)
    text = follower.metrics.text().decode()
    assert f"pillsnap_registry_up {float(up)}" in text
    assert f"pillsnap_champion_refused {float(refused is not None)}" in text
    follower.look()
    assert (follower.standing.source_up, follower.standing.refused) == (True, None)


def test_the_copy_answers_only_where_there_is_nothing_else(model: Any) -> None:
    follower = follower_of(StoreError("away"), model("2"), StoreError("away"), copy=model("1", kept=True))
    follower.look()
    assert (follower.slot.take().version, follower.slot.take().kept) == ("1", True)
    follower.look()
    follower.look()
    assert follower.slot.take().version == "2"


def test_where_the_champion_is_refused_at_the_start_the_copy_answers_and_the_alarm_is_up(model: Any) -> None:
    follower = follower_of(GateRefusedError("changed"), copy=model("1", kept=True))
    follower.look()
    assert (follower.slot.take().version, follower.slot.take().kept) == ("1", True)
    assert follower.standing.refused == "not_proven"


@pytest.mark.parametrize("copy", [None, BundleError("its engine is not installed")])
def test_without_a_copy_nothing_answers(model: Any, copy: Any) -> None:
    follower = follower_of(GateRefusedError("changed"), copy=copy)
    follower.look()
    with pytest.raises(ProblemError, match="not_ready"):
        follower.slot.take()


def test_the_same_trouble_is_logged_once(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    follower = follower_of(model("1"), *[StoreError("away")] * 5)
    with caplog.at_level(logging.INFO, "pillsnap"):
        for _ in range(7):
            follower.look()
    assert caplog.text.count("the present model stays: away") == 1
    assert caplog.text.count("the registry answers") == 1


def test_it_looks_again_by_itself_and_ends_when_told(model: Any) -> None:
    follower = Follower(Slot(), Source(model("1"), model("2")), 0.02, Metrics())
    follower.start()
    follower.settle()
    wait_for(follower, "2")
    assert follower.slot.take().version == "2"
    follower.stop()
    assert not follower._thread.is_alive()


def test_a_registry_that_hangs_at_the_start_holds_nobody_up(model: Any) -> None:
    """The copy answers after a moment, and the registry's model as soon as it is there."""
    answers = threading.Event()

    class Hanging(Source):
        def look(self, present: LoadedModel | None) -> LoadedModel | None:
            assert answers.wait(60)
            return super().look(present)

    follower = Follower(Slot(), Hanging(model("2"), copy=model("1", kept=True)), 3600, Metrics(), first_look_s=0.05)
    follower.start()
    follower.settle()
    try:
        assert (follower.slot.take().version, follower.slot.take().kept) == ("1", True)
        assert not follower.standing.source_up
    finally:
        answers.set()
    wait_for(follower, "2")
    assert (follower.slot.take().version, follower.standing.source_up) == ("2", True)
    follower.stop()


@pytest.mark.parametrize("copy", [PermissionError("not yours"), RuntimeError("a fault of ours")])
def test_a_copy_that_cannot_be_read_ends_no_thread(model: Any, copy: Exception) -> None:
    follower = follower_of(StoreError("away"), model("1"), copy=copy)
    follower.look()
    follower.look()
    assert follower.slot.take().version == "1"


def test_a_copy_that_is_loaded_late_does_not_replace_the_champion(model: Any) -> None:
    follower = follower_of(model("2"))

    class Late(Source):
        def kept(self) -> LoadedModel | None:
            follower.look()  # the registry answers just now
            return model("1", kept=True)

    follower.source = Late(model("2"))
    follower._stay(follower.standing, StoreError("away"))
    assert follower.slot.take().version == "2"
