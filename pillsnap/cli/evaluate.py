"""``pillsnap evaluate``: measure a bundle on the test split, and write evidence and pictures."""

from __future__ import annotations

from pathlib import Path

import click

from pillsnap.cli import journey
from pillsnap.cli.duration import Count
from pillsnap.cli.options import MaybePath
from pillsnap.cli.progress import Progress
from pillsnap.cli.project_run import project_run


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--manifest",
    "manifest_dir",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the manifest whose test split is answered.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for evidence.json, the report and the pictures; a former report there is replaced.",
)
@click.option("--threads", type=Count(), help="Threads of ONNX Runtime; by default all usable cores.")
@click.option(
    "--champion", type=MaybePath(path_type=Path), help="Bundle of the present champion: compared on the same images."
)
@click.option(
    "--quantised", type=click.Path(path_type=Path), help="Another bundle of the same net: how often it answers alike."
)
def evaluate(
    bundle: Path, manifest_dir: Path, out: Path, threads: int | None, champion: Path | None, quantised: Path | None
) -> None:
    """Measure BUNDLE (an .onnx file) on the test split: evidence and pictures."""
    from pillsnap.core.manifest import Manifest
    from pillsnap.evaluation.evidence import evaluate as measure
    from pillsnap.evaluation.report import check_folder, figures_table, write_report

    check_folder(out)
    manifest = Manifest.load(manifest_dir)
    with project_run(f"evaluate {bundle.stem}") as run:
        with Progress() as progress:
            result = measure(
                bundle,
                manifest,
                threads=threads,
                progress=lambda n, total: progress("test images", n, total),
                champion=champion,
                quantised=quantised,
            )
        write_report(result, manifest, out)
        if run is not None:
            journey.log_evaluation(run, result.evidence, manifest, out)
    click.echo(figures_table(result.evidence))
    for note in result.evidence.notes:
        click.echo(f"note: {note}")
    click.echo(f"evidence: {out / 'evidence.json'}")
    click.echo(f"report and pictures: {out / 'report.html'}")
