"""Runs the browser client over the golden vectors, in each browser that is here, and brings back what it made.

    python tests/clients/browser.py        prints the drift between the browsers and the vectors

WebKit, the engine of Safari, is that of WebKitGTK's MiniBrowser (Debian: webkit2gtk-driver, xvfb and xauth). The page
(``browser.html``) fetches photos from a server on 127.0.0.1 and posts its results back to it.
"""

from __future__ import annotations

import contextlib
import glob
import http.server
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pillsnap.clients.phone import FOLDER
from pillsnap.core.images import decode_rgb

CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
MINI_BROWSERS = "/usr/lib/*/webkit2gtk-4.*/MiniBrowser"
TYPES = {".js": "text/javascript", ".json": "application/json", ".html": "text/html; charset=utf-8"}
TIMEOUT_S = 180


@dataclass
class Results:
    """What the page posted: bytes by ``name/kind``, kind being square (RGBA), jpeg, error or config."""

    posted: dict[str, bytes] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)

    def square(self, name: str) -> np.ndarray:
        rgba = np.frombuffer(self._get(name, "square"), np.uint8)
        side = round((rgba.size / 4) ** 0.5)
        return rgba.reshape(side, side, 4)

    def jpeg(self, name: str) -> bytes:
        return self._get(name, "jpeg")

    def error(self, name: str) -> dict[str, str]:
        return json.loads(self.posted[f"{name}/error"])

    def config(self) -> dict[str, Any]:
        return json.loads(self.posted["client/config"])

    def _get(self, name: str, kind: str) -> bytes:
        if f"{name}/error" in self.posted:
            raise AssertionError(f"the browser client failed on {name}: {self.error(name)}")
        return self.posted[f"{name}/{kind}"]


@dataclass(frozen=True)
class Program:
    """A browser: its command, from the folder of a new profile and an address."""

    name: str
    command: Callable[[str, str], list[str]]


def find_browsers() -> dict[str, Program]:
    """The browsers of this machine: chromium, firefox, webkit."""

    def first(*names: str) -> str | None:
        return next((path for name in names if (path := shutil.which(name))), None)

    found = {}
    if chromium := first("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        found["chromium"] = lambda profile, url: [chromium, *CHROMIUM_FLAGS, f"--user-data-dir={profile}", url]
    firefox = first("firefox-esr", "firefox")
    if firefox and subprocess.run([firefox, "--version"], capture_output=True, check=False).returncode == 0:
        found["firefox"] = lambda profile, url: [firefox, "--headless", "--no-remote", "--profile", profile, url]
    mini, screen = next(iter(sorted(glob.glob(MINI_BROWSERS))), None), first("xvfb-run")
    if mini and screen and first("xauth"):
        found["webkit"] = lambda profile, url: [screen, "-a", mini, "--private", url]
    return {name: Program(name, command) for name, command in found.items()}


def vectors() -> list[dict[str, Any]]:
    return json.loads((FOLDER / "golden" / "vectors.json").read_text(encoding="utf-8"))["vectors"]


def run_in_browser(browser: Program, made: dict[str, tuple[bytes, int]], preferences: str = "") -> Results:
    """What ``browser`` makes of the vectors.

    Args:
        made: further photos by name, each with its target size.
        preferences: Firefox's ``user.js``.
    """
    results = Results()
    jobs = [
        {"name": v["name"], "url": f"/golden/{v['input']}", "target_size": v["client"]["target_size"]}
        for v in vectors()
    ] + [{"name": name, "url": f"/made/{name}", "target_size": size} for name, (_, size) in made.items()]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = self.content()
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Type", TYPES.get(Path(self.path).suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def content(self) -> bytes | None:
            if self.path == "/page.html":
                return Path(__file__).with_name("browser.html").read_bytes()
            if self.path == "/jobs.json":
                return json.dumps(jobs).encode()
            if self.path.startswith("/made/"):
                return made[self.path.removeprefix("/made/")][0]
            file = FOLDER / self.path.removeprefix("/")
            return file.read_bytes() if file.is_file() else None

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(204)
            self.end_headers()
            if self.path == "/done":
                results.done.set()
            else:
                results.posted[self.path.removeprefix("/results/")] = body

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        _visit(browser, f"http://127.0.0.1:{server.server_port}/page.html", results, preferences)
    finally:
        server.shutdown()
        server.server_close()
    return results


def _visit(browser: Program, url: str, results: Results, preferences: str) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, tempfile.TemporaryFile() as log:
        Path(profile, "user.js").write_text(preferences, encoding="utf-8")
        command = browser.command(profile, url)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)
        try:
            end = time.monotonic() + TIMEOUT_S
            while not results.done.wait(0.2):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    said = log.read().decode(errors="replace")[-2000:]
                    raise AssertionError(f"{browser.name} ended early or not in {TIMEOUT_S} s; it said:\n{said}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)  # xvfb-run has children
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)


def difference(one: np.ndarray, other: np.ndarray) -> tuple[int, float]:
    """Largest and mean absolute difference, in levels."""
    levels = np.abs(one.astype(np.int16) - other.astype(np.int16))
    return int(levels.max()), float(levels.mean())


def print_drift(browser: Program) -> None:
    made = run_in_browser(browser, {})
    print(f"{browser.name:16} {'size':>4}  before JPEG max  mean   decoded JPEG max  mean")
    for vector in vectors():
        name, golden = vector["name"], FOLDER / "golden"
        if f"{name}/error" in made.posted:
            print(f"{name:16}       {made.error(name)['message']}")
            continue
        square = cv2.imread(str(golden / vector["client"]["square"]))[..., ::-1]
        sent = (golden / vector["client"]["jpeg"]).read_bytes()
        before = difference(made.square(name)[..., :3], square)
        after = difference(decode_rgb(made.jpeg(name)), decode_rgb(sent))
        print(f"{name:16} {square.shape[0]:4}  {before[0]:15} {before[1]:5.3f}  {after[0]:17} {after[1]:5.3f}")


if __name__ == "__main__":
    for program in find_browsers().values():
        print_drift(program)
