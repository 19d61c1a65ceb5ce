"""``pillsnap parity``."""

from __future__ import annotations

from pathlib import Path

import click

from pillsnap.cli.progress import Progress


@click.command()
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLES...", type=click.Path(path_type=Path))
@click.option(
    "--manifest",
    "manifest_dir",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the manifest whose test images are answered.",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Checkpoint that the first bundle was exported from: PyTorch then is the first row.",
)
@click.option("--images", type=click.IntRange(min=1), help="At most so many test images; by default all.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of each engine; by default all usable cores.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="File for the rows.")
def parity(
    bundles: tuple[Path, ...],
    manifest_dir: Path,
    checkpoint: Path | None,
    images: int | None,
    threads: int | None,
    json_file: Path | None,
) -> None:
    """Compare BUNDLES... on the test images: one at a time and eight at once, as they are and as a phone sends them."""
    from pillsnap.core.files import write_json
    from pillsnap.core.manifest import Manifest
    from pillsnap.core.preprocessing import InferencePreprocessor
    from pillsnap.evaluation.parity import Contestant, parity_report, parity_rows, parity_table
    from pillsnap.inference.session import PillSession

    contestants = []
    if checkpoint is not None:
        from pillsnap.exporting.export import checkpoint_logits
        from pillsnap.training.checkpoint import Checkpoint

        trained = Checkpoint.load(checkpoint)
        preprocessor = InferencePreprocessor(trained.config.preprocessing)
        contestants.append(Contestant("PyTorch", preprocessor, trained.kcodes, checkpoint_logits(trained)))
    for bundle in bundles:
        session = PillSession.load(bundle, threads=threads)
        name = f"{bundle.stem} ({session.metadata.precision}, {session.metadata.engine})"
        contestants.append(Contestant.of_session(name, session))
    with Progress() as progress:
        rows = parity_rows(
            contestants,
            Manifest.load(manifest_dir),
            limit=images,
            progress=lambda done, total: progress("test images", done, total),
        )
    click.echo(parity_table(rows))
    if json_file is not None:
        write_json(json_file, parity_report(rows))
        click.echo(f"\nfigures: {json_file}")
