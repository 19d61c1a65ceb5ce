import threading
import time

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


def test_items_are_taken_as_needed():
    taken = []

    def items():
        for item in range(10_000):
            taken.append(item)
            yield item

    totals = set()
    results = map_in_order(abs, items(), 2, "work", lambda stage, done, total: totals.add(total), total=10_000)
    assert next(results) == 0
    assert len(taken) < 100
    for done, _ in enumerate(results, start=2):
        assert len(taken) < done + 100
    assert len(taken) == 10_000
    assert totals == {10_000}


def test_an_error_of_the_items_themselves_ends_it():
    def items():
        yield 1
        raise OSError("cannot be listed")

    with pytest.raises(OSError, match="cannot be listed"):
        list(map_in_order(abs, items(), 2, "work", no_progress))


def test_one_that_is_left_early_leaves_no_thread():
    done = []

    def work(item):
        if item:
            time.sleep(0.01)
        done.append(item)

    threads = threading.active_count()
    results = map_in_order(work, list(range(100_000)), 2, "work", no_progress)
    next(results)
    results.close()
    assert threading.active_count() == threads
    assert len(done) < 40  # of the 64 that wait


def test_opencv_does_not_fight_with_the_workers():
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        assert set(map_in_order(lambda _: cv2.getNumThreads(), range(9), 2, "work", no_progress)) == {1}
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)


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
