import threading

import cv2
import pytest

from pillsnap.data.parallel import map_in_order, no_progress


def test_results_come_in_order():
    states = []
    items = list(range(500))
    got = list(map_in_order(lambda x: x * x, items, 3, "squares", lambda *state: states.append(state)))
    assert got == [x * x for x in items]
    assert states[0] == ("squares", 0, 500)
    assert states[-1] == ("squares", 500, 500)


def test_nothing_to_do():
    assert list(map_in_order(str, [], 2, "none", no_progress)) == []


def test_the_first_exception_ends_it_and_leaves_no_thread():
    done = []

    def work(item):
        if item == 5:
            raise RuntimeError("five")
        done.append(item)

    threads, cv2_threads = threading.active_count(), cv2.getNumThreads()
    with pytest.raises(RuntimeError, match="five"):
        list(map_in_order(work, list(range(100_000)), 2, "work", no_progress))
    assert len(done) < 1000
    assert threading.active_count() == threads
    assert cv2.getNumThreads() == cv2_threads
