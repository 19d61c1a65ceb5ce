"""A release manager's day in MLflow's web UI, clicked through in Chromium.

With ``PILLSNAP_SCREENSHOTS=FOLDER`` every station is kept as ``registry-NUMBER-NAME.png``, 1280 pixels wide, for
``docs/release-manager.md``.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

MODEL = "pills"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOTS = os.environ.get("PILLSNAP_SCREENSHOTS")
EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>[x](javascript:alert(3))"
WAIT_MS = 30_000
SEEN_BEFORE = """
localStorage.setItem("_mlflow_model_registry_promo_modal_dismissed_v1", "true");
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
"""
"""What MLflow 3.17 keeps once its advertisement and its assistant were closed: both open over the page at a first
visit, at a moment of their own choosing."""
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        CHROMIUM is None and not os.environ.get("PILLSNAP_REQUIRE_BROWSER"),
        reason="no Chromium here: install it with `apt-get install chromium`",
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextmanager
def signed_in(browser: Browser, registry: Any, user: str) -> Iterator[Page]:
    login = {"username": user, "password": registry.password(user)}
    context = browser.new_context(viewport={"width": 1280, "height": 900}, http_credentials=login)
    context.add_init_script(SEEN_BEFORE)
    page = context.new_page()
    page.set_default_timeout(30_000)
    expect.set_options(timeout=WAIT_MS)
    try:
        yield page
    finally:
        context.close()


def open_page(page: Page, registry: Any, path: str, shows: str) -> None:
    page.goto(registry.url)  # a change behind the # alone would not load anew
    page.goto(f"{registry.url}/#{path}?workflowType=machine_learning")
    expect(page.get_by_text(shows).first).to_be_visible(timeout=WAIT_MS)


def open_version(page: Page, registry: Any, version: str) -> None:
    open_page(page, registry, f"/models/{MODEL}/versions/{version}", f"Version {version}")


def shoot(page: Page, name: str) -> None:
    if SHOTS:
        page.wait_for_timeout(700)
        page.screenshot(path=Path(SHOTS) / f"registry-{name}.png")


def add_alias(page: Page, alias: str) -> Locator:
    """Type an alias into MLflow's dialog and save; the dialog, which stays open where it was refused."""
    page.locator('[data-component-id*="modelversionviewaliaseditor"]').first.click()
    dialog = page.get_by_role("dialog")
    field = dialog.get_by_role("combobox")
    field.fill(alias)
    field.press("Enter")
    dialog.get_by_text("Aliases allow you to assign").click()  # closes the list of what was typed before
    dialog.get_by_role("button", name="Save aliases").click()
    return dialog


def have_judged(page: Page, registry: Any, version: str) -> str:
    open_version(page, registry, version)
    expect(add_alias(page, "candidate")).to_be_hidden()
    return str(registry.judged(version))


def test_a_good_version_becomes_champion(registry: Any, browser: Browser) -> None:
    version = registry.register()
    with signed_in(browser, registry, "rita") as page:
        open_page(page, registry, "/models", MODEL)
        shoot(page, "01-models")
        open_version(page, registry, version)
        shoot(page, "02-not-judged")
        page.locator('[data-component-id*="modelversionviewaliaseditor"]').first.click()
        page.get_by_role("dialog").get_by_role("combobox").fill("candidate")
        shoot(page, "03-candidate")
        page.keyboard.press("Enter")
        page.get_by_role("dialog").get_by_text("Aliases allow you to assign").click()
        page.get_by_role("button", name="Save aliases").click()
        expect(page.get_by_role("dialog")).to_be_hidden()
        assert registry.judged(version) == "PROMOTE"

        open_version(page, registry, version)
        expect(page.get_by_text("PROMOTE · top-1 100.0 % (≥ 85)")).to_be_visible()
        shoot(page, "04-promote")
        tag = page.get_by_text("gate.decision", exact=True)
        tag.scroll_into_view_if_needed()
        expect(tag).to_be_visible()
        shoot(page, "05-tags")
        link = page.get_by_role("link", name="Report with pictures")
        with page.context.expect_page() as opened:
            link.click()
        report = opened.value
        expect(report.frame_locator("iframe").get_by_text("Top-1, real photos").first).to_be_visible()
        shoot(report, "06-evidence")
        report.close()

        open_version(page, registry, version)
        expect(add_alias(page, "champion")).to_be_hidden()
        open_version(page, registry, version)
        expect(page.get_by_text("Became champion")).to_be_visible()
        shoot(page, "07-champion")
    assert registry.champion() == version


@pytest.mark.long
def test_a_rejected_version_is_refused_with_the_reason(registry: Any, browser: Browser) -> None:
    before = registry.champion()
    version = registry.register(3)
    with signed_in(browser, registry, "rita") as page:
        assert have_judged(page, registry, version) == "REJECT"
        open_version(page, registry, version)
        expect(page.get_by_text("REJECT · top-1 50.0 % (≥ 85)")).to_be_visible()
        shoot(page, "08-reject")
        dialog = add_alias(page, "champion")
        expect(dialog.get_by_text(re.compile("REJECT"))).to_be_visible()
        shoot(page, "09-refused")
    assert registry.champion() == before


def test_two_versions_are_compared(registry: Any, browser: Browser) -> None:
    versions = [registry.register(wrong) for wrong in (0, 1)]
    with signed_in(browser, registry, "rita") as page:
        for version in versions:
            have_judged(page, registry, version)
        open_page(page, registry, f"/models/{MODEL}", MODEL)
        for version in versions:
            page.get_by_role("row", name=f"Version {version}").get_by_role("checkbox").check()
        shoot(page, "05b-versions")
        page.get_by_test_id("compareButton").click()
        expect(page.get_by_text("Comparing 2 Versions")).to_be_visible()
        figure = page.get_by_role("row").filter(has_text="gate_top1")
        expect(figure).to_contain_text("0.83")
        figure.scroll_into_view_if_needed()
        shoot(page, "11-compare")


def test_attack_the_blue_button_that_copies(registry: Any, browser: Browser) -> None:
    version = registry.register()
    with signed_in(browser, registry, "rita") as page:
        open_version(page, registry, version)
        page.get_by_role("button", name="Promote model").click()
        dialog = page.get_by_role("dialog")
        field = dialog.get_by_role("combobox")
        field.fill(MODEL)
        field.press("Enter")
        dialog.get_by_role("button", name="Promote").click()
        expect(page.get_by_text("To promote, set the alias champion").first).to_be_visible()
        shoot(page, "12-button")
    answer = registry.ask("rita", "GET", f"/api/2.0/mlflow/model-versions/get?name={MODEL}&version={int(version) + 1}")
    assert answer.status_code == 404, "no copy"


def test_attack_engineer_promotes_in_the_web_ui(registry: Any, browser: Browser) -> None:
    before = registry.champion()
    version = registry.register()
    with signed_in(browser, registry, "erik") as page:
        assert have_judged(page, registry, version) == "PROMOTE"
        open_version(page, registry, version)
        dialog = add_alias(page, "champion")
        expect(dialog.get_by_text(re.compile("erik is engineer"))).to_be_visible()
        shoot(page, "10-engineer")
    assert registry.champion() == before


@pytest.mark.long
def test_attack_script_in_description_and_tags(registry: Any, browser: Browser) -> None:
    version = registry.register(1)
    body = {"name": MODEL, "version": version, "description": EVIL}
    assert registry.ask("erik", "PATCH", "/api/2.0/mlflow/model-versions/update", json=body).ok
    assert registry.set_tag("erik", version, "note", EVIL).ok
    opened: list[str] = []
    with signed_in(browser, registry, "rita") as page:
        page.on("dialog", lambda dialog: (opened.append(dialog.message), dialog.dismiss()))
        open_version(page, registry, version)
        expect(page.get_by_text("note", exact=True)).to_be_visible()
        page.wait_for_timeout(1000)
        assert page.locator("img[onerror]").count() == 0
        assert page.locator("a[href^='javascript']").count() == 0
        registry.set_alias("erik", version, "candidate")
        assert registry.judged(version) in {"HOLD", "REJECT"}
        open_version(page, registry, version)
        page.wait_for_timeout(1000)
    assert opened == []
