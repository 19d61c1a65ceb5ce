"""The page for hands on a keyboard, for ears, for small screens, for dark rooms, in Korean and in English."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from pillsnap.clients.phone import FOLDER

PILL = (FOLDER / "golden" / "pill_photo.jpg").read_bytes()
PAGE = FOLDER.parent / "serving" / "page"
FILE = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": PILL}
STATES = ("empty", "sure", "unsure", "problem", "key")


def in_state(page: Page, site: Any, stand_in: Any, state: str) -> None:
    """Brings the page into a state that a user may meet."""
    if state == "empty":
        return
    unsure = stand_in.judgement(stand_in.DOUBTFUL)
    remarks = [{"code": "small_side", "message": ""}]
    answers = {
        "sure": stand_in.answer(warnings=remarks),
        "unsure": stand_in.batch_answer(unsure | {"warnings": remarks}, unsure, unsure),
        "problem": (*stand_in.problem("deadline_exceeded", 503), {"Retry-After": "99"}),
        "key": stand_in.problem("unauthorized", 401),
    }
    site.answers.append(answers[state])
    for side in ("front", "back") if state == "unsure" else ("front",):
        page.locator(f"[data-side={side}] [data-part=file]").set_input_files([FILE])
        expect(page.locator(f"[data-side={side}]")).to_have_attribute("data-state", "photo")
    page.locator("#identify").click()
    expect(page.locator("#key" if state == "key" else ".verdict")).to_be_visible()
    for details in page.locator("details").all():
        details.evaluate("(element) => { element.open = true; }")


def each_state(page: Page, site: Any, stand_in: Any) -> Iterator[str]:
    for state in STATES:
        page.reload()
        in_state(page, site, stand_in, state)
        yield state


def tab_to(page: Page, name: str) -> None:
    """Presses Tab until the control of that name has the focus, which must be visible on the way."""
    for _ in range(30):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            """() => {
                const element = document.activeElement;
                const style = getComputedStyle(element);
                if (element === document.body) return ["", true]; // between the last control and the first
                return [element.getAttribute("aria-label") ?? element.textContent.trim(),
                        style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2];
            }"""
        )
        assert focused[1], f"no visible focus on {focused[0]!r}"
        if focused[0] == name:
            return
    raise AssertionError(f"Tab never came to {name!r}")


def test_the_whole_way_by_keyboard(visit: Any, site: Any) -> None:
    page = visit()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    tab_to(page, "Choose file: Front")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([FILE])
    identify = page.get_by_role("button", name="Identify the pill")
    expect(identify).to_be_focused()  # not lost with the button that has gone
    expect(page.get_by_role("status").first).to_contain_text("the photo is ready")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Most similar pill")).to_be_focused()
    expect(page.get_by_role("status").first).to_have_text("5 candidates have arrived.")
    tab_to(page, "About this answer")
    page.keyboard.press("Enter")
    expect(page.locator(".about dl")).to_be_visible()
    tab_to(page, "Look at the photo large: Front")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Front")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Look at the photo large: Front")).to_be_focused()
    tab_to(page, "Remove the photo: Front")
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Take photo: Front")).to_be_focused()
    assert len(site.received) == 1


@pytest.mark.parametrize(("locale", "language"), [("ko-KR", "ko"), ("ko", "ko"), ("en-GB", "en"), ("de-DE", "en")])
def test_the_language_is_that_of_the_browser(visit: Any, locale: str, language: str) -> None:
    page = visit(locale)
    expect(page.locator("html")).to_have_attribute("lang", language)
    title = {"ko": "이 알약은 무엇인가요?", "en": "Which pill is this?"}[language]
    expect(page.get_by_role("heading", level=1)).to_have_text(title)


def test_the_language_can_be_changed_at_any_time_and_is_remembered(visit: Any, site: Any, stand_in: Any) -> None:
    page = visit("ko-KR")
    in_state(page, site, stand_in, "unsure")
    expect(page.locator(".verdict h2")).to_have_text("확실하지 않습니다")
    page.get_by_role("button", name="English").click()
    expect(page.locator(".verdict h2")).to_have_text("Not sure")
    expect(page.locator("html")).to_have_attribute("lang", "en")
    expect(page.locator(".card h3").first).to_have_attribute("lang", "ko")
    expect(page).to_have_title(re.compile("find a pill"))
    expect(page.get_by_role("button", name="English")).to_have_attribute("aria-pressed", "true")
    assert not re.search("[가-힣]", page.locator("#slots").inner_text()), "Korean is left over"
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "en")


def test_both_languages_have_the_same_texts_with_the_same_values(visit: Any) -> None:
    texts = visit().evaluate("async () => (await import('/page/texts.js')).TEXTS")
    assert texts["ko"].keys() == texts["en"].keys()
    for key, korean in texts["ko"].items():
        assert sorted(re.findall(r"\{\w+\}", korean)) == sorted(re.findall(r"\{\w+\}", texts["en"][key])), key
    sources = "\n".join(path.read_text(encoding="utf-8") for path in PAGE.iterdir())
    for key in re.findall(r'\btext\("([\w.]+)"|data-(?:text|label)="([\w.]+)"', sources):
        assert (key[0] or key[1]) in texts["ko"]


OUTSIDE = """() => [...document.querySelectorAll("body *")].filter((element) => {
    const box = element.getBoundingClientRect();
    const unseen = element.closest(".for-ears, .skip, .sprite") || box.width === 0;
    return !unseen && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map((element) => element.outerHTML.slice(0, 120))"""
TOO_SMALL = """() => [...document.querySelectorAll("button")].filter((button) => {
    const box = button.getBoundingClientRect();
    return box.width > 0 && (box.height < 32 || box.width < 32);
}).map((button) => button.outerHTML)"""


@pytest.mark.parametrize("locale", ["ko-KR", "en-US"])
def test_nothing_sticks_out_at_360_pixels(visit: Any, site: Any, stand_in: Any, locale: str) -> None:
    page = visit(locale, 360, failing=True, is_mobile=True, has_touch=True)
    for state in each_state(page, site, stand_in):
        assert page.evaluate(OUTSIDE) == [], state
        assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [360, 360], state
        assert page.evaluate(TOO_SMALL) == [], f"too small for a finger when {state}"


def test_200_percent_text_fits_a_small_screen(visit: Any, site: Any, stand_in: Any) -> None:
    page = visit("en-US", 360)
    in_state(page, site, stand_in, "unsure")
    page.evaluate("document.documentElement.style.fontSize = '32px'")
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_the_structure_is_there_for_ears(visit: Any, site: Any, stand_in: Any) -> None:
    page = visit()
    in_state(page, site, stand_in, "sure")
    for role in ("banner", "main", "contentinfo", "complementary"):
        expect(page.get_by_role(role)).to_have_count(1)
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    levels = page.evaluate(
        """() => [...document.querySelectorAll("h1, h2, h3, h4")]
            .filter((heading) => heading.checkVisibility()).map((heading) => Number(heading.tagName[1]))"""
    )
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels
    assert page.locator("[aria-live=polite]").count() == 1
    assert page.locator("[aria-live=assertive]").count() == 1
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, dialog, section, video")].filter((element) => {
            const by = element.getAttribute("aria-labelledby");
            const name = element.getAttribute("aria-label") || element.textContent.trim() || element.labels?.[0];
            return by === null ? !name : document.getElementById(by) === null;
        }).map((element) => element.outerHTML)"""
    )
    assert nameless == []
    assert page.locator("img:not([alt])").count() == 0


FAINT = """() => {
    const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const over = (top, under) => under.map((value, i) => top[i] * (top[3] ?? 1) + value * (1 - (top[3] ?? 1)));
    const behind = (element) => {
        if (element === null) return [255, 255, 255];
        const colour = parse(getComputedStyle(element).backgroundColor);
        return (colour[3] ?? 1) === 1 ? colour.slice(0, 3) : over(colour, behind(element.parentElement));
    };
    const luminance = (rgb) => {
        const [r, g, b] = rgb.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const texts = [...document.querySelectorAll("body *")].filter((element) =>
        [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim() !== "") &&
        element.checkVisibility() && !element.closest(".for-ears, noscript"));
    return texts.map((element) => {
        const back = behind(element);
        const front = over(parse(getComputedStyle(element).color), back);
        const [dark, light] = [luminance(back), luminance(front)].sort((a, b) => a - b);
        return [(light + 0.05) / (dark + 0.05), element.outerHTML.slice(0, 120)];
    }).filter(([contrast]) => contrast < 4.5);
}"""
"""Texts whose contrast against what lies behind them is under 4.5."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_and_axe_finds_nothing(visit: Any, site: Any, stand_in: Any, scheme: str) -> None:
    """axe-core, where it is installed, with the rules of WCAG 2.2 AA: contrast, names, landmarks and the rest."""
    axe = importlib.util.find_spec("axe_playwright_python")
    page = visit(color_scheme=scheme, failing=True, reduced_motion="reduce")
    for state in each_state(page, site, stand_in):
        assert page.evaluate(FAINT) == [], state
        if axe is None or axe.origin is None:
            continue
        page.evaluate((Path(axe.origin).parent / "axe.min.js").read_text(encoding="utf-8"))
        tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
        broken = page.evaluate("(tags) => axe.run({ runOnly: tags })", tags)["violations"]
        assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in broken] == [], state


def test_nothing_moves_for_those_who_asked_for_that(visit: Any, site: Any) -> None:
    site.delay_s = 1
    page = visit(reduced_motion="reduce")
    page.locator("[data-side=front] [data-part=file]").set_input_files([FILE])
    expect(page.locator("[data-side=front]")).to_have_attribute("data-state", "photo")
    page.locator("#identify").click()
    expect(page.locator("#answer .spinner")).to_be_visible()
    moving = page.evaluate("document.getAnimations().length")
    assert moving == 0
    expect(page.locator(".card")).to_have_count(5)


def test_nothing_stands_inline_and_nothing_is_fetched_from_elsewhere() -> None:
    for path in PAGE.iterdir():
        content = path.read_text(encoding="utf-8")
        urls = set(re.findall(r"https?://[^\s\"')]+", content)) - {"http://www.w3.org/2000/svg"}
        assert urls == set(), path.name
        if path.suffix == ".js":
            assert not re.search(r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval)\b", content), (
                path.name
            )
        if path.suffix == ".html":
            assert not re.search(r"\s(style|on\w+)=|<style|<script(?! type=\"module\" src=)", content), path.name


def test_every_file_of_the_page_is_installed() -> None:
    pyproject = tomllib.loads((PAGE.parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = pyproject["tool"]["setuptools"]["package-data"]["pillsnap.serving"]
    assert set(PAGE.iterdir()) == {path for pattern in patterns for path in PAGE.parent.glob(pattern)}
