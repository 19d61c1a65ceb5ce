"""The programs that these tests start, and what the browser made, once a session."""

from __future__ import annotations

import base64
import json
import os
import runpy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pillsnap.clients.phone import FOLDER


def _missing(what: str) -> None:
    if os.environ.get("PILLSNAP_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{what} is not installed, and PILLSNAP_REQUIRE_BROWSER=1 asks for it", pytrace=False)
    pytest.skip(f"{what} is not installed: the browser client is not tested here")


@pytest.fixture(scope="session")
def browser_tools() -> SimpleNamespace:
    """``tests/clients/browser.py``."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("browser.py"))))


@pytest.fixture(
    scope="session",
    params=["chromium", *(pytest.param(name, marks=pytest.mark.long) for name in ("firefox", "webkit"))],
)
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


@pytest.fixture(scope="session")
def ask(node: str) -> Callable[..., list[Any]]:
    """Answers of the client's pure functions to a list of jobs, from one start of Node.js. Bytes travel as base64."""

    def travelling(value: Any) -> Any:
        return base64.b64encode(bytes(value)).decode() if isinstance(value, (bytes, np.ndarray)) else value

    def run(*jobs: dict[str, Any]) -> list[Any]:
        told = [{key: travelling(value) for key, value in job.items()} for job in jobs]
        script = Path(__file__).with_name("pure_functions.mjs")
        done = subprocess.run(
            [node, str(script), str(FOLDER)],
            input=json.dumps(told),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answers: list[Any] = json.loads(done.stdout)
        return answers

    return run
