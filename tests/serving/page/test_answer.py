"""From a photo to what a pharmacist reads: the bytes that are sent, and what is shown of the answer."""

from __future__ import annotations

import base64
import json
from typing import Any

import cv2
import numpy as np
import pytest
from playwright.sync_api import Page, expect

from pillsnap.clients.phone import FOLDER, PhoneClient
from pillsnap.core.images import decode_rgb

GOLDEN = FOLDER / "golden"
VECTORS = json.loads((GOLDEN / "vectors.json").read_text(encoding="utf-8"))["vectors"]
OF_THE_CONTRACT = [vector for vector in VECTORS if vector["client"]["target_size"] == 512]
OTHERS = [vector for vector in VECTORS if vector["client"]["target_size"] != 512 and vector["name"] != "noise"]
PILL = (GOLDEN / "pill_photo.jpg").read_bytes()
EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def put(page: Page, side: str, photo: bytes, name: str = "photo.jpg") -> None:
    file = {"name": name, "mimeType": "image/jpeg", "buffer": photo}
    page.locator(f"[data-side={side}] [data-part=file]").set_input_files([file])
    expect(page.locator(f"[data-side={side}]")).to_have_attribute("data-state", "photo")


def identify(page: Page) -> None:
    page.locator("#identify").click()
    expect(page.locator(".verdict")).to_be_visible()


def drop(page: Page, selector: str, photos: list[bytes], kind: str = "drop") -> None:
    """Drops or pastes files, as the browser would hand them over."""
    page.evaluate(
        """([selector, photos, kind]) => {
            const transfer = new DataTransfer();
            for (const photo of photos) {
                const bytes = Uint8Array.from(atob(photo), (letter) => letter.charCodeAt(0));
                transfer.items.add(new File([bytes], "photo.jpg", { type: "image/jpeg" }));
            }
            const options = { bubbles: true, cancelable: true };
            const event = kind === "drop"
                ? new DragEvent("drop", { ...options, dataTransfer: transfer })
                : new ClipboardEvent("paste", { ...options, clipboardData: transfer });
            document.querySelector(selector).dispatchEvent(event);
        }""",
        [selector, [base64.b64encode(photo).decode() for photo in photos], kind],
    )


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(np.int16) - other.astype(np.int16)).mean())


def test_the_bytes_that_are_sent_are_those_of_the_golden_vectors(visit: Any, site: Any) -> None:
    page = visit()
    for vector in OF_THE_CONTRACT:
        put(page, "front", (GOLDEN / vector["input"]).read_bytes(), vector["input"])
        identify(page)
        sent = site.received[-1]
        assert (sent.path, sent.headers["content-type"]) == ("/v1/narrow/predict", "image/jpeg")
        expected = decode_rgb((GOLDEN / vector["client"]["jpeg"]).read_bytes())
        assert decode_rgb(sent.images[0]).shape == (512, 512, 3)
        assert difference(decode_rgb(sent.images[0]), expected) <= vector["client"]["jpeg_tolerance"]["mean"]
        page.locator("[data-side=front] [data-part=remove]").click()
    assert len(site.received) == len(OF_THE_CONTRACT) == 3


def test_other_photos_are_sent_as_the_reference_sends_them(visit: Any, site: Any) -> None:
    page = visit()
    for vector in OTHERS:
        photo = (GOLDEN / vector["input"]).read_bytes()
        put(page, "front", photo, vector["input"])
        identify(page)
        tolerance = vector["client"]["jpeg_tolerance"]["mean"]
        assert (
            difference(decode_rgb(site.received[-1].images[0]), decode_rgb(PhoneClient().prepare(photo))) <= tolerance
        )
        page.locator("[data-side=front] [data-part=remove]").click()


def test_the_picture_on_the_screen_is_the_one_that_is_sent(visit: Any, site: Any) -> None:
    page = visit()
    put(page, "front", PILL)
    identify(page)
    shown = page.evaluate(
        """async () => {
            const image = document.querySelector("[data-side=front] [data-part=image]");
            await image.decode();
            const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
            canvas.getContext("2d").drawImage(image, 0, 0);
            const blob = await canvas.convertToBlob({ type: "image/png" });
            const reader = new FileReader();
            await new Promise((resolve) => { reader.onload = resolve; reader.readAsDataURL(blob); });
            return reader.result.split(",")[1];
        }"""
    )
    # the decoders of the browser and of OpenCV differ by a level here and there
    assert difference(decode_rgb(base64.b64decode(shown)), decode_rgb(site.received[0].images[0])) <= 0.5
    kilobytes = f"{len(site.received[0].images[0]) / 1024:.0f} kB"
    expect(page.locator("[data-side=front] figcaption")).to_have_text(f"512 × 512 · {kilobytes}")


def test_nothing_else_of_the_photo_leaves_the_device(visit: Any, site: Any) -> None:
    secret = b"GPS 37.5665 N 126.9780 E"
    segment = b"\xff\xe1" + (len(secret) + 2).to_bytes(2, "big") + secret
    page = visit()
    put(page, "front", PILL[:2] + segment + PILL[2:], "김약사 집.jpg")
    put(page, "back", PILL)
    identify(page)
    [sent] = site.received
    assert sent.names == ["front.jpg", "back.jpg"]
    assert all(secret not in image for image in sent.images)


def test_five_cards_with_rank_names_code_and_confidence(visit: Any, stand_in: Any) -> None:
    page = visit()
    put(page, "front", PILL)
    identify(page)
    cards = page.locator(".card")
    expect(cards).to_have_count(5)
    for index, (kcode, name, maker) in enumerate(stand_in.NAMES):
        card = cards.nth(index)
        expect(card.locator("h3")).to_have_text(name)
        expect(card.locator(".maker")).to_have_text(maker)
        expect(card.locator(".kcode")).to_have_text(kcode)
        expect(card.locator(".rank")).to_contain_text(f"Rank {index + 1}")
    expect(cards.nth(0).locator(".number")).to_contain_text("93.4%")
    expect(cards.nth(4).locator(".number")).to_contain_text("< 0.1%")
    bar, fill = (cards.nth(0).locator(part).bounding_box() for part in (".bar", ".fill"))
    assert fill["width"] / bar["width"] == pytest.approx(0.934, abs=0.01)
    expect(page.locator(".verdict")).to_have_attribute("data-kind", "sure")
    page.locator(".about summary").click()
    for told in ("pillsnap v3 (champion)", stand_in.SHA256, stand_in.FINGERPRINT, "38 ms on the server"):
        expect(page.locator(".about")).to_contain_text(told)


@pytest.mark.parametrize(
    "changed",
    [{"sure": False}, {"sure": None}, {"sure": "yes"}, {"sure": 1}],
    ids=["not sure", "unknown", "a word", "a number"],
)
def test_what_is_not_surely_sure_is_said_to_be_unsure_before_anything_else(
    visit: Any, site: Any, stand_in: Any, changed: dict[str, Any]
) -> None:
    site.answers.append(stand_in.answer(**changed))
    page = visit()
    put(page, "front", PILL)
    identify(page)
    first = page.locator("#answer-body > *").first
    expect(first).to_have_attribute("data-kind", "unsure")
    expect(first.get_by_role("heading", name="Not sure")).to_be_focused()
    expect(first).to_contain_text("Check against the package, or ask a colleague")
    expect(page.locator(".cards")).to_have_attribute("data-sure", "false")


def test_nothing_is_green_in_any_state(visit: Any, site: Any, stand_in: Any) -> None:
    page = visit()
    put(page, "front", PILL)
    for sure in (True, False):
        site.answers.append(stand_in.answer(sure=sure))
        identify(page)
        colours = page.evaluate(
            """() => [...document.querySelectorAll("body *")].flatMap((element) => {
                const style = getComputedStyle(element);
                return [style.color, style.backgroundColor, style.borderTopColor];
            })"""
        )
        for colour in set(colours):
            red, green, blue = (float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3])
            assert green <= max(red, blue) + 12, colour
        page.locator("[data-side=front] [data-part=remove]").click()
        put(page, "front", PILL)


def test_a_hundred_percent_is_never_shown(visit: Any, site: Any, stand_in: Any) -> None:
    site.answers.append(stand_in.answer((1.0, 0.0)))
    page = visit()
    put(page, "front", PILL)
    identify(page)
    expect(page.locator(".number").first).to_contain_text("> 99.9%")
    expect(page.locator(".number").nth(1)).to_contain_text("0%")


def test_two_sides_go_together_and_come_back_as_one(visit: Any, site: Any, stand_in: Any) -> None:
    alone, both = stand_in.judgement((0.6, 0.2)), stand_in.judgement((0.97, 0.01, 0.01))
    site.answers.append(stand_in.batch_answer(alone, alone, both))
    page = visit()
    put(page, "front", PILL)
    put(page, "back", (GOLDEN / "already_512.png").read_bytes(), "back.png")
    identify(page)
    [sent] = site.received
    assert sent.path == "/v1/narrow/batch_predict?same_pill=true"
    assert [decode_rgb(image).shape for image in sent.images] == [(512, 512, 3)] * 2
    assert sent.images[0] != sent.images[1]
    expect(page.locator(".card")).to_have_count(3)
    expect(page.locator(".number").first).to_contain_text("97%")
    expect(page.locator("#answer-body")).to_contain_text("Judged from front and back together")
    page.locator(".about summary").click()
    expect(page.locator(".about")).to_contain_text("Front alone")


def test_the_back_alone_is_a_photo_like_any_other(visit: Any, site: Any) -> None:
    page = visit()
    put(page, "back", PILL)
    identify(page)
    assert [received.path for received in site.received] == ["/v1/narrow/predict"]


def test_two_sides_that_contradict_each_other_are_never_sure(visit: Any, site: Any, stand_in: Any) -> None:
    front, back = stand_in.judgement(), stand_in.judgement(names=stand_in.NAMES[::-1])
    site.answers.append(stand_in.batch_answer(front, back, stand_in.judgement((0.6, 0.3))))
    page = visit()
    put(page, "front", PILL)
    put(page, "back", PILL)
    identify(page)
    expect(page.locator(".verdict")).to_have_attribute("data-kind", "unsure")
    expect(page.locator(".note-line")).to_contain_text("The two sides disagree")
    expect(page.locator(".note-line")).to_contain_text(stand_in.NAMES[0][1])


def test_a_side_that_the_server_cannot_read_is_named(visit: Any, site: Any, stand_in: Any) -> None:
    bad = {"problem": stand_in.problem("undecodable", 422)[1]}
    site.answers.append(stand_in.batch_answer(stand_in.judgement(), bad, None))
    page = visit()
    put(page, "front", PILL)
    put(page, "back", PILL)
    identify(page)
    expect(page.locator(".note-line")).to_contain_text("The photo “Back” could not be read")
    expect(page.locator("[data-side=back] [data-part=problem]")).to_contain_text("cannot be read as a photo")
    expect(page.locator(".card")).to_have_count(5)


def test_remarks_of_the_validator_are_shown(visit: Any, site: Any, stand_in: Any) -> None:
    remarks = [{"code": "small_side", "message": "100×100 px"}, {"code": "brand_new", "message": EVIL}]
    site.answers.append(stand_in.answer(warnings=remarks))
    page = visit()
    put(page, "front", PILL)
    identify(page)
    expect(page.locator(".remarks li")).to_have_text(
        ["A side of the photo is shorter than 512 pixels. Take it from nearer.", EVIL]
    )


def test_a_small_original_is_remarked_on_before_it_is_sent(visit: Any) -> None:
    page = visit()
    put(page, "front", (GOLDEN / "tiny.png").read_bytes(), "tiny.png")
    expect(page.locator("[data-side=front] [data-part=small]")).to_contain_text("The original is small")
    put(page, "back", cv2.imencode(".png", np.full((600, 512, 3), 90, np.uint8))[1].tobytes())
    expect(page.locator("[data-side=back] [data-part=small]")).to_be_hidden()


def test_small_is_what_has_fewer_pixels_than_the_model_looks_at(visit: Any, site: Any) -> None:
    site.info["preprocessing"] = {"target_size": 96}
    page = visit()
    for side, pixels, small in (("front", 96, False), ("back", 95, True)):
        put(page, side, cv2.imencode(".png", np.full((300, pixels, 3), 90, np.uint8))[1].tobytes())
        expect(page.locator(f"[data-side={side}] [data-part=small]")).to_be_visible(visible=small)


def test_hostile_names_are_text(visit: Any, site: Any, stand_in: Any) -> None:
    names = [(EVIL, EVIL, EVIL), ("K-1", "\u202egnorw eht\u202c", ""), ("K-2", "길" * 300, "x" * 300)]
    site.answers.append(stand_in.answer((0.9, 0.05, 0.05), names, model={"name": EVIL, "version": EVIL}))
    page = visit(width=360)
    put(page, "front", PILL)
    identify(page)
    page.locator(".about summary").click()
    first = page.locator(".card").first
    for part in ("h3", ".maker", ".kcode"):
        expect(first.locator(part)).to_have_text(EVIL)
    assert page.locator("#answer img, #answer script").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_an_answer_goes_when_a_photo_changes(visit: Any, site: Any) -> None:
    page = visit()
    put(page, "front", PILL)
    identify(page)
    put(page, "back", PILL)
    expect(page.locator(".card")).to_have_count(0)
    site.delay_s = 0.5
    page.locator("#identify").click()
    page.locator("[data-side=back] [data-part=remove]").click()
    page.wait_for_timeout(800)
    expect(page.locator(".card")).to_have_count(0)


def test_photos_can_be_dropped_and_pasted(visit: Any, site: Any) -> None:
    page = visit()
    drop(page, "[data-side=back] .square", [PILL])
    expect(page.locator("[data-side=back]")).to_have_attribute("data-state", "photo")
    drop(page, "main", [PILL], "paste")
    expect(page.locator("[data-side=front]")).to_have_attribute("data-state", "photo")
    page.locator("[data-side=front] [data-part=remove]").click()
    page.locator("[data-side=back] [data-part=remove]").click()
    drop(page, "h1", [PILL, PILL, PILL])
    for side in ("front", "back"):
        expect(page.locator(f"[data-side={side}]")).to_have_attribute("data-state", "photo")
    drop(page, "h1", [])
    expect(page.locator("#say-now")).to_contain_text("not a photo file")
    assert site.received == [], "nothing is sent before it is asked for"


def test_the_camera_takes_the_square_that_it_shows_and_is_switched_off(visit: Any, site: Any) -> None:
    page = visit(permissions=["camera"])
    page.evaluate(
        """() => {
            const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
            window.streams = [];
            navigator.mediaDevices.getUserMedia = async (wished) => {
                const stream = await ask(wished);
                window.streams.push(stream);
                return stream;
            };
        }"""
    )
    # the dialog is out of sight a moment before its `close` event, which stops the stream
    off = """(opened) => window.streams.length === opened && window.streams.every((stream) =>
        stream.getTracks().every((track) => track.readyState === "ended"))"""
    page.get_by_role("button", name="Take photo: Front").click()
    expect(page.get_by_role("dialog", name="Take a photo: Front")).to_be_visible()
    shutter = page.get_by_role("button", name="Take", exact=True)
    expect(shutter).to_be_enabled()
    finder = page.locator(".finder").bounding_box()
    assert finder["width"] == pytest.approx(finder["height"], abs=1)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.wait_for_function(off, arg=1)

    page.get_by_role("button", name="Take photo: Front").click()
    expect(shutter).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("[data-side=front]")).to_have_attribute("data-state", "photo")
    page.wait_for_function(off, arg=2)
    identify(page)
    image = decode_rgb(site.received[0].images[0])
    assert image.shape == (512, 512, 3)
    assert image.std() > 5, "a picture, not an empty frame"


def test_a_camera_that_is_refused_says_what_else_can_be_done(visit: Any) -> None:
    page = visit()
    page.evaluate(
        "() => { navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotAllowedError'); } }"
    )
    page.get_by_role("button", name="Take photo: Back").click()
    expect(page.locator("#camera-said")).to_contain_text("choose a photo file")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("dialog").get_by_role("button", name="Choose file").click()
    chooser.value.set_files([{"name": "a.jpg", "mimeType": "image/jpeg", "buffer": PILL}])
    expect(page.locator("[data-side=back]")).to_have_attribute("data-state", "photo")


def test_without_a_live_camera_the_phone_s_own_is_opened(visit: Any) -> None:
    page = visit()
    page.evaluate("navigator.mediaDevices.getUserMedia = undefined")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Take photo: Front").click()
    assert chooser.value.element.get_attribute("capture") == "environment"
    assert chooser.value.element.get_attribute("accept") == "image/*"
