import errno
import threading

import pytest

from pillsnap.core.errors import DataError
from pillsnap.data.lock import only_one


def test_the_second_waits_for_the_first(tmp_path):
    order = []
    waiting = threading.Event()

    def second():
        with only_one(tmp_path / "lock", waiting.set):
            order.append("second")

    with only_one(tmp_path / "lock", lambda: order.append("waited")):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(20)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]


def test_a_folder_without_locks_is_said(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with (
        pytest.raises(DataError, match=r"cannot be locked .*another disk"),
        only_one(tmp_path / "lock", lambda: None),
    ):
        pass
    with pytest.raises(DataError, match="cannot be made"), only_one(tmp_path / "no" / "lock", lambda: None):
        pass
