"""Environment variables that native libraries read once, while they are loaded. One home for all of them.

`prepare_environment` runs before anything heavy is imported: first in the command line's ``main``, and in the packages
that import torch, for whoever calls them as functions. Child processes (loader and tuning workers, trials, servers)
inherit what it set. Imports nothing but the standard library.
"""

from __future__ import annotations

import os

_THREAD_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Any of them says how the threads of OpenMP wait, so the user has decided."""


def prepare_environment() -> None:
    """Set what the user has not set.

    ``OMP_WAIT_POLICY=PASSIVE``: torch's threads sleep while they wait for each other. By default they spin, and beside
    another busy process each burns the core that the other one needs (``benchmarks/shared_machine.py``).
    """
    if not any(name in os.environ for name in _THREAD_WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
