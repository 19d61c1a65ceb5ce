"""Work on many pictures at once, in order, with progress, and with an end when it is interrupted.

Threads, not processes: decoding, resizing and hashing run in C without Python's lock, and threads share the
memory map that they write. Knows nothing of what is done to a picture.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import cv2

Progress = Callable[[str, int, int], None]
"""Called with the stage, how many are done, and how many there are."""
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_AHEAD = 32
"""Items per worker that wait at most, so that an interruption does not wait for all of them."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Say nothing."""


def map_in_order(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    workers: int,
    stage: str,
    progress: Progress,
    total: int | None = None,
) -> Iterator[_Result]:
    """Yield ``function(item)`` in the order of ``items``; the first exception ends it.

    Args:
        function: runs in ``workers`` threads.
        items: taken as needed, in the calling thread.
        workers: at least 1 is used.
        stage: for ``progress``.
        progress: called after each item.
        total: number of items, where ``items`` has no length.
    """
    workers = max(workers, 1)
    remaining = iter(items)
    if total is None:
        total = len(items) if isinstance(items, Collection) else 0
    progress(stage, 0, total)
    with _one_cv2_thread(), ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[_Result]] = deque(pool.submit(function, i) for i in islice(remaining, workers * _AHEAD))
        done = 0
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(remaining, 1))
                done += 1
                progress(stage, done, total)
                yield result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _one_cv2_thread() -> Iterator[None]:
    """OpenCV's own threads would only fight with the workers."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
