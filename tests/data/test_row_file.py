import errno
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.core.errors import DataError
from pillsnap.data.row_file import DATA_FILE, ORIGIN_BYTES, ORIGIN_FILE, RowFile, find_rows

ROWS, ROW_BYTES = 5, 8
A, B = np.full((1, ORIGIN_BYTES), 7, np.uint8), np.full((1, ORIGIN_BYTES), 9, np.uint8)


def at(*rows):
    return np.asarray(rows, np.int64)


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_is_recorded_is_there_when_it_is_opened_again(tmp_path):
    with RowFile.create(tmp_path, ROWS, ROW_BYTES) as store:
        store.write(3, b"ABCDEFGH")
        store.write(1, b"12345678")
        store.record(at(3), A)
    for again in (RowFile.create(tmp_path, ROWS, ROW_BYTES), RowFile.open(tmp_path, ROW_BYTES)):
        with again:
            assert again.read(3) == b"ABCDEFGH"
            np.testing.assert_array_equal(again.origin_N32[3], A[0])
            assert not again.origin_N32[[0, 1, 2, 4]].any()


def test_a_row_is_on_the_disk_before_it_is_recorded(tmp_path, monkeypatch):
    seen = []
    sync = os.fdatasync

    def check(descriptor):
        sync(descriptor)
        seen.append(bool(store.origin_N32.any()))

    monkeypatch.setattr("os.fdatasync", check)
    with RowFile.create(tmp_path, ROWS, ROW_BYTES) as store:
        store.write(0, b"x" * ROW_BYTES)
        store.record(at(0), A)
        assert seen == [False]
        assert store.origin_N32[0].all()


def test_a_full_disk_is_said_and_nothing_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr("os.pwrite", full)
    monkeypatch.setattr("os.fdatasync", full)
    with RowFile.create(tmp_path, ROWS, ROW_BYTES) as store:
        for work in (lambda: store.write(0, b"x" * ROW_BYTES), lambda: store.record(at(0), A)):
            with pytest.raises(DataError, match=rf"{DATA_FILE}: cannot be written \(No space left.*start again"):
                work()
        assert not store.origin_N32.any()


def test_room_is_taken_at_once_or_given_back(tmp_path, monkeypatch):
    RowFile.create(tmp_path / ".", ROWS, ROW_BYTES).__exit__(None, None, None)
    assert (tmp_path / DATA_FILE).stat().st_blocks > 0

    def half(descriptor, start, size):
        os.ftruncate(descriptor, size // 2)
        full()

    monkeypatch.setattr("os.posix_fallocate", half)
    with pytest.raises(DataError, match="1 MiB cannot be reserved"):
        RowFile.create(tmp_path, ROWS, 2**18)
    assert (tmp_path / DATA_FILE).stat().st_size == ROWS * ROW_BYTES


def test_short_writes_go_on(tmp_path, monkeypatch):
    write = os.pwrite
    monkeypatch.setattr("os.pwrite", lambda descriptor, data, position: write(descriptor, data[:3], position))
    with RowFile.create(tmp_path, ROWS, ROW_BYTES) as store:
        store.write(2, b"ABCDEFGH")
        assert store.read(2) == b"ABCDEFGH"


def test_a_row_of_another_size_is_a_fault_of_ours(tmp_path):
    with RowFile.create(tmp_path, ROWS, ROW_BYTES) as store, pytest.raises(ValueError, match="9 bytes, not of 8"):
        store.write(0, b"x" * 9)


def test_files_that_do_not_fit_are_not_opened(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        RowFile.open(tmp_path, ROW_BYTES)
    for name, size in ((ORIGIN_FILE, ORIGIN_BYTES), (ORIGIN_FILE, 5), (DATA_FILE, ROW_BYTES), (DATA_FILE, 5)):
        RowFile.create(tmp_path, ROWS, ROW_BYTES).__exit__(None, None, None)
        os.truncate(tmp_path / name, size)
        with pytest.raises(DataError, match="do not fit together"):
            RowFile.open(tmp_path, ROW_BYTES)


def test_a_file_that_is_cut_off_meanwhile_is_no_row(tmp_path):
    RowFile.create(tmp_path, ROWS, ROW_BYTES).__exit__(None, None, None)
    with RowFile.open(tmp_path, ROW_BYTES) as store:
        os.truncate(tmp_path / DATA_FILE, ROW_BYTES)
        with pytest.raises(DataError, match="was cut off"):
            store.read(4)


# Few different heads and tails, so that heads collide where the whole does not.
_origins = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2)).map(lambda pair: bytes([pair[0]] * 8 + [pair[1]] * 24)), max_size=9
).map(lambda rows: np.frombuffer(b"".join(rows), np.uint8).reshape(-1, ORIGIN_BYTES))


@given(_origins, _origins)
def test_found_rows_are_the_same_and_zeros_are_not_found(wanted, offered):
    for origin, row in zip(wanted, find_rows(wanted, offered), strict=True):
        if row >= 0:
            np.testing.assert_array_equal(offered[row], origin)
            assert origin.any()


@given(st.permutations(range(20)), st.integers(0, 20))
def test_every_row_that_is_offered_is_found(order, count):
    offered = np.random.default_rng(0).integers(1, 256, (20, ORIGIN_BYTES), np.uint8)[order]
    found = find_rows(offered[:count], offered)
    np.testing.assert_array_equal(found, np.arange(count))
    np.testing.assert_array_equal(find_rows(offered, offered[:count]), [*range(count), *[-1] * (20 - count)])
