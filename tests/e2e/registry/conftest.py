"""One registry with server and gate service for all tests of this folder, by the real commands in own processes.

Three people have logins: ``rita`` is release manager, ``erik`` engineer, ``gate`` the gate's service.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import yaml

from pillsnap.gate.keys import generate
from pillsnap.gate.trust import TrustRoot
from pillsnap.registry.actor import Role
from pillsnap.registry.versions import register
from pillsnap.tracking.run import tracked_run
from pillsnap.tracking.run_model import log_bundle

PROJECT = Path(__file__).parents[3]
CLASSES = 6
MODEL = "pills"
ADMIN = "admin"
API = "/api/2.0/mlflow"
PEOPLE = {"rita": Role.RELEASE_MANAGER, "erik": Role.ENGINEER, "gate": Role.GATE}


@dataclass
class Registry:
    """A running registry: where it is, who may enter, and what stands in it."""

    folder: Path
    port: int
    gate_port: int
    trust: TrustRoot
    home: Path
    toys: SimpleNamespace
    manifest: Any
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    made: int = 0

    @property
    def spare_port(self) -> int:
        """Where a second gate service may listen."""
        return free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def password(self, user: str) -> str:
        return (self.home / "passwords" / user).read_text().strip()

    def ask(self, user: str | None, method: str, path: str, **options: Any) -> requests.Response:
        """One call as a user; None: without a login."""
        login = None if user is None else (user, self.password(user))
        return requests.request(method, self.url + path, auth=login, timeout=60, **options)

    def version(self, version: str) -> dict[str, Any]:
        answer = self.ask(ADMIN, "GET", f"{API}/model-versions/get", params={"name": MODEL, "version": version})
        found: dict[str, Any] = answer.json()["model_version"]
        return found

    def tags(self, version: str) -> dict[str, str]:
        return {tag["key"]: tag["value"] for tag in self.version(version).get("tags", [])}

    def set_alias(self, user: str | None, version: str, alias: str, name: str = MODEL) -> requests.Response:
        body = {"name": name, "alias": alias, "version": version}
        return self.ask(user, "POST", f"{API}/registered-models/alias", json=body)

    def set_tag(self, user: str | None, version: str, key: str, value: str) -> requests.Response:
        body = {"name": MODEL, "version": version, "key": key, "value": value}
        return self.ask(user, "POST", f"{API}/model-versions/set-tag", json=body)

    def champion(self) -> str | None:
        answer = self.ask(ADMIN, "GET", f"{API}/registered-models/alias", params={"name": MODEL, "alias": "champion"})
        return answer.json()["model_version"]["version"] if answer.ok else None

    def register(self, wrong: int = 0, *, change: Callable[[Path], None] | None = None) -> str:
        """A version by erik whose bundle answers ``wrong`` of the classes wrongly; ``change`` may spoil its file."""
        self.made += 1
        folder = self.folder / f"run-{self.made}"
        folder.mkdir()
        colors = self.toys.toy_colors(CLASSES) + self.made / 10
        colors[:wrong] = (self.made + 1, 1, 1)
        bundle = self.toys.save_bundle(folder / "pillsnap.onnx", colors, self.manifest.hash)
        with self.login("erik"):
            with tracked_run("candidate", experiment="exp") as run:
                log_bundle(run, bundle)
            version = str(register(run.run_id, MODEL).version)
        if change is not None:
            change(self.model_file(version))
        return version

    def model_file(self, version: str) -> Path:
        """Where the server keeps a version's model."""
        location = self.ask(
            ADMIN, "GET", f"{API}/model-versions/get-download-uri", params={"name": MODEL, "version": version}
        ).json()["artifact_uri"]
        return self.home / "artifacts" / location.removeprefix("mlflow-artifacts:/") / "model.onnx"

    def environment(self, user: str) -> dict[str, str]:
        return {
            "MLFLOW_TRACKING_URI": self.url,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": self.password(user),
            "PILLSNAP_TRUST_ROOT": str(self.trust.folder),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "OMP_NUM_THREADS": "1",
        }

    def login(self, user: str) -> Any:
        patch = pytest.MonkeyPatch()
        for key, value in self.environment(user).items():
            patch.setenv(key, value)
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        patch.delenv("MLFLOW_REGISTRY_URI", raising=False)

        class Undo:
            def __enter__(self) -> None: ...

            def __exit__(self, *error: object) -> None:
                patch.undo()

        return Undo()

    def start(self, name: str, *words: object, user: str = "gate") -> subprocess.Popen[bytes]:
        """A command of ``pillsnap registry``, with its log in the folder."""
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pillsnap", "registry", *map(str, words)],
                env={**os.environ, "PILLSNAP_TRUST_ROOT": str(self.trust.folder), **self._for(name, user)},
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.processes[name] = process
        return process

    def _for(self, name: str, user: str) -> dict[str, str]:
        return {} if name in {"server", "users"} else self.environment(user)

    def start_server(self) -> None:
        options = ("--home", self.home, "--port", self.port, "--workers", 1)
        self.start("server", "server", *options, "--gate-url", f"http://127.0.0.1:{self.gate_port}/webhook")
        wait_until(lambda: answers(f"{self.url}/health"), 120, self, "server")

    def start_gate(self, name: str = "gate", poll_s: float = 2, port: int | None = None) -> None:
        port = port or self.gate_port
        options = ("--manifest", self.manifest.root, "--key", self.folder / "gate.key", "--poll", poll_s)
        secret = ("--webhook-secret", self.home / "webhook.secret", "--webhook-port", port)
        self.start(name, "gate-service", *options, *secret)
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/healthz"), 300, self, name)

    def stop(self, name: str, number: int = signal.SIGTERM) -> int:
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(60)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def judged(self, version: str, timeout_s: float = 300) -> str:
        """The verdict, when it is there."""
        wait_until(lambda: "gate.decision" in self.tags(version), timeout_s, self, "gate")
        return self.tags(version)["gate.decision"]


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False


def wait_until(ready: Callable[[], bool], timeout_s: float, registry: Registry, name: str) -> None:
    """Wait for something; a process that has ended meanwhile, or the end of the time, fails with its log."""
    end = time.monotonic() + timeout_s
    while not ready():
        process = registry.processes.get(name)
        if time.monotonic() > end or (process is not None and process.poll() is not None):
            pytest.fail(f"{name}: not ready\n{registry.log(name)[-3000:]}")
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def policy_for_few_pictures() -> str:
    document = yaml.safe_load((PROJECT / "registry" / "policy.yaml").read_text())
    document["minimum_test_images"] = {"total": 10, "real": 5, "per_class": 1}
    document["champion"]["margin"] = {"top1": 0.1, "real_top1": 0.1}
    return str(yaml.safe_dump(document))


@pytest.fixture(scope="package")
def registry(tmp_path_factory: pytest.TempPathFactory, toys: SimpleNamespace, fresh_store: Path) -> Iterator[Registry]:
    """Server and gate service, and nothing in the registry yet."""
    folder = tmp_path_factory.mktemp("registry")
    trust = TrustRoot(folder / "trust")
    trust.keys_folder.mkdir(parents=True)
    (trust.folder / "policy.yaml").write_text(policy_for_few_pictures())
    generate(folder / "gate.key", trust.keys_folder, now=datetime.now(UTC).replace(microsecond=0))
    images = [(k, k, "test", "real" if n < 7 else "studio") for n in range(10) for k in range(CLASSES)]
    manifest = toys.save_manifest(folder / "gate-data", toys.toy_colors(CLASSES), images)
    home = folder / "home"
    home.mkdir()
    shutil.copy(fresh_store, home / "mlflow.db")
    site = Registry(folder, free_port(), free_port(), trust, home, toys, manifest)
    try:
        for name, role in PEOPLE.items():
            assert site.start("users", "users", "add", name, "--role", role, "--home", home).wait(60) == 0
        site.start_server()
        site.start_gate()
        yield site
    finally:
        for name in list(site.processes):
            site.stop(name)
