"""Whatever dies in the middle, a candidate gets exactly one decision. The record of the registry is what counts it."""

from __future__ import annotations

import signal
import sqlite3
import time
from typing import Any

import pytest

MODEL = "pills"
pytestmark = pytest.mark.e2e


def decisions(registry: Any, version: str) -> int:
    """Words of the gate that the registry has taken for a version."""
    with sqlite3.connect(registry.home / "mlflow.db") as base:
        question = "SELECT COUNT(*) FROM pillsnap_audit WHERE action = 'judged' AND outcome = 'done' AND version = ?"
        return int(base.execute(question, (version,)).fetchone()[0])


def wait_for_work(registry: Any, version: str) -> None:
    """Until the gate says at the version that it is measuring."""
    end = time.monotonic() + 60
    while "is measuring" not in registry.version(version).get("description", ""):
        assert time.monotonic() < end, registry.log("gate")[-2000:]
        assert "gate.decision" not in registry.tags(version), "too fast to be interrupted"
        time.sleep(0.02)


def settle(registry: Any) -> None:
    time.sleep(5)  # two rounds of the poller: time enough for a decision too many


def test_attack_gate_service_killed_in_the_middle(registry: Any) -> None:
    version = registry.register()
    registry.set_alias("erik", version, "candidate")
    wait_for_work(registry, version)
    registry.stop("gate", signal.SIGKILL)
    assert decisions(registry, version) == 0
    assert registry.set_alias("rita", version, "champion").status_code == 403

    registry.start_gate()
    assert registry.judged(version) == "PROMOTE"
    settle(registry)
    assert decisions(registry, version) == 1


@pytest.mark.long
def test_a_restart_judges_nothing_again(registry: Any) -> None:
    version = registry.register()
    registry.set_tag("erik", version, "CANDIDATE", "yes")
    registry.judged(version)
    assert registry.stop("gate") == 0
    registry.start_gate()
    settle(registry)
    assert decisions(registry, version) == 1


@pytest.mark.long
def test_the_webhook_wakes_the_service(registry: Any) -> None:
    registry.stop("gate")
    registry.start_gate(poll_s=3600)
    try:
        settle(registry)  # the first look is over: from now on only a message wakes it
        version = registry.register()
        registry.set_alias("erik", version, "candidate")
        assert registry.judged(version) == "PROMOTE"
        settle(registry)  # the tags that it wrote were messages too
        assert decisions(registry, version) == 1
    finally:
        registry.stop("gate")
        registry.start_gate()


@pytest.mark.long
def test_two_services_at_once(registry: Any) -> None:
    registry.start_gate("second", poll_s=0.2, port=registry.spare_port)
    try:
        version = registry.register()
        registry.set_alias("erik", version, "candidate")
        assert registry.judged(version) == "PROMOTE"
        settle(registry)
        assert decisions(registry, version) == 1
    finally:
        assert registry.stop("second") == 0


@pytest.mark.long
def test_attack_registry_down_while_judging(registry: Any) -> None:
    version = registry.register()
    registry.set_alias("erik", version, "candidate")
    wait_for_work(registry, version)
    registry.stop("server")
    time.sleep(6)
    assert registry.processes["gate"].poll() is None, "the service waits for the registry"
    registry.start_server()
    assert registry.judged(version) == "PROMOTE"
    settle(registry)
    assert decisions(registry, version) == 1
