import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import yaml

from pillsnap.core.process_environment import NO_HOME, REPORTS_TO_NOBODY, prepare_environment

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
READ_AT_TORCH = """
import os, sys
class Torch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch finds", os.environ.get("OMP_WAIT_POLICY"))
            raise SystemExit
sys.meta_path.insert(0, Torch())
"""
"""Stands where torch would be loaded, which takes seconds, and tells what torch would read."""


def run(code: str, **variables: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **variables}, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("clean")
def test_threads_sleep_while_they_wait() -> None:
    prepare_environment()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("name", VARIABLES)
def test_what_the_user_has_set_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "ACTIVE")
    prepare_environment()
    assert {key: os.environ[key] for key in VARIABLES if key in os.environ} == {name: "ACTIVE"}


@pytest.mark.usefixtures("clean")
def test_no_library_reports_unless_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in REPORTS_TO_NOBODY:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    prepare_environment()
    assert {name: os.environ[name] for name in REPORTS_TO_NOBODY} == {
        **REPORTS_TO_NOBODY, "MLFLOW_DISABLE_TELEMETRY": "false",
    }  # fmt: skip


def test_a_user_without_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """No HOME, and a user id that nobody knows: as containers run, and MLflow cannot be imported."""
    monkeypatch.setenv("HOME", "/root")
    prepare_environment()
    assert os.environ["HOME"] == "/root"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", mock.Mock(side_effect=KeyError))
    prepare_environment()
    assert os.environ["HOME"] == NO_HOME


@pytest.mark.parametrize(
    "entry",
    ["from pillsnap.cli.main import main; main()", "import runpy; runpy.run_module('pillsnap', None, '__main__')"],
)
def test_the_command_line_sets_it(entry: str) -> None:
    code = f"""
import atexit, os, sys
sys.argv = ["pillsnap", "--version"]
atexit.register(lambda: print(os.environ.get("OMP_WAIT_POLICY"), "torch" in sys.modules, "numpy" in sys.modules))
{entry}
"""
    assert run(code).splitlines()[-1] == "PASSIVE False False"
    assert run(code, OMP_WAIT_POLICY="active").splitlines()[-1] == "active False False"


@pytest.mark.parametrize("module", ["pillsnap.training.device", "pillsnap.exporting.export"])
def test_it_is_set_before_the_library_loads_torch(module: str) -> None:
    assert run(f"{READ_AT_TORCH}\nimport {module}") == "torch finds PASSIVE\n"


def test_images_and_conda_environments_say_the_same() -> None:
    """For what is started there without PillSnap: MLflow's own commands, a script."""
    project = Path(__file__).parents[2]
    assert yaml.safe_load((project / "conda.yaml").read_text())["variables"] == REPORTS_TO_NOBODY
    image = (project / "docker" / "Dockerfile").read_text()
    assert all(f"\n    {name}={value} \\" in image for name, value in REPORTS_TO_NOBODY.items())
    assert "\nui: export MLFLOW_DISABLE_TELEMETRY ?= true\n" in (project / "Makefile").read_text()
