"""The tree of commands, exit statuses, and what a person reads when something is wrong."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import click
import pytest

from pillsnap.cli.main import COMMANDS, cli
from pillsnap.core.errors import StoreError
from pillsnap.core.manifest import Manifest

Call = Callable[..., tuple[int, str, str]]


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize(("path", "command"), [pytest.param(p, c, id=" ".join(p)) for p, c in commands()])
def test_every_command_and_option_has_help(path: tuple[str, ...], command: click.Command) -> None:
    assert command.help, f"pillsnap {' '.join(path)} has no help"
    assert command.help.strip().endswith("."), "whole sentences"
    for param in command.params:
        if isinstance(param, click.Option):
            assert param.help, f"pillsnap {' '.join(path)}: {param.name} has no help"
        else:
            shown = str(param.metavar or param.name).upper()
            assert shown in command.help, f"pillsnap {' '.join(path)}: the help does not explain {shown}"


def test_the_list_of_commands_agrees_with_the_commands(call: Call) -> None:
    status, out, _ = call("--help")
    assert status == 0
    for name, (_, _, text) in COMMANDS.items():
        assert f"{name} " in out
        assert text in out
    assert [path[0] for path, _ in commands() if len(path) == 1] == list(COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['pillsnap', '--help']\n"
        "from pillsnap.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as error: assert not error.code\n"
        "heavy = {'torch', 'timm', 'mlflow', 'onnxruntime', 'onnx', 'optuna', 'pandas', 'cv2', 'numpy', 'pydantic'}\n"
        "print('imported:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported: []"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--version",), 0, "pillsnap, version"),
        (("-h",), 0, "Usage:"),
        ((), 2, "Usage:"),
        (("nosuch",), 2, "No such command 'nosuch'"),
        (("--nosuch",), 2, "No such option"),
        (("run", "--nosuch"), 2, "No such option"),
        (("run", "--seed", "-1"), 2, "Invalid value for '--seed'"),
        (("run", "--seed", "one"), 2, "is not a valid integer"),
        (("run", "extra"), 2, "unexpected extra argument"),
        (("evaluate", "x.onnx", "--manifest", "x"), 2, "Missing option '--out'"),
        (("evaluate", "x.onnx", "--manifest", "x", "--out", "y", "--threads", "0"), 2, "'--threads'"),
        (("identify",), 2, "Missing argument 'PHOTOS...'"),
        (("identify", "x.jpg", "--top", "0"), 2, "'--top'"),
        (("demo", "--drugs", "1"), 2, "'--drugs'"),
    ],
)
def test_use_and_wrong_use(call: Call, arguments: tuple[str, ...], status: int, said: str) -> None:
    found, out, err = call(*arguments)
    assert found == status
    assert said in out + err


def test_the_demo_wants_the_projects_folder(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = call("demo")
    assert (status, "run the demo from the project's folder" in err) == (2, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("boom"), "error: unexpected RuntimeError: boom\nThis is a fault in PillSnap: set PILLSNAP_DEBUG"),
        (StoreError("the store is gone"), "error: the store is gone\n"),
        (OSError(28, "No space left on device"), "error: [Errno 28] No space left on device\n"),
        (KeyboardInterrupt(), "error: interrupted\n"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "needs the package torch: pip install"),
    ],
)
def test_what_goes_wrong_ends_in_words(
    call: Call, monkeypatch: pytest.MonkeyPatch, error: BaseException, said: str
) -> None:
    def fail(root: Path) -> Manifest:
        raise error

    monkeypatch.setattr(Manifest, "load", fail)
    status, out, err = call("data", "verify", "somewhere")
    assert (status, out) == (1, "")
    assert said in err
    assert "Traceback" not in err


def test_the_trace_is_there_for_who_asks(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Manifest, "load", lambda root: {}["missing"])
    monkeypatch.setenv("PILLSNAP_DEBUG", "1")
    status, _, err = call("data", "verify", "somewhere")
    assert status == 1
    assert "Traceback" in err
    assert "KeyError: 'missing'" in err


def test_doctor_in_a_good_environment(call: Call, store: object) -> None:
    status, out, err = call("doctor")
    assert status == 0, err
    for what in (
        "ok       mlflow ",
        "ok       torch ",
        "trains on",
        "ok       tf_efficientnet_lite0 can start from ImageNet weights: model.weights=package:efficientnet_lite0_",
        "ok       MLproject",
        "ok       MLflow store sqlite:",
    ):
        assert what in out
    assert "no champion" in out
    assert "MISSING" not in out


@pytest.mark.parametrize(
    ("package", "extra"), [("prometheus_client", "serve"), ("openvino.runtime", "openvino"), ("torch", "train")]
)
def test_a_missing_package_is_asked_for_by_its_extra(
    call: Call, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr("pillsnap.cli.main.cli.main", fail)
    status, _, err = call("serve")
    assert (status, f"needs the package {package}: pip install 'pillsnap[{extra}]'" in err) == (1, True)


def test_tune_status_takes_what_stands_before_it(call: Call, tmp_path: Path) -> None:
    import optuna

    optuna.create_study(study_name="one", storage=f"sqlite:///{tmp_path}/mine.db")
    status, out, err = call("tune", "--storage", f"sqlite:///{tmp_path}/mine.db", "status")
    assert (status, "one" in out) == (0, True), err
    status, out, err = call("tune", "--workspace", str(tmp_path / "w"), "status")
    assert (status, f"{tmp_path}/w/tune/optuna.db: no such file" in err) == (2, True)


def test_what_is_installed_but_cannot_be_loaded(call: Call, store: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slim image without libGL: the package is there, and OpenCV is not."""
    real = importlib.import_module

    def load(name: str, *rest: Any) -> Any:
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file")
        return real(name, *rest)

    with monkeypatch.context() as lacking:
        lacking.setattr("importlib.import_module", load)
        status, out, err = call("doctor")
    assert (status, "error: 1 missing" in err) == (1, True)
    assert "opencv-python is installed but cannot be loaded (ImportError: libGL.so.1" in out
    assert "→ a slim image lacks two libraries: apt-get install libgl1 libglib2.0-0" in out
    assert "MLflow store" in out, "it goes on"

    def fail(*_: Any, **__: Any) -> None:
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr("pillsnap.cli.main.cli.main", fail)
    status, out, err = call("identify")
    assert (status, "fault in PillSnap" in err) == (1, False)
    assert "installed but cannot be loaded (libGL.so.1" in err


def test_doctor_says_what_to_do(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def version(name: str) -> str:
        if name in ("onnx", "timm"):
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr("pillsnap.cli.doctor.version", version)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://anna:geheim@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)
    status, out, err = call("doctor")
    assert (status, "error: 2 missing" in err) == (1, True)
    lines = out.splitlines()
    assert "MISSING  onnx is not installed" in lines
    assert "note     timm is not installed" in lines
    assert "pip install" in lines[lines.index("note     timm is not installed") + 1]
    assert f"note     MLproject is not in {tmp_path}" in lines
    [at] = [number for number, line in enumerate(lines) if line.startswith("MISSING  MLflow store: ")]
    assert lines[at + 1].strip().startswith("→ set MLFLOW_TRACKING_URI")
    assert "geheim" not in out + err
