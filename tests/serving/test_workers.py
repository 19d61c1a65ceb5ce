"""The bounded place to work."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from pillsnap.serving.problems import ProblemError
from pillsnap.serving.workers import Workers


def test_what_fits_is_done_and_told_how_long_it_waited() -> None:
    workers = Workers(1, queue=1, deadline_s=5)

    async def both() -> list[float]:
        return await asyncio.gather(workers.run(lambda waited: (time.sleep(0.05), waited)[1]), workers.run(lambda w: w))

    first, second = asyncio.run(both())
    assert first < second
    assert second >= 0.04
    workers.close()


def test_one_too_many_is_refused_at_once_and_told_when_to_come_back() -> None:
    workers = Workers(1, queue=2, deadline_s=5)
    hold = threading.Event()

    async def flood() -> list[object]:
        jobs = [asyncio.ensure_future(workers.run(lambda _: hold.wait(5))) for _ in range(5)]
        await asyncio.sleep(0.05)
        assert sum(job.done() for job in jobs) == 2  # refused, while nothing has been answered yet
        hold.set()
        return await asyncio.gather(*jobs, return_exceptions=True)

    results = asyncio.run(flood())
    refused = [result for result in results if isinstance(result, ProblemError)]
    assert [error.code for error in refused] == ["overloaded"] * 2
    assert all(int(error.headers["Retry-After"]) >= 1 for error in refused)
    assert results.count(True) == 3
    workers.close()


def test_there_is_room_again_afterwards() -> None:
    workers = Workers(1, queue=0, deadline_s=5)

    async def one_after_another() -> list[int]:
        found = []
        for number in range(20):
            found.append(await workers.run(lambda _, n=number: n))  # type: ignore[misc]
            await asyncio.sleep(0)
        return found

    assert asyncio.run(one_after_another()) == list(range(20))
    assert workers.inside <= 1
    workers.close()


def test_what_waits_too_long_is_never_begun() -> None:
    workers = Workers(1, queue=5, deadline_s=0.1)
    begun = []

    async def late() -> object:
        slow = asyncio.ensure_future(workers.run(lambda _: time.sleep(0.4)))
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(workers.run(lambda _: begun.append(1)))
        results = await asyncio.gather(slow, waiting, return_exceptions=True)
        # the thread is still busy with what nobody waits for any more: its place is not free before it ends
        assert workers.inside == 1
        await asyncio.sleep(0.5)
        assert workers.inside == 0
        return [getattr(result, "code", result) for result in results]

    assert asyncio.run(late()) == ["deadline_exceeded", "deadline_exceeded"]
    assert begun == []
    workers.close()


def test_a_fault_is_handed_on_and_frees_its_place() -> None:
    workers = Workers(1, queue=0, deadline_s=5)

    def fail(_: float) -> None:
        raise ValueError("no")

    async def twice() -> None:
        for _ in range(2):
            with pytest.raises(ValueError, match="no"):
                await workers.run(fail)
            await asyncio.sleep(0.01)
        assert workers.inside == 0

    asyncio.run(twice())
    workers.close()


def test_who_wants_to_know_hears_how_many_are_inside() -> None:
    heard: list[int] = []
    workers = Workers(1, queue=1, deadline_s=5, told=heard.append)

    async def two() -> None:
        await asyncio.gather(*(workers.run(lambda _: time.sleep(0.02)) for _ in range(2)))
        await asyncio.sleep(0.05)

    asyncio.run(two())
    assert heard == [1, 2, 1, 0]
    workers.close()
