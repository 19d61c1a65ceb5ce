"""The texts: complete in both languages, and without anything of the server's inside."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pillsnap.clients
import pillsnap.serving
from pillsnap.core.image_codes import Refusal, Remark
from pillsnap.serving.problems import KINDS, Language, ProblemError, image_problem, language_of

_OURS = {Refusal.UNREADABLE, Refusal.WRONG_PIXELS, Refusal.EMPTY_BATCH, Refusal.BAD_BOX}
"""Never a client's doing."""


@pytest.mark.parametrize("code", sorted(set(Refusal) - _OURS))
def test_every_refusal_of_a_picture_has_a_text(code: str) -> None:
    assert code in KINDS
    assert image_problem(code).code == code


def test_the_page_has_a_text_in_both_languages_for_every_remark_and_every_refusal_of_its_client() -> None:
    texts = (Path(pillsnap.serving.__file__).parent / "page" / "texts.js").read_text(encoding="utf-8")
    client = (Path(pillsnap.clients.__file__).parent / "pillsnap_client.js").read_text(encoding="utf-8")
    codes = re.findall(r'PhotoError\(\s*"([a-z_]+)"', client)
    assert {"heic", "truncated"} <= set(codes)
    keys = [f"problem.{code}" for code in {*codes, "rare_jpeg", "no_pixel_data"}]
    for key in (*(f"warning.{code}" for code in Remark), *keys, *(f"{key}.next" for key in keys)):
        found = re.findall(rf'"{re.escape(key)}": "(.+)"', texts)
        assert [bool(re.search("[가-힣]", text)) for text in found] == [True, False], key


@pytest.mark.parametrize("language", ["ko", "en"])
def test_what_a_phone_writes_is_refused_with_what_to_set_there(language: Language) -> None:
    detail = ProblemError("heic").problem(language, "1").detail
    setting = {"en": "Settings > Camera > Formats > Most Compatible", "ko": "설정 > 카메라 > 포맷 > 높은 호환성"}
    assert f"iPhone: {setting[language]}" in detail
    assert "Android: " in detail


def test_a_code_that_is_not_known_is_still_an_answer() -> None:
    assert image_problem("something new").code == "undecodable"


@pytest.mark.parametrize("code", sorted(KINDS))
def test_both_languages_say_something(code: str) -> None:
    kind = KINDS[code]
    assert re.search("[가-힣]", kind.ko.title)
    assert re.search("[가-힣]", kind.ko.detail)
    assert not re.search("[가-힣]", kind.en.title + kind.en.detail)
    assert 400 <= kind.status < 600
    english, korean = (ProblemError(code).problem(language, "1") for language in ("en", "ko"))
    assert english.code == korean.code == code
    assert english.title != korean.title


@pytest.mark.parametrize(
    ("header", "language"),
    [
        (None, "en"),
        ("", "en"),
        ("*", "en"),
        ("ko-KR,ko;q=0.9,en-US;q=0.8", "ko"),
        ("en;q=0.2, ko;q=0.3", "ko"),
        ("de, fr", "en"),
        ("ko;q=0", "en"),
        ("ko;q=nan", "en"),
        ("KO", "ko"),
        ("EN;Q=0.1,KO;Q=0.9", "ko"),
        ("ko;q=0.8, *", "en"),
        ("ko, *;q=0.5", "ko"),
        ("en;q=0, *", "ko"),
        ("ko;level=1", "en"),
    ],
)
def test_language(header: str | None, language: str) -> None:
    assert language_of(header) == language


@given(st.text())
def test_no_header_breaks_it(header: str) -> None:
    assert language_of(header) in ("ko", "en")
