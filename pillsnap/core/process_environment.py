"""Environment variables that libraries read once, while they are loaded. One home for all of them.

`prepare_environment` runs when ``pillsnap`` itself is imported, so before whatever a module of it imports. Child
processes (loader and tuning workers, trials, servers) inherit what it set. Imports nothing but the standard library.
"""

from __future__ import annotations

import os

_THREAD_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Any of them says how the threads of OpenMP wait, so the user has decided."""

REPORTS_TO_NOBODY = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime, from 1.29 on; it makes a device id in the home folder too
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Switches of the libraries that report to their makers. OpenVINO has none: see ``pillsnap.inference.engines``."""

NO_HOME = "/nonexistent"
"""The home folder of a user that has none, as in Debian's list of users."""


def prepare_environment() -> None:
    """Set what the user has not set: nobody's own choice is changed, also that of reporting.

    ``HOME``, where nobody knows a home folder (no such variable, and a user id that no list of users has, as in a
    container): MLflow cannot be imported without one.

    ``OMP_WAIT_POLICY=PASSIVE``: torch's threads sleep while they wait for each other. By default they spin, and beside
    another busy process each burns the core that the other one needs (``benchmarks/shared_machine.py``).
    """
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = NO_HOME
    if not any(name in os.environ for name in _THREAD_WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    for name, value in REPORTS_TO_NOBODY.items():
        os.environ.setdefault(name, value)
