"""``pillsnap quantise``: variants of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from pillsnap.cli.next_step import say_next
from pillsnap.cli.progress import Progress

if TYPE_CHECKING:
    from pillsnap.core.bundle import CalibrationName, EngineName


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--manifest",
    "manifest_dir",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the manifest it was trained on: training images set the ranges, validation images choose.",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The .onnx file to write.")
@click.option(
    "--precision",
    type=click.Choice(["int8", "float"]),
    default="int8",
    show_default=True,
    help="int8: weights and activations in 8 bits. float: the same graph, for another --engine.",
)
@click.option(
    "--engine",
    type=click.Choice(["openvino", "onnxruntime", "openvino-bf16"]),
    default="openvino",
    show_default=True,
    help="What computes the variant, where it is measured and where it serves. OpenVINO: fastest, nearest to float.",
)
@click.option(
    "--calibration",
    type=click.Choice(["image-median", "percentile", "minmax", "entropy"]),
    default="image-median",
    show_default=True,
    help="How far the range of a layer's activations reaches. image-median: to the largest value of all images, but at "
    "most three times the median image's; minmax: to the largest; percentile: to 99.999 % of all values; entropy: to "
    "where the least is lost.",
)
@click.option(
    "--images",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Training images of the calibration, evenly over the classes.",
)
@click.option(
    "--search/--no-search",
    default=True,
    show_default=True,
    help="Measure which layers have to stay in float (at most 29 trials, of 256 validation images at 512 pixels).",
)
def quantise(
    bundle: Path,
    manifest_dir: Path,
    out: Path,
    precision: Literal["int8", "float"],
    engine: EngineName,
    calibration: CalibrationName,
    images: int,
    search: bool,
) -> None:
    """Make a variant of BUNDLE: in 8 bits, or for another engine. It is a candidate of its own for the gate."""
    from pillsnap.core.errors import ConfigError
    from pillsnap.core.manifest import Manifest
    from pillsnap.exporting.float_search import LEAST_AGREEMENT
    from pillsnap.exporting.quantise import Recipe, make_variant

    if out.resolve() == bundle.resolve():
        raise ConfigError(f"--out: {out} is the bundle itself; give another file")
    recipe = Recipe(precision, engine, calibration, images, search)
    with Progress() as progress:
        variant = make_variant(bundle, Manifest.load(manifest_dir), out, recipe, progress)
    for trial in variant.trials:
        kept = "kept" if trial.kept else ""
        click.echo(
            f"  {trial.tried:<24} {len(trial.float_layers):4d} layers in float, top-1 agreement "
            f"{trial.loss.agreement:6.1%}, median difference {trial.loss.error:.2e}  {kept}".rstrip()
        )
    metadata = variant.metadata
    click.echo(f"bundle: {out} ({variant.size_mb:.1f} MB, sha256 {variant.sha256[:16]}), engine {metadata.engine}")
    if metadata.calibration is not None:
        floats = len(metadata.calibration.float_layers)
        click.echo(f"8-bit: {metadata.calibration.layers - floats} of {metadata.calibration.layers} layers")
    parity = metadata.source_parity
    assert parity is not None
    click.echo(
        f"against {bundle} on {parity.images} validation images: top-1 agreement {parity.top1_agreement:.2%}, "
        f"difference {parity.mean_relative_difference:.2e} of the largest logit (at most "
        f"{parity.largest_relative_difference:.2e})"
    )
    if parity.top1_agreement < LEAST_AGREEMENT:
        click.echo(
            f"warning: {1 - parity.top1_agreement:.1%} of the answers are other ones than those of {bundle} (at most "
            f"{1 - LEAST_AGREEMENT:.1%} should be); where 8 bits are too few for a net, bfloat16 is the next best: "
            "--engine openvino-bf16 --precision float",
            err=True,
        )
    say_next("evaluate", out, "--manifest", manifest_dir, "--out", "evaluation")
    say_next("registry", "register", "--bundle", out, note="a candidate of its own", first="then")
