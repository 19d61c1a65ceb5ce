"""Nothing that was added is lost, whatever ends the process; nothing that was not added appears."""

from __future__ import annotations

import json
import math
import os
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.tracking.journal import JOURNAL_FILE, Journal, is_waiting

ENTRY = st.fixed_dictionaries({"kind": st.text(), "values": st.dictionaries(st.text(), st.floats(allow_nan=False))})


def read(folder: Path) -> list[dict[str, object]]:
    journal = Journal(folder)
    try:
        return [placed.entry for placed in journal.entries()]
    finally:
        journal.close()


@given(entries=st.lists(ENTRY, max_size=5), cut=st.integers(0, 400))
def test_a_torn_last_line_is_cut_off_and_the_journal_goes_on(entries: list[dict[str, object]], cut: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        journal = Journal(folder)
        for entry in entries:
            journal.add(entry)
        journal.close()
        path = folder / JOURNAL_FILE
        data = path.read_bytes()
        whole = data[: len(data) - min(cut, len(data))]
        path.write_bytes(whole)  # as much as a killed process may have written
        kept = entries[: whole.count(b"\n")]
        assert read(folder) == kept
        journal = Journal(folder)
        journal.add({"kind": "next"})
        journal.close()
        assert read(folder) == [*kept, {"kind": "next"}]


def test_what_was_sent_is_remembered(tmp_path: Path) -> None:
    assert not is_waiting(tmp_path)
    journal = Journal(tmp_path)
    for number in range(3):
        journal.add({"kind": "n", "n": number, "nan": math.nan})
    first, second, _ = journal.entries()
    assert second.entry["n"] == 1
    assert math.isnan(second.entry["nan"])
    journal.mark_sent(first.end)
    journal.close()
    journal = Journal(tmp_path)
    assert [placed.entry["n"] for placed in journal.entries(journal.sent)] == [1, 2]
    assert is_waiting(tmp_path)
    journal.mark_sent(list(journal.entries())[-1].end)
    assert (journal.is_all_sent, is_waiting(tmp_path)) == (True, False)
    journal.close()


def test_a_mark_beyond_the_end_or_without_sense(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add({"kind": "a"})
    journal.close()
    for text, waits in (("999", False), ("", True), ("x", True)):
        (tmp_path / "sent").write_text(text)
        journal = Journal(tmp_path)
        assert journal.is_all_sent is not waits
        journal.close()


def test_a_damaged_line_in_the_middle_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [b'{"kind": "a"}', b"\x00\xff rubbish", b"[1]", b'{"kind": "b"}']
    (tmp_path / JOURNAL_FILE).write_bytes(b"".join(line + b"\n" for line in lines))
    assert [entry["kind"] for entry in read(tmp_path)] == ["a", "b"]
    assert caplog.text.count("is damaged and is passed over") == 2


def test_a_write_that_fails_half_way_leaves_the_journal_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    journal.add({"kind": "a"})
    real, calls = os.write, []

    def half(file: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) > 1:
            raise OSError("No space left on device")
        return real(file, data[:5])

    with monkeypatch.context() as full:
        full.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space"):
            journal.add({"kind": "b"})
    journal.add({"kind": "c"})
    journal.close()
    assert [entry["kind"] for entry in read(tmp_path)] == ["a", "c"]


def test_a_journal_that_cannot_be_opened_is_held_by_nobody(tmp_path: Path) -> None:
    """It was locked for the rest of the process's life: a second try said that another process is at work."""
    for name in (JOURNAL_FILE, "sent"):
        folder = tmp_path / name
        (folder / name).mkdir(parents=True)
        open_before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(IsADirectoryError):
            Journal(folder)
        assert len(os.listdir("/proc/self/fd")) == open_before
        (folder / name).rmdir()
        Journal(folder).close()


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    workers = [
        threading.Thread(target=lambda n=n: [journal.add({"kind": "n", "n": n, "i": i}) for i in range(100)])
        for n in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    journal.close()
    lines = [json.loads(line) for line in (tmp_path / JOURNAL_FILE).read_text().splitlines()]
    for n in range(4):
        assert [line["i"] for line in lines if line["n"] == n] == list(range(100))
