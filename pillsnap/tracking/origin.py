"""Where a run comes from: code, packages and machine, so that it can be done again."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import psutil

from pillsnap.core.code_version import uncommitted_diff
from pillsnap.tracking.run import TrackedRun

DIFF_FILE = "code/uncommitted.diff"
PACKAGES_FILE = "environment/packages.txt"
MACHINE_FILE = "environment/machine.json"


def log_origin(run: TrackedRun, device: Mapping[str, Any]) -> None:
    """Log the uncommitted changes (where there are some), the installed packages and the machine.

    Args:
        run: the run.
        device: what the caller knows of the training device and its threads; joins the machine's facts.
    """
    diff = uncommitted_diff()
    if diff:
        run.log_text(diff, DIFF_FILE)
    run.log_text(installed_packages(), PACKAGES_FILE)
    run.log_text(json.dumps({**machine(), **device}, indent=1, ensure_ascii=False) + "\n", MACHINE_FILE)


def installed_packages() -> str:
    """``name==version``, one a line, as pip takes it."""
    found = {(d.metadata["Name"] or "").lower(): f"{d.metadata['Name']}=={d.version}" for d in distributions()}
    return "".join(f"{found[name]}\n" for name in sorted(found) if name)


def machine() -> dict[str, Any]:
    """Python, system, processor, memory and NVIDIA's cards. No name of a host or a user."""
    return {
        "python": platform.python_version(),
        "os": platform.platform(),
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus_name_mib_driver": query_gpus("name,memory.total,driver_version"),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def query_gpus(fields: str) -> list[str]:
    """One line of values for each NVIDIA card; empty where there is none, or no driver.

    Args:
        fields: as nvidia-smi's ``--query-gpu`` takes them.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return result.stdout.strip().splitlines()
