"""The pictures of the page in the documents: ``python tests/serving/page/screenshots.py docs/images``.

The pills are drawn by the synthetic renderer, and the answers are those of the stand-in.
"""

from __future__ import annotations

import io
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, ViewportSize, sync_playwright

from pillsnap.synthetic.conditions import BACKGROUNDS, RealCondition
from pillsnap.synthetic.drugs import design_drugs
from pillsnap.synthetic.render import build_model, render_real

STAND_IN = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("stand_in.py"))))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRUG, LIGHT, SEED = 10, 1, 7
OTHER_DRUGS = (13, 12, 3, 18)  # of a similar outline
NETWORK_S = 0.06
COLOURS, REFINEMENTS = 256, 8
GAP_PX = 24
PHONE: ViewportSize = {"width": 360, "height": 780}
DESKTOP: ViewportSize = {"width": 1280, "height": 860}


def photo(side: int, background: str, rotation_deg: int) -> bytes:
    model = build_model(design_drugs()[DRUG])
    condition = RealCondition(BACKGROUNDS.index(background), LIGHT, side, rotation_deg)
    image, _ = render_real(model, condition, SEED)
    larger = cv2.resize(image, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", larger[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def opened(browser: Browser, site: Any, locale: str, viewport: ViewportSize, scheme: Any = "light") -> Page:
    phone = viewport is PHONE
    context = browser.new_context(
        locale=locale,
        viewport=viewport,
        color_scheme=scheme,
        is_mobile=phone,
        has_touch=phone,
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(site.url)
    page.wait_for_selector("#note-classes:not([hidden])")
    return page


def put(page: Page, **photos: bytes) -> None:
    for side, content in photos.items():
        file: FilePayload = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": content}
        page.locator(f"[data-side={side}] [data-part=file]").set_input_files([file])
        page.wait_for_selector(f"[data-side={side}][data-state=photo]")


def identify(page: Page) -> None:
    page.locator("#identify").click()
    page.wait_for_selector(".verdict")
    page.mouse.move(0, 0)
    page.evaluate("() => { document.activeElement.blur(); }")


def taken(page: Page) -> np.ndarray:
    page.evaluate("() => { scrollTo(0, 0); }")
    return np.array(Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB"))


def beside(pictures: list[np.ndarray]) -> np.ndarray:
    tall = max(picture.shape[0] for picture in pictures)
    padded = [
        np.pad(picture, ((0, tall - len(picture)), (0, GAP_PX), (0, 0)), constant_values=255) for picture in pictures
    ]
    return np.hstack(padded)[:, :-GAP_PX]


def save(folder: Path, name: str, picture: np.ndarray) -> None:
    few = Image.fromarray(picture).quantize(COLOURS, Image.Quantize.MEDIANCUT, REFINEMENTS, dither=Image.Dither.NONE)
    few.save(folder / f"serve-{name}.png", optimize=True)


def shoot(browser: Browser, site: Any, keep: Callable[[str, np.ndarray], None]) -> None:
    drugs = design_drugs()
    names = [(drugs[i].kcode, drugs[i].drug_name, drugs[i].manufacturer) for i in (DRUG, *OTHER_DRUGS)]
    sides = {"front": photo(0, "wood", 0), "back": photo(1, "wood", 270)}
    doubt = STAND_IN.judgement(STAND_IN.DOUBTFUL, names)
    sure = STAND_IN.judgement(STAND_IN.CONFIDENCES, names)
    site.delay_s = NETWORK_S

    page = opened(browser, site, "ko-KR", DESKTOP)
    put(page, front=sides["front"])
    site.answers.append(STAND_IN.answer(STAND_IN.CONFIDENCES, names))
    identify(page)
    page.locator(".about summary").click()
    keep("sure-ko", taken(page))

    page = opened(browser, site, "en-US", DESKTOP)
    put(page, **sides)
    site.answers.append(STAND_IN.batch_answer(doubt, doubt, doubt))
    identify(page)
    keep("unsure-en", taken(page))

    page = opened(browser, site, "ko-KR", DESKTOP, "dark")
    put(page, **sides)
    site.answers.append(STAND_IN.batch_answer(doubt, doubt, doubt))
    identify(page)
    keep("unsure-dark-ko", taken(page))

    page = opened(browser, site, "en-US", DESKTOP)
    put(page, front=sides["front"])
    site.answers.append((*STAND_IN.problem("not_ready", 503, detail=""), {"Retry-After": "60"}))
    identify(page)
    keep("error-en", taken(page))

    phones = []
    for state, locale, scheme in (("empty", "ko-KR", "light"), ("sure", "ko-KR", "light"), ("sure", "en-US", "dark")):
        page = opened(browser, site, locale, PHONE, scheme)
        if state == "sure":
            put(page, **sides)
            site.answers.append(STAND_IN.batch_answer(sure, sure, sure))
            identify(page)
        phones.append(taken(page))
    keep("phone", beside(phones))


def main(folder: Path) -> None:
    with STAND_IN.running() as site, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shoot(browser, site, lambda name, picture: save(folder, name, picture))
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
