"""What the page says, and does, when something is wrong: with the photo, the server, the key, or the contract."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from pillsnap.clients.phone import FOLDER

PILL = (FOLDER / "golden" / "pill_photo.jpg").read_bytes()
BUSY = {"Retry-After": "1"}


def give(page: Page, photo: bytes = PILL, side: str = "front") -> None:
    file = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": photo}
    page.locator(f"[data-side={side}] [data-part=file]").set_input_files([file])


def ready(page: Page) -> None:
    give(page)
    expect(page.locator("[data-side=front]")).to_have_attribute("data-state", "photo")


@pytest.fixture
def asked(visit: Callable[..., Page]) -> Page:
    """The page with a photo, of someone who expects failures."""
    page = visit(failing=True)
    ready(page)
    return page


@pytest.mark.parametrize(
    ("photo", "said"),
    [
        (b"", "The file is empty"),
        (b"no picture", "This kind of picture is not supported"),
        (PILL.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x63"), "The file cannot be read as a photo"),
        (PILL[: len(PILL) // 2], "The photo is cut off"),
    ],
    ids=["empty", "unsupported", "undecodable", "truncated"],
)
def test_a_file_that_is_no_photo_is_named_where_it_was_given(visit: Any, site: Any, photo: bytes, said: str) -> None:
    page = visit()
    give(page, photo)
    problem = page.locator("[data-side=front] [data-part=problem]")
    expect(problem).to_contain_text(said)
    expect(page.locator("#say-now")).to_contain_text(said)
    page.get_by_role("button", name="한국어").click()
    expect(problem).not_to_contain_text(said)
    assert site.received == []


def test_a_browser_that_disturbs_pixels_is_named(visit: Any, site: Any) -> None:
    page = visit()
    page.evaluate(
        """() => {
          const read = OffscreenCanvasRenderingContext2D.prototype.getImageData;
          OffscreenCanvasRenderingContext2D.prototype.getImageData = function (...area) {
            const image = read.apply(this, area);
            return new ImageData(image.data.map((_, i) => (i * 7) % 256), image.width, image.height);
          };
        }"""
    )
    give(page)
    problem = page.locator("[data-side=front] [data-part=problem]")
    expect(problem).to_contain_text("This browser changes the pixels of photos")
    page.get_by_role("button", name="한국어").click()
    expect(problem).to_contain_text("화소를 바꿉니다")
    assert site.received == []


def test_asking_without_a_photo_leads_to_the_photo(visit: Any, site: Any) -> None:
    page = visit()
    page.locator("#identify").click()
    expect(page.locator("#say-now")).to_have_text("First add a photo of the pill.")
    expect(page.get_by_role("button", name="Take photo: Front")).to_be_focused()
    assert site.received == []


def test_a_problem_is_told_in_the_language_of_the_page_with_what_to_do(asked: Page, site: Any, stand_in: Any) -> None:
    site.answers.append(stand_in.problem("too_many_pixels", 413))
    asked.locator("#identify").click()
    verdict = asked.locator(".verdict")
    expect(verdict.get_by_role("heading", name="The photo has too many pixels")).to_be_focused()
    expect(verdict).to_contain_text("choose a smaller photo")
    expect(verdict).to_contain_text("Reference 7f3a91")
    expect(verdict).to_contain_text("detail of too_many_pixels")
    expect(asked.locator("#retry")).to_have_count(0)  # the same photo would fail again
    assert site.received[0].headers["accept-language"] == "en"
    asked.get_by_role("button", name="한국어").click()
    expect(verdict).to_contain_text("사진의 화소 수가 너무 많습니다")
    expect(verdict).not_to_contain_text("detail of")  # that was English


def test_a_problem_without_a_known_code_shows_the_server_s_words_as_text(asked: Page, site: Any, stand_in: Any) -> None:
    site.answers.append(stand_in.problem("brand_new", 500, title="<b>bold</b>"))
    asked.locator("#identify").click()
    expect(asked.locator(".verdict h2")).to_have_text("<b>bold</b>")
    expect(asked.locator(".verdict")).to_contain_text("tell whoever runs the server")


def test_a_busy_server_is_asked_once_more(asked: Page, site: Any, stand_in: Any) -> None:
    site.answers.append((*stand_in.problem("overloaded", 503), BUSY))
    asked.locator("#identify").click()
    expect(asked.locator("#answer-body")).to_contain_text("Trying once more in 1 s")
    expect(asked.locator("#answer")).to_have_attribute("aria-busy", "true")
    expect(asked.locator(".card")).to_have_count(5)
    assert len(site.received) == 2
    assert site.received[0].images == site.received[1].images


def test_a_server_that_stays_busy_is_left_alone_until_a_button_is_pressed(
    asked: Page, site: Any, stand_in: Any
) -> None:
    site.answers.extend([(*stand_in.problem("overloaded", 503), BUSY)] * 2)
    asked.locator("#identify").click()
    expect(asked.locator(".verdict")).to_contain_text("The server is busy")
    asked.wait_for_timeout(1200)
    assert len(site.received) == 2
    asked.locator("#retry").click()
    expect(asked.locator(".card")).to_have_count(5)


def test_a_long_wait_is_left_to_the_user(asked: Page, site: Any, stand_in: Any) -> None:
    site.answers.append((*stand_in.problem("not_ready", 503), {"Retry-After": "120"}))
    asked.locator("#identify").click()
    expect(asked.locator(".verdict")).to_contain_text("The server is not ready yet")
    assert len(site.received) == 1


def test_a_server_that_is_away(asked: Page) -> None:
    asked.route("**/v1/**", lambda route: route.abort("connectionrefused"))
    asked.locator("#identify").click()
    expect(asked.locator(".verdict")).to_contain_text("The server cannot be reached")
    expect(asked.locator(".verdict")).to_contain_text("Your photos are still here")
    asked.unroute("**/v1/**")
    asked.locator("#retry").click()
    expect(asked.locator(".card")).to_have_count(5)


def test_a_device_that_is_offline(asked: Page) -> None:
    asked.context.set_offline(True)
    asked.locator("#identify").click()
    expect(asked.locator(".verdict")).to_contain_text("This device is offline")
    asked.context.set_offline(False)


@pytest.mark.parametrize(
    "content",
    ["<html>a proxy's page</html>", "null", "[]", "{}", '{"predictions": "none"}', '{"results": []}'],
)
def test_an_answer_that_makes_no_sense(asked: Page, site: Any, content: str) -> None:
    site.answers.append((200, content))
    asked.locator("#identify").click()
    expect(asked.locator(".verdict")).to_contain_text("makes no sense")


def test_an_answer_with_holes_is_shown_with_dashes(asked: Page, site: Any) -> None:
    holes = {"predictions": [{}, None, {"drug_name": 7, "confidence": "high"}, {"confidence": -1}], "warnings": 3}
    site.answers.append((200, json.dumps(holes)))
    asked.locator("#identify").click()
    expect(asked.locator(".card")).to_have_count(4)
    expect(asked.locator(".card h3")).to_have_text(["–", "–", "7", "–"])
    expect(asked.locator(".verdict")).to_have_attribute("data-kind", "unsure")


def test_an_answer_without_a_candidate_is_unsure(asked: Page, site: Any, stand_in: Any) -> None:
    site.answers.append(stand_in.answer(predictions=[], sure=True))
    asked.locator("#identify").click()
    expect(asked.locator(".verdict")).to_have_attribute("data-kind", "unsure")
    expect(asked.locator(".verdict")).to_contain_text("no candidate")


def test_a_key_is_asked_for_kept_for_the_tab_and_sent(visit: Any, site: Any) -> None:
    site.key = "open-sesame"
    page = visit(failing=True)
    form = page.get_by_role("form", name="An API key is needed")
    expect(form).to_be_visible()  # at once: the page asks the server for its model
    ready(page)
    page.locator("#identify").click()
    field = page.get_by_label("API key", exact=True)
    expect(field).to_be_focused()
    for wrong in ("guess", "열려라"):
        field.fill(wrong)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="This API key was not accepted")).to_be_visible()
        expect(field).to_have_attribute("aria-invalid", "true")
    field.fill("open-sesame")
    page.keyboard.press("Enter")
    expect(page.locator(".card")).to_have_count(5)
    expect(form).to_be_hidden()
    assert [received.headers.get("x-api-key") for received in site.received] == [None, "guess", "open-sesame"]
    assert "open-sesame" not in page.evaluate("JSON.stringify(localStorage)")
    page.reload()
    expect(page.locator("#footer-model")).to_have_text("pillsnap v3")
    page.get_by_role("button", name="Forget the API key").click()
    assert page.evaluate("sessionStorage.length") == 0


def test_a_contract_that_differs_is_a_warning_and_never_sure(visit: Any, site: Any) -> None:
    site.info["client_contract"]["fingerprint"] = "0123456789abcdef"
    page = visit()
    expect(page.locator("#drift")).to_contain_text("prepares photos in another way than the server expects")
    ready(page)
    page.locator("#identify").click()
    expect(page.locator(".verdict")).to_have_attribute("data-kind", "unsure")


def test_the_page_learns_of_another_champion_from_its_answer(visit: Any, site: Any) -> None:
    present = site.info["model"]
    site.info["model"] = {**present, "version": "2", "sha256": "f" * 64}
    page = visit()
    expect(page.locator("#footer-model")).to_have_text("pillsnap v2")
    site.info["model"] = present
    ready(page)
    page.locator("#identify").click()
    expect(page.locator("#footer-model")).to_have_text("pillsnap v3")


def test_a_contract_that_agrees_says_nothing_and_the_limits_of_the_model_are_stated(visit: Any) -> None:
    page = visit()
    expect(page.locator("#note-classes")).to_have_text(
        "This model knows 100 pills only. Any other pill may still look like one of them."
    )
    expect(page.locator("#drift")).to_be_hidden()
    expect(page.get_by_role("complementary")).to_contain_text("does not replace that check")


def test_closed_storage_is_no_obstacle(visit: Any, site: Any) -> None:
    page = visit()
    page.context.add_init_script(
        "for (const name of ['localStorage', 'sessionStorage'])"
        " Object.defineProperty(window, name, { get() { throw new DOMException('closed', 'SecurityError'); } });"
    )
    page.reload()
    page.get_by_role("button", name="한국어").click()
    ready(page)
    page.locator("#identify").click()
    expect(page.locator(".card")).to_have_count(5)
    assert site.received[0].headers["accept-language"] == "ko"
