"""The page on the real server: from the pharmacist's file to the drug's card."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from playwright.sync_api import Browser, expect


def test_from_a_photo_to_a_card(
    browser: Browser, served_here: Any, bundle: Path, toy: SimpleNamespace, tmp_path: Path
) -> None:
    server = served_here("--model", str(bundle))
    photos = []
    for name in ("front.png", "back.png"):
        photos.append(tmp_path / name)
        photos[-1].write_bytes(toy.jpeg(4, side=700, ending=".png"))
    context = browser.new_context(locale="ko-KR")
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith((server.url, "blob:")) else wrong.append(asked.url))
    page.goto(server.url)
    for number, photo in enumerate(photos):
        page.locator("input[type=file]:not([capture])").nth(number).set_input_files(photo)
    page.locator("#identify").click()
    expect(page.get_by_text("K-990005").first).to_be_visible(timeout=20_000)
    expect(page.get_by_text("가상정4").first).to_be_visible()
    assert page.evaluate("document.documentElement.lang") == "ko"
    context.close()
    assert wrong == []


def test_the_page_is_served_with_its_files_and_nothing_else(served_here: Any, bundle: Path) -> None:
    import requests

    server = served_here("--model", str(bundle))
    kinds = {
        path: requests.get(server.url + path, timeout=10).headers["content-type"].split(";")[0]
        for path in ("/", "/page/page.js", "/page/page.css", "/page/icon.svg", "/page/pillsnap_client.js")
    }
    assert list(kinds.values()) == ["text/html", "text/javascript", "text/css", "image/svg+xml", "text/javascript"]
    for path in ("/page/", "/page/index.html", "/page/..%2fapp.py", "/page/settings.py"):
        assert requests.get(server.url + path, timeout=10).status_code == 404, path
