import errno
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.core.errors import DataError
from pillsnap.core.files import (
    canonical_json,
    read_json,
    sha256_bytes,
    sha256_file,
    sha256_json,
    write_json,
    writing_beside,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_canonical_json_is_the_same_value(value):
    assert json.loads(canonical_json(value)) == value


@given(st.dictionaries(st.text(), st.integers()))
def test_the_order_of_keys_does_not_matter(value):
    assert sha256_json(dict(reversed(value.items()))) == sha256_json(value)


def test_nan_is_refused():
    with pytest.raises(ValueError):
        canonical_json({"x": float("nan")})


def test_digests(tmp_path):
    (tmp_path / "a").write_bytes(b"pill")
    assert sha256_file(tmp_path / "a") == sha256_bytes(b"pill") == hashlib.sha256(b"pill").hexdigest()
    with pytest.raises(DataError, match="cannot be read"):
        sha256_file(tmp_path / "none")


def test_json_survives_and_korean_stays_readable(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"이름": ["정제", 1.5, None]})
    assert read_json(path) == {"이름": ["정제", 1.5, None]}
    assert "정제" in path.read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_former_file_and_no_leftover(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(ValueError):
        write_json(path, float("nan"))
    with pytest.raises(UnicodeEncodeError), writing_beside(path) as temporary:
        temporary.write_text("half\ud800", encoding="utf-8")
    assert read_json(path) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_names_the_file(tmp_path):
    """Neither a write to an open file nor the libraries that make one say which file it was."""
    for error in (OSError(errno.ENOSPC, "No space left on device"), OSError("Error writing bytes to file")):
        with pytest.raises(OSError, match=r"a\.parquet") as caught, writing_beside(tmp_path / "a.parquet"):
            raise error
        assert caught.value.filename == str(tmp_path / "a.parquet")
    with pytest.raises(OSError, match="other"), writing_beside(tmp_path / "a.parquet"):
        (tmp_path / "other").read_text()


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_unreadable_json_names_the_file(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json: is not readable JSON"):
        read_json(tmp_path / "a.json")


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + '{"이름": 1}'.encode())
    assert read_json(tmp_path / "a.json") == {"이름": 1}


def test_a_key_twice_is_seen_where_asked_for(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"outer": {"name": "x", "a": 1, "a": 2}}')
    assert read_json(path) == {"outer": {"name": "x", "a": 2}}
    with pytest.raises(DataError, match=r"a\.json: the key 'a' stands twice in the object that starts .*\"x\""):
        read_json(path, unique_keys=True)
