"""``pillsnap benchmark``."""

from __future__ import annotations

from pathlib import Path

import click

from pillsnap.cli.progress import Progress


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("photos", nargs=-1, metavar="[PHOTO...]", type=click.Path(path_type=Path))
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="File for all figures.")
@click.option(
    "--beside",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Another bundle, timed in turns with the first in the same run; repeatable.",
)
@click.option(
    "--threads",
    multiple=True,
    type=click.IntRange(min=1),
    help="Threads within one inference; repeatable. By default 1, 2, 4 … up to all usable cores.",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(min=1, max=1024),
    default=(1, 8),
    show_default=True,
    help="Images at once, for the model alone; repeatable.",
)
@click.option("--runs", type=click.IntRange(min=1), default=100, show_default=True, help="Runs of each figure.")
@click.option("--warm-up", type=click.IntRange(min=0), default=10, show_default=True, help="Runs that do not count.")
def benchmark(
    bundle: Path,
    photos: tuple[Path, ...],
    json_file: Path | None,
    beside: tuple[Path, ...],
    threads: tuple[int, ...],
    batches: tuple[int, ...],
    runs: int,
    warm_up: int,
) -> None:
    """Time BUNDLE by threads, batch and stage, from the bytes of each [PHOTO...] to the top 5.

    Without photos: a drawn 12-megapixel JPEG, and the 512-pixel one that the phone makes of it.
    """
    from pillsnap.core.files import write_json
    from pillsnap.core.images import read_image_bytes
    from pillsnap.evaluation.benchmark import Photo, drawn_photos, run_benchmark

    chosen = [Photo(path.name, read_image_bytes(path)) for path in photos] or list(drawn_photos())
    with Progress() as progress:
        result = run_benchmark(
            [bundle, *beside],
            chosen,
            threads=threads or None,
            batches=batches,
            runs=runs,
            warm_up=warm_up,
            progress=progress,
        )
    click.echo(result.markdown())
    if json_file is not None:
        write_json(json_file, result.report())
        click.echo(f"\nfigures: {json_file}")
