"""``--dry-run``: one batch of everything, before a night is given to it.

Reads the real pictures of a few rows and does with them what the real run does; all it writes lies in a temporary
folder, and no run is opened. What is prepared from raw pictures before that stays, as it does for the real run.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

if TYPE_CHECKING:
    from pillsnap.core.experiment import ExperimentConfig
    from pillsnap.core.manifest import Manifest, Split

_TEST_IMAGES = 8


def rehearse(config: ExperimentConfig, data_name: str, workspace: Path) -> None:
    """An update, validation, a checkpoint and the export of the untrained net; a line for what was done.

    Raises:
        PillSnapError: whatever the real run would refuse.
    """
    from pillsnap.cli import journey
    from pillsnap.data.cache import PreparedCache
    from pillsnap.exporting.export import export_bundle
    from pillsnap.training.batches import TrainingData
    from pillsnap.training.checkpoint import Checkpoint
    from pillsnap.training.device import Device
    from pillsnap.training.trainer import Nobody, fit

    manifest = journey.checked_data(config, data_name, workspace)
    started = time.monotonic()
    few = few_rows(manifest, config)
    # the whole training would be one update: nothing that takes epochs fits into it
    no_epochs = dict.fromkeys(("warmup_epochs", "freeze_epochs", "mix_off_epochs"), 0)
    short = journey.with_local_weights(config, workspace)[0].with_overrides(
        {"training.epochs": 1, "logging.every_steps": 1} | {f"training.{key}": n for key, n in no_epochs.items()},
        "--dry-run",
    )
    with tempfile.TemporaryDirectory(prefix="pillsnap-dry-run-") as name:
        folder = Path(name)
        data = TrainingData.of(few, PreparedCache.build(few, config.preprocessing, folder / "cache"), short)
        result = fit(short, data, folder / "checkpoints", Nobody())
        checkpoint = Checkpoint.load(result.best_checkpoint)
        losses = result.history[0]
        of_teacher = f", {losses['train_distillation_loss']:.3f} to its teacher" if config.distillation else ""
        click.echo(
            f"trained one update of {len(data.train_indices)} images on {Device.of(config)}: loss "
            f"{losses['train_loss']:.3f}{of_teacher}; validated {len(data.val_indices)} images; checkpoint "
            f"{result.best_checkpoint.stat().st_size / 1e6:.1f} MB"
        )
        exported = export_bundle(checkpoint, few, folder / "pillsnap.onnx")
        click.echo(
            f"exported {exported.size_mb:.1f} MB: answers as PyTorch does, within "
            f"{exported.parity.largest_relative_difference:.0e} of the largest logit"
        )
    click.echo(f"dry run: all well after {time.monotonic() - started:.1f} s; nothing is kept")


def few_rows(manifest: Manifest, config: ExperimentConfig) -> Manifest:
    """A manifest of the same root and catalog: one update to train, two to validate, a few to test, evenly chosen."""
    import pyarrow as pa

    from pillsnap.core.manifest import Manifest

    def some(split: Split, count: int, domain: str = "all") -> pa.Table:
        rows = manifest.split(split)
        if domain != "all":
            rows = rows.filter(pa.compute.equal(rows["domain"], domain))
        return rows.take(np.unique(np.linspace(0, rows.num_rows - 1, min(count, rows.num_rows)).astype(np.int64)))

    batch = config.data.batch_size * config.training.accumulate
    tables = [some("train", batch, config.data.domain), some("val", 2 * batch), some("test", _TEST_IMAGES)]
    summary = {key: value for key, value in manifest.summary.items() if key not in ("hash", "manifest_version")}
    return Manifest.build(manifest.root, summary, pa.concat_tables(tables), manifest.catalog)
