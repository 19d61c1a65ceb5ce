"""How far apart are the two ways of a photo: through the phone's client, and straight to the server?

    python benchmarks/client_drift.py --photos FOLDER --target-size 512 --target-size 64
    python benchmarks/client_drift.py --photos FOLDER --bundle pillsnap.onnx

Client path: crop, 512 pixels, JPEG 85, then the server's preprocessing. Direct path: the bytes of the photo into the
preprocessing of the server. Differences are in levels (0..255) of what the model sees.
Legend: N photos, H height, W width, C channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from pillsnap.clients.phone import PhoneClient
from pillsnap.core.cpu import usable_cores
from pillsnap.core.errors import ImageError
from pillsnap.core.images import IMAGE_SUFFIXES, read_image_bytes
from pillsnap.core.preprocessing import InferencePreprocessor
from pillsnap.core.preprocessing_spec import ClaheSpec, PreprocessingSpec
from pillsnap.inference.session import PillSession

U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Pair:
    """What the model sees of one photo on either way."""

    name: str
    client_HWC_u8: U8
    direct_HWC_u8: U8

    @property
    def levels(self) -> NDArray[np.int16]:
        """Absolute difference of every value."""
        return np.abs(self.client_HWC_u8.astype(np.int16) - self.direct_HWC_u8)


def photo_paths(folder: Path, limit: int | None) -> list[Path]:
    """Pictures below the folder; with a limit, evenly picked."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise click.ClickException(f"{folder}: no picture in there ({', '.join(sorted(IMAGE_SUFFIXES))})")
    if limit is None or limit >= len(paths):
        return paths
    return [paths[index] for index in np.linspace(0, len(paths) - 1, limit).astype(int)]


def pairs(paths: list[Path], spec: PreprocessingSpec) -> Iterator[Pair]:
    """Both ways of each photo; damaged ones are named and left out."""
    client, server = PhoneClient(), InferencePreprocessor(spec)

    def both(path: Path) -> Pair | None:
        try:
            photo = read_image_bytes(path)
            sent = client.prepare(photo, str(path))
            return Pair(str(path), server.prepare_for_model(sent)[0], server.prepare_for_model(photo)[0])
        except ImageError as error:
            click.echo(f"left out: {error}", err=True)
            return None

    with ThreadPoolExecutor(usable_cores()) as pool:
        yield from (pair for pair in pool.map(both, paths) if pair is not None)


def pixel_table(figures_N3: NDArray[np.float64]) -> str:
    """Distribution over the photos of each photo's mean, 99th percentile and maximum."""
    lines = ["| per photo, levels | 5 % of photos | median | 95 % of photos | worst |", "|---|---|---|---|---|"]
    for name, values_N in zip(("mean difference", "99th percentile", "largest difference"), figures_N3.T, strict=True):
        low, middle, high = np.percentile(values_N, (5, 50, 95))
        lines.append(f"| {name} | {low:.2f} | {middle:.2f} | {high:.2f} | {values_N.max():.2f} |")
    return "\n".join(lines)


def measure(paths: list[Path], spec: PreprocessingSpec, session: PillSession | None) -> None:
    """Print the tables for one preprocessing."""
    figures: list[tuple[float, float, float]] = []
    answers: list[tuple[int, int, float, float]] = []
    for pair in pairs(paths, spec):
        levels = pair.levels
        figures.append((float(levels.mean()), float(np.percentile(levels, 99)), float(levels.max())))
        if session is not None:
            probabilities_2K = session.predict(np.stack([pair.client_HWC_u8, pair.direct_HWC_u8])).probabilities_NK
            client, direct = probabilities_2K.argmax(axis=1)
            change = float(np.abs(probabilities_2K[0] - probabilities_2K[1]).max())
            confidence = abs(float(probabilities_2K[0].max() - probabilities_2K[1].max()))
            answers.append((int(client), int(direct), confidence, change))
    if not figures:
        raise click.ClickException("none of the photos could be read")
    clahe = "CLAHE" if spec.clahe.enabled else "no CLAHE"
    click.echo(f"\n{len(figures)} photos, {spec.target_size} pixels, {spec.interpolation}, {clahe}\n")
    click.echo(pixel_table(np.asarray(figures)))
    if answers:
        click.echo("\n" + agreement(answers))


def agreement(answers: list[tuple[int, int, float, float]]) -> str:
    """Top-1 agreement and the change of the confidence."""
    same = [client == direct for client, direct, _, _ in answers]
    confidence, change = (np.asarray([answer[index] for answer in answers]) for index in (2, 3))
    return (
        f"top-1 agreement {100 * np.mean(same):.2f} % ({sum(same)} of {len(same)}), "
        f"mean change of the confidence {confidence.mean():.4f} "
        f"(95 % of photos under {np.percentile(confidence, 95):.4f}), "
        f"largest change of any class's probability {change.max():.3f}"
    )


@click.command(help=__doc__)
@click.option("--photos", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option(
    "--bundle", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Its preprocessing counts."
)
@click.option("--target-size", "sizes", type=click.IntRange(16, 2048), multiple=True, default=(512,), show_default=True)
@click.option("--interpolation", type=click.Choice(["linear", "area"]), default="linear", show_default=True)
@click.option("--clahe/--no-clahe", default=True, show_default=True)
@click.option("--limit", type=click.IntRange(1), help="At most so many photos, evenly picked.")
def main(
    photos: Path, bundle: Path | None, sizes: tuple[int, ...], interpolation: str, clahe: bool, limit: int | None
) -> None:
    """Measure and print."""
    paths = photo_paths(photos, limit)
    if bundle is not None:
        session = PillSession.load(bundle)
        measure(paths, session.metadata.preprocessing, session)
        return
    for size in sizes:
        values = {"target_size": size, "interpolation": interpolation, "clahe": ClaheSpec(enabled=clahe)}
        measure(paths, PreprocessingSpec.model_validate(values), None)


if __name__ == "__main__":
    main()
