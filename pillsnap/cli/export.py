"""``pillsnap export``."""

from __future__ import annotations

from pathlib import Path

import click

from pillsnap.cli import journey
from pillsnap.cli.next_step import say_next
from pillsnap.cli.project_run import project_run


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--data",
    "data_dir",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the manifest that it was trained on.",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The .onnx file to write.")
@click.option("--run-id", default="", help="MLflow run of the training, to be recorded in the bundle.")
def export(checkpoint: Path, data_dir: Path, out: Path, run_id: str) -> None:
    """Turn CHECKPOINT into a bundle: one ONNX file whose answers are proven to be those of PyTorch."""
    from pillsnap.core.code_version import CodeVersion
    from pillsnap.core.manifest import Manifest
    from pillsnap.exporting.export import export_bundle
    from pillsnap.training.checkpoint import Checkpoint

    with project_run(f"export {checkpoint.stem}") as run:
        commit = str(CodeVersion.current())
        result = export_bundle(
            Checkpoint.load(checkpoint), Manifest.load(data_dir), out, run_id=run_id, git_commit=commit
        )
        if run is not None:
            journey.log_export(run, result)
    parity = result.parity
    click.echo(f"bundle: {result.bundle} ({result.size_mb:.1f} MB, sha256 {result.sha256[:16]})")
    click.echo(f"temperature fitted on the validation split: {result.temperature:.3f}")
    click.echo(
        f"against PyTorch on {parity.images} test images: largest difference "
        f"{parity.largest_relative_difference:.2e} of the largest logit, top-1 agreement {parity.top1_agreement:.1%}"
    )
    say_next("evaluate", out, "--manifest", data_dir, "--out", "evaluation")
