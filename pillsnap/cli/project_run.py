"""The MLflow run of commands that open none by themselves: the one of ``mlflow run -e export`` and the like."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pillsnap.tracking.run import TrackedRun


@contextmanager
def project_run(name: str) -> Iterator[TrackedRun | None]:
    """The run that ``mlflow run`` has opened for this process; None without one, and MLflow is not even imported.

    Args:
        name: what the run is called from now on.

    Raises:
        StoreError: the store cannot be reached, or the run is gone or not empty.
    """
    if "MLFLOW_RUN_ID" not in os.environ:
        yield None
        return
    from pillsnap.tracking.run import tracked_run

    with tracked_run(name) as run:
        yield run
