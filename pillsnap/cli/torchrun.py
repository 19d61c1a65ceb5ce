"""Commands that torchrun starts several times: one process leads, the others only train.

``torchrun --nproc-per-node=2 -m pillsnap train …``; with several machines the same command on each, with torchrun's
own options for the meeting place. Imports torch only where torchrun has started the process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pillsnap.core.experiment import ExperimentConfig


@contextmanager
def joined_processes() -> Iterator[bool]:
    """Join the processes of torchrun; True in the one that logs, writes and reports. Raises TrainingError."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield True
        return
    from pillsnap.training.distributed import process_group

    with process_group() as ranks:
        if not ranks.is_first:
            logging.getLogger("pillsnap").setLevel(logging.WARNING)
        yield ranks.is_first


def follow(config: ExperimentConfig, data_name: str, workspace: Path) -> None:
    """Take part in the training that the first process leads, which writes all files and all figures."""
    from pillsnap.cli import journey
    from pillsnap.training.distributed import failing_together
    from pillsnap.training.trainer import Nobody, fit

    with failing_together():
        startable, _ = journey.with_local_weights(config, workspace)
        manifest = journey.find_data(data_name, workspace)
        data = journey.load_training_data(config, manifest, workspace)
        fit(startable, data, workspace, Nobody())
