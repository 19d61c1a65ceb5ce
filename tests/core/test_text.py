from __future__ import annotations

import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.core.text import one_line, shown


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("타이레놀정 500밀리그램", "타이레놀정 500밀리그램"),
        ("다솜정\r\n  1.  99.9%", "다솜정    1.  99.9%"),
        ("a\u3000\tb\u2028c ", "a\u3000 b c "),
        ("\u202e나래핀정", "나래핀정"),
        ("\u200b", ""),
        (" \u200b\t", ""),
        (unicodedata.normalize("NFD", "가온정"), unicodedata.normalize("NFD", "가온정")),
    ],
)
def test_a_name_is_one_line(text: str, line: str) -> None:
    assert one_line(text) == line


@pytest.mark.parametrize(
    ("text", "said"), [("a\x1b[31m", r"U\+001B \(character 2\)"), ("\x07", r"U\+0007"), ("\0", r"U\+0000")]
)
def test_what_a_terminal_obeys_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        one_line(text)


@given(st.text())
def test_no_name_is_more_than_a_line_or_changes_twice(text: str) -> None:
    try:
        line = one_line(text)
    except ValueError:
        return
    assert len(line.splitlines()) <= 1
    assert line == one_line(line)


def test_a_path_is_shown_readably() -> None:
    assert shown(os.fsdecode(b"a/\xb4\xdc.jpg")) == "a/\\xb4\\xdc.jpg"
    assert shown("a\n  1.  99.9%\x1b.jpg") == "a\\n  1.  99.9%\\x1b.jpg"
    assert shown("가온정.jpg") == "가온정.jpg"
