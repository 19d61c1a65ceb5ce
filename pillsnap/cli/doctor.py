"""``pillsnap doctor``: what is installed, which device, which stores, and what to do about what is missing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from pillsnap import __version__
from pillsnap.core.errors import PillSnapError, TrainingError
from pillsnap.core.process_environment import NO_HOME

_BASE = ("mlflow", "onnxruntime", "onnx", "opencv-python", "numpy", "pyarrow", "pydantic", "scikit-learn", "sqlalchemy")
_TRAIN = ("torch", "torchvision", "timm", "optuna", "onnxscript")
_PAIR = "torch and torchvision must be a pair: pip install 'pillsnap[train]' -c constraints.txt"
_LOADED = {
    "opencv-python": ("cv2", "a slim image lacks two libraries: apt-get install libgl1 libglib2.0-0"),
    "onnxruntime": ("onnxruntime", "pip install --force-reinstall onnxruntime -c constraints.txt"),
    "torch": ("torch", _PAIR),
    "torchvision": ("torchvision", _PAIR),
}
"""What is loaded too, as it may be installed and not work: the module, and what to do then."""
_LEAST_FREE_GB = 10


@dataclass(frozen=True)
class _Finding:
    state: str
    """ok, note or MISSING."""
    what: str
    advice: str = ""


@click.command()
def doctor() -> None:
    """Say what is installed, which device and stores there are, and what to do about what is missing."""
    click.echo(f"PillSnap {__version__}, Python {platform.python_version()}, {platform.platform()}")
    missing = 0
    for finding in _examine():
        missing += finding.state == "MISSING"
        click.echo(f"{finding.state:8s} {finding.what}")
        if finding.advice:
            click.echo(f"         → {finding.advice}")
    if missing:
        raise PillSnapError(f"{missing} missing; see the arrows above")


def _examine() -> Iterator[_Finding]:
    for package in _BASE:
        yield _package(package, "MISSING", "pip install pillsnap -c constraints.txt")
    for package in _TRAIN:
        yield _package(
            package,
            "note",
            "needed for training, tuning and exporting: pip install 'pillsnap[train]' -c constraints.txt",
        )
    for package in ("prometheus-client", "python-multipart"):
        yield _package(package, "note", "needed for pillsnap serve: pip install 'pillsnap[serve]' -c constraints.txt")
    yield _package(
        "openvino",
        "note",
        "needed only for bundles that name it as their engine: pip install 'pillsnap[openvino]' -c constraints.txt",
    )
    if Path.home() == Path(NO_HOME):
        yield _Finding("note", "this user has no home folder", "set HOME, or name each key: --private FILE, --key FILE")
    yield _device()
    yield from _packaged_weights()
    yield from _project_files()
    yield _disk()
    yield from _store()


def _package(name: str, state: str, advice: str) -> _Finding:
    try:
        found = _Finding("ok", f"{name} {version(name)}")
    except PackageNotFoundError:
        return _Finding(state, f"{name} is not installed", advice)
    module, remedy = _LOADED.get(name, ("", ""))
    try:
        if module:
            importlib.import_module(module)
    except Exception as error:  # a library of the system that is missing, or parts that do not fit each other
        said = f"{type(error).__name__}: {error}"
        return _Finding("MISSING", f"{name} is installed but cannot be loaded ({said})", remedy)
    return found


def _device() -> _Finding:
    if importlib.util.find_spec("torch") is None or not _loads("torch"):
        return _Finding("note", f"no torch: this environment serves and evaluates only ({os.cpu_count()} cores)")
    from pillsnap.training.device import Device

    device = Device.choose(mixed_precision=True)
    return _Finding("ok", f"trains on {device} ({os.cpu_count()} cores)")


def _packaged_weights() -> Iterator[_Finding]:
    """Which backbones can start from pretrained weights without a model hub."""
    from pillsnap.training.packaged_weights import PACKAGED_WEIGHTS

    for entry in PACKAGED_WEIGHTS:
        what = f"{entry.backbone} can start from ImageNet weights: model.weights={entry.key} ({entry.license})"
        try:
            entry.require()
        except TrainingError as error:
            missing = entry.find() is None
            yield _Finding("note", what if missing else f"{entry.backbone}: {error}", entry.install)
        else:
            yield _Finding("ok", what)


def _loads(module: str) -> bool:
    try:
        importlib.import_module(module)
    except Exception:  # it was told above
        return False
    return True


def _project_files() -> Iterator[_Finding]:
    for name in ("MLproject", "registry/policy.yaml", "experiments/demo.yaml"):
        if Path(name).is_file():
            yield _Finding("ok", name)
        else:
            yield _Finding("note", f"{name} is not in {Path.cwd()}", "run PillSnap from the project's folder")


def _disk() -> _Finding:
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    if free_gb < _LEAST_FREE_GB:
        return _Finding("note", f"{free_gb:.0f} GB free in {Path.cwd()}", "training wants 10 GB and more: make room")
    return _Finding("ok", f"{free_gb:.0f} GB free in {Path.cwd()}")


def _store() -> Iterator[_Finding]:
    from pillsnap.core.passwords import hide_passwords
    from pillsnap.tracking.store import connect, tracking_uri

    uri = tracking_uri()
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        yield _Finding("note", f"MLflow store {uri} is not there yet: the first run makes it")
        return
    try:
        connect()
    except PillSnapError as error:
        yield _Finding("MISSING", f"MLflow store: {error}", "set MLFLOW_TRACKING_URI to a store that runs, or unset it")
        return
    yield _Finding("ok", f"MLflow store {hide_passwords(uri)}")
    yield _champion()


def _champion() -> _Finding:
    try:
        from pillsnap.registry.champion import champion_session

        with champion_session("pillsnap") as (session, number):
            classes = len(session.metadata.classes)
            return _Finding("ok", f"champion: pillsnap version {number}, {classes} drugs")
    except (PillSnapError, ImportError) as error:
        return _Finding("note", f"no champion: {error}")
