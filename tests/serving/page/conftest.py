"""A browser, the stand-in server, and visitors whose every error is a failure."""

from __future__ import annotations

import os
import runpy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
WAIT_MS = 20_000
WATCH_POLICY = """
document.addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`));
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        if os.environ.get("PILLSNAP_REQUIRE_BROWSER") == "1":
            pytest.fail("Chromium is not installed, and PILLSNAP_REQUIRE_BROWSER=1 asks for it", pytrace=False)
        pytest.skip("Chromium is not installed: the page is not tested here")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def stand_in() -> SimpleNamespace:
    """``tests/serving/page/stand_in.py``."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("stand_in.py"))))


@pytest.fixture(scope="module")
def running_site(stand_in: SimpleNamespace) -> Iterator[Any]:
    with stand_in.running() as site:
        yield site


@pytest.fixture
def site(running_site: Any) -> Any:
    running_site.fresh()
    return running_site


@pytest.fixture
def visit(browser: Browser, site: Any) -> Iterator[Callable[..., Page]]:
    """Opens the page as someone who has not been there. At the end: no error, no violation, no foreign host.

    A test that provokes an answer of 4xx or 5xx, or none, says so: ``visit(failing=True)``.
    """
    contexts, wrong = [], []

    def open_page(locale: str = "en-US", width: int = 1280, failing: bool = False, **options: Any) -> Page:
        context = browser.new_context(locale=locale, viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        context.add_init_script(WATCH_POLICY)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        expect.set_options(timeout=WAIT_MS)

        def heard(message: Any) -> None:
            expected = failing and message.text.startswith("Failed to load resource")
            if message.type in ("error", "warning") and not expected:
                wrong.append(message.text)

        page.on("console", heard)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if is_foreign(request.url) else None)
        page.on("filechooser", lambda _: None)  # from the start: Playwright is late for the first one otherwise
        page.goto(site.url)
        page.wait_for_selector("body[data-started]")
        return page

    def is_foreign(url: str) -> bool:
        return not url.startswith((site.url, f"blob:{site.url}", "data:"))

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
