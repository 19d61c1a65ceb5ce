"""What all tests share: the environment of every process, toy builders, an empty MLflow store, a database server."""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import os
import runpy
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings

import pillsnap  # noqa: F401  # before any library that reads the environment which it sets

HERE = Path(__file__).parent
ONE_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c636000000002000148afa4710000000049454e44ae426082"
)
"""A PNG."""
TOGETHER = ("tests/e2e/registry/", "tests/serving/page/", "tests/e2e/test_journey.py", "tests/e2e/test_tuning.py")
"""Folders and files whose tests share what is dear to start: one worker runs all of a folder. Else a file is a unit."""

settings.register_profile("short", max_examples=20, deadline=None, derandomize=True)
settings.register_profile("long", max_examples=200, deadline=None)
settings.load_profile("short")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What shares a server or a browser goes to one worker, and what takes longest is begun first."""
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class ByFixture(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((place for place in TOGETHER if nodeid.startswith(place)), nodeid.split("::")[0])

    config.option.loadscope_reorder = False
    return ByFixture(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Servers and browsers first: at the end one worker would wait for the other."""
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)


@pytest.fixture(scope="session")
def toys() -> SimpleNamespace:
    """The builders of ``tests/toy.py``: a tiny ONNX bundle made without torch, and tiny manifests."""
    return SimpleNamespace(**runpy.run_path(str(HERE / "toy.py")))


@pytest.fixture(scope="session")
def fresh_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store, to be copied; making its tables takes seconds, and once a session is enough."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("mlflow.pyfunc")  # MLflow warns of its own type hints when it is imported
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.getbasetemp() / "fresh-mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(fresh_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty store that MLFLOW_TRACKING_URI points at, and a client to look into it."""
    from mlflow.tracking import MlflowClient

    shutil.copy(fresh_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return MlflowClient(uri, registry_uri=uri)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are laid out, but not drawn: that takes most of the time where they are not the point."""
    from matplotlib.figure import Figure

    def save(self: Any, target: Any, **_: Any) -> None:
        if hasattr(target, "write"):
            target.write(ONE_PIXEL)
        else:
            Path(target).write_bytes(ONE_PIXEL)

    monkeypatch.setattr(Figure, "savefig", save)


@pytest.fixture(scope="session")
def forkserver() -> Any:
    """What processes are forked from that need torch and MLflow: each would import them for seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pillsnap.training.trainer", "pillsnap.tuning.trial", "pillsnap.tuning.worker"])
    return context


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """``watch(command, env=…, cwd=…)``: a command in a process of its own, to be told, killed and looked for
    (``tests/processes.py``). Nothing of it is left after the test."""
    watched = runpy.run_path(str(HERE / "processes.py"))["Watched"]
    with ExitStack() as stack:
        numbers = itertools.count()
        yield lambda command, **options: stack.enter_context(
            watched(command, tmp_path / f"process-{next(numbers)}.out", **options)
        )


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A PostgreSQL server, with ``url``, ``new_database()``, ``stop()`` and ``start()``."""
    servers = runpy.run_path(str(HERE / "postgres.py"))
    tools = servers["binaries"]()
    if tools is None:
        if os.environ.get("PILLSNAP_REQUIRE_POSTGRES") == "1":
            pytest.fail("PostgreSQL is not installed, and PILLSNAP_REQUIRE_POSTGRES=1")
        pytest.skip("PostgreSQL is not installed")
    with servers["postgres"](tools) as server:
        yield server
