"""``pillsnap data``: prepare a data set, verify one, render the embedded demo pictures.

Translates options into requests and results into lines; decides nothing.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pillsnap.cli.data_compare import catalog, diff
from pillsnap.cli.next_step import say_next
from pillsnap.cli.progress import Progress
from pillsnap.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pillsnap.data.prepare import PrepareResult

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_SHOWN = 5


@click.group()
def data() -> None:
    """Prepare data sets: links, mixing, split, manifest."""


data.add_command(catalog)
data.add_command(diff)


@data.command()
@click.option("--raw", type=_FOLDER, help="Short for DIR/drugs.json, DIR/studio and DIR/real_photos.")
@click.option("--drugs", type=_FILE, help="Drug list (JSON).")
@click.option("--studio", type=_FOLDER, help="Tree of studio images (AI Hub, or <K-CODE> folders).")
@click.option("--real", type=_FOLDER, help="Tree of real photos (<K-CODE> folders).")
@click.option("--out", type=_FOLDER, required=True, help="Folder of the data set (links and manifest).")
@click.option("--config", type=_FILE, help="Experiment file; its preprocessing and augmentation are recorded.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of mixture and split.")
@click.option("--name", default="pillsnap", show_default=True, help="Name of the data set.")
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, help="0: one for each core.")
@click.option(
    "--max-damage",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Largest share of pictures that the audit may quarantine.",
)
@click.option(
    "--min-side", type=click.IntRange(min=1), help="Pixels that a picture's shorter side needs.  [default: 64]"
)
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice(["too_small", "too_dark", "too_bright", "blank", "blurred", "noise"]),
    help="Use such pictures all the same, and only note them; repeatable.",
)
@click.option(
    "--studio-layout",
    type=click.Choice(["auto", "aihub", "folders"]),
    default="auto",
    show_default=True,
    help="How studio pictures are named; folders: their names tell nothing.",
)
@click.option(
    "--real-layout",
    type=click.Choice(["auto", "capture", "folders"]),
    default="auto",
    show_default=True,
    help="How real photos are named; folders: their names tell nothing.",
)
@click.option(
    "--combinations", is_flag=True, help="Also train on studio pictures of several pills, cut out by their boxes."
)
@click.option(
    "--previous", type=_FOLDER, help="Data set to grow from, beside the one in --out: its indices and split stay."
)
@click.option("--fresh", is_flag=True, help="Forget the data set in --out: indices and split are made anew.")
def prepare(
    raw: Path | None,
    drugs: Path | None,
    studio: Path | None,
    real: Path | None,
    config: Path | None,
    min_side: int | None,
    allow: tuple[str, ...],
    **rest: Any,
) -> None:
    """Prepare a data set: link, audit, mix 3:7, split by capture group, write the manifest.

    A data set that is there already grows: no picture changes its split, no drug its index.
    """
    from pillsnap.core.experiment import ExperimentConfig
    from pillsnap.data.audit import AuditLimits
    from pillsnap.data.prepare import PrepareRequest
    from pillsnap.data.prepare import prepare as run
    from pillsnap.data.sources import raw_layout

    if raw is not None:
        if not raw.is_dir():
            raise DataError(f"{raw}: no such folder; give the one that holds drugs.json, studio and real_photos")
        raw_drugs, raw_studio, raw_real = raw_layout(raw)
        drugs, studio, real = drugs or raw_drugs, studio or raw_studio, real or raw_real
    if drugs is None:
        raise ConfigError("no drug list: give --drugs FILE, or --raw DIR with a drugs.json in it")
    experiment = ExperimentConfig.load(config) if config is not None else ExperimentConfig()
    request = PrepareRequest(
        drugs=drugs,
        studio=studio,
        real=real,
        preprocessing=experiment.preprocessing,
        augmentation=experiment.augmentation,
        limits=AuditLimits(allow=frozenset(allow), **({} if min_side is None else {"min_side_px": min_side})),
        **rest,
    )
    started = time.monotonic()
    with Progress() as progress:
        result = run(request, progress)
    _print_result(result, time.monotonic() - started)
    say_next(
        "run", "--data", result.manifest.root, "--config", "<experiment.yaml>", note="or tune, with the same options"
    )


@data.command()
@click.argument("manifest_dir", type=click.Path(path_type=Path))
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, help="0: one for each core.")
def verify(manifest_dir: Path, workers: int) -> None:
    """Compare the pictures with the MANIFEST_DIR that recorded them; exit status 1 where something differs."""
    from pillsnap.core.manifest import Manifest
    from pillsnap.data.verify import verify as run

    manifest = Manifest.load(manifest_dir)
    with Progress() as progress:
        report = run(manifest, workers, progress)
    for title, paths in (("changed", report.changed), ("missing", report.missing), ("extra", report.extra)):
        for path in paths[:_SHOWN]:
            click.echo(f"{title}: {path}")
        if len(paths) > _SHOWN:
            click.echo(f"{title}: and {len(paths) - _SHOWN} more")
    if not report.is_clean:
        advice = "put the files back, or prepare the data again"
        if form := report.differ_in_form_only:
            advice = (
                f"{form} of the missing ones are there under a name that looks the same: its Korean letters are "
                "written in another Unicode form (NFD in place of NFC, or the other way round), as macOS and archives "
                "do. Rename them: convmv -f utf-8 -t utf-8 --nfc --notest -r FOLDER (or --nfd)"
            )
        raise DataError(
            f"{manifest.root}: {len(report.changed)} changed, {len(report.missing)} missing, "
            f"{len(report.extra)} extra; {advice}"
        )
    click.echo(f"{manifest.root}: all {manifest.rows.num_rows} pictures are those of manifest {manifest.hash[:16]}")


@data.command()
@click.option("--out", type=_FOLDER, required=True, help="Folder for drugs.json, studio and real_photos.")
@click.option("--drugs", type=click.IntRange(min=2), default=100, show_default=True, help="Number of drugs.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same pictures.")
@click.option("--studio-per-drug", type=int, default=15, show_default=True, help="Studio images per drug.")
@click.option("--real-per-drug", type=int, default=35, show_default=True, help="Real photos per drug, 1 to 240.")
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, help="0: one for each core.")
def render(out: Path, drugs: int, seed: int, studio_per_drug: int, real_per_drug: int, workers: int) -> None:
    """Render the embedded demo pictures: synthetic pills whose files follow the real naming."""
    from pillsnap.synthetic.dataset import DemoSpec, render_dataset

    spec = DemoSpec(
        drugs=drugs,
        seed=seed,
        studio_per_drug=studio_per_drug,
        real_per_drug=real_per_drug,
        workers=workers or None,
    )
    with Progress() as progress:
        report = render_dataset(out, spec, lambda done, total: progress("rendering", done, total))
    click.echo(f"{'there already' if report.reused else 'rendered'}: {out}")
    say_next("data", "prepare", "--raw", out, "--out", "<folder>")


def _print_result(result: PrepareResult, seconds: float) -> None:
    from pillsnap.data.coverage import in_words

    summary, report = result.manifest.summary, result.report
    catalog = result.manifest.catalog
    retired = [drug.kcode for drug in catalog.drugs if drug.retired]
    click.echo(f"{summary['name']}: {summary['total_images']} images of {len(catalog.active)} drugs")
    _print_some("retired, as the drug list has them no longer; never answered", retired)
    for split, counts in summary["splits_by_domain"].items():
        click.echo(f"  {split:5s} {sum(counts.values()):7d}   studio {counts['studio']:7d}   real {counts['real']:7d}")
    click.echo(f"  capture groups: {summary['groups']}, none in two splits")
    _print_some(
        "lacking something",
        [
            f"{kcode}: {'; '.join([*entry['problems'], *(f'nothing in {split}' for split in entry['empty_splits'])])}"
            + (f"; photograph next: {in_words(entry['photograph_next'])}" if entry["photograph_next"] else "")
            for kcode, entry in report["classes"].items()
        ],
    )
    for code, paths in report["left_out"].items():
        _print_some(f"quarantined as {code}", [f"{path}: {reason}" for path, reason in paths.items()])
    for code, paths in report["notes"].items():
        click.echo(f"  noted, {code}: {len(paths)}")
    _print_some("dropped as copies", [f"{path} = {kept}" for path, kept in report["duplicate"].items()])
    for domain, by_code in report["overlooked"].items():
        for code, found in by_code.items():
            _print_some(f"{domain}: passed over, {code}", found["first"], found["count"])
    state = "reused, nothing has changed" if result.reused else "written"
    click.echo(f"audit: {result.manifest.root / 'audit.html'}")
    click.echo(f"manifest {result.manifest.hash[:16]} {state}: {result.manifest.root} ({seconds:.1f} s)")


def _print_some(title: str, lines: list[str], count: int | None = None) -> None:
    count = len(lines) if count is None else count
    if not count:
        return
    click.echo(f"  {title}: {count}")
    for line in lines[:_SHOWN]:
        click.echo(f"    {line}")
    if count > _SHOWN:
        click.echo(f"    and {count - _SHOWN} more (report.json)")
