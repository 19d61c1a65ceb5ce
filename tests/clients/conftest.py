"""The programs that these tests start, and what the browser made, once a session."""

from __future__ import annotations

import os
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


def _missing(what: str) -> None:
    if os.environ.get("PILLSNAP_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{what} is not installed, and PILLSNAP_REQUIRE_BROWSER=1 asks for it", pytrace=False)
    pytest.skip(f"{what} is not installed: the browser client is not tested here")


@pytest.fixture(scope="session")
def browser_tools() -> SimpleNamespace:
    """``tests/clients/browser.py``."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("browser.py"))))


@pytest.fixture(scope="session", params=["chromium", "firefox", "webkit"])
def browser(browser_tools: SimpleNamespace, request: pytest.FixtureRequest) -> Any:
    """Each browser in turn; only Chromium has to be there."""
    found = browser_tools.find_browsers()
    if request.param not in found:
        if request.param == "chromium":
            _missing("Chromium")
        pytest.skip(f"{request.param} is not installed")
    return found[request.param]


@pytest.fixture(scope="session")
def node() -> str:
    """The path of Node.js."""
    found = shutil.which("node") or shutil.which("nodejs")
    if found is None:
        _missing("Node.js")
    return found
