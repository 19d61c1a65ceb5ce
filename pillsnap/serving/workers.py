"""A bounded place to work: a few threads, a short queue, a deadline. What does not fit is refused at once.

A queue that may grow answers everybody late; a bounded one answers most in time and tells the others when to come back.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from pillsnap.serving.problems import ProblemError

T = TypeVar("T")
_SMOOTHING = 0.1


class Workers:
    """Runs work in threads, for one event loop."""

    def __init__(
        self, concurrency: int, queue: int, deadline_s: float, told: Callable[[int], object] = lambda _: None
    ) -> None:
        """``told`` hears how many jobs are inside, whenever that changes."""
        self.concurrency = concurrency
        self.queue = queue
        self.deadline_s = deadline_s
        self.inside = 0
        """Jobs that wait or are worked on."""
        self._told = told
        self._usual_s = 0.05
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="answer")

    async def run(self, work: Callable[[float], T]) -> T:
        """Do ``work(seconds that it waited)`` in a thread.

        Raises:
            ProblemError: ``overloaded`` where the queue is full, ``deadline_exceeded`` where the time is over before
                it is done. What has not begun by then is never begun.
        """
        if self.inside >= self.concurrency + self.queue:
            raise ProblemError("overloaded", {"Retry-After": str(self.retry_after_s)})
        self._count(1)
        loop = asyncio.get_running_loop()
        asked = time.monotonic()
        job = self._pool.submit(partial(self._in_time, work, asked))
        job.add_done_callback(lambda done: self._left(loop, done))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(job), self.deadline_s)
        except TimeoutError:
            raise ProblemError("deadline_exceeded", {"Retry-After": str(self.retry_after_s)}) from None

    @property
    def retry_after_s(self) -> int:
        """Whole seconds after which the queue should have room."""
        return max(1, math.ceil(self.inside * self._usual_s / self.concurrency))

    def close(self) -> None:
        """Let what is being worked on end; what waits is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _in_time(self, work: Callable[[float], T], asked: float) -> T:
        began = time.monotonic()
        if began - asked > self.deadline_s:
            raise TimeoutError
        result = work(began - asked)
        self._usual_s += _SMOOTHING * (time.monotonic() - began - self._usual_s)
        return result

    def _left(self, loop: asyncio.AbstractEventLoop, done: Future[T]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._count, -1)

    def _count(self, change: int) -> None:
        self.inside += change
        self._told(self.inside)
