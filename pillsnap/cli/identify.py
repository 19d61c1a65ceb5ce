"""``pillsnap identify``: the champion's answer for photos."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import click
from click.core import ParameterSource

from pillsnap.cli.options import name_option


@click.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@name_option
@click.option("--alias", default="champion", show_default=True, help="Which version answers.")
@click.option("--bundle", type=click.Path(path_type=Path), help="An .onnx file in place of the registry's champion.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Answers a photo.")
def identify(photos: tuple[Path, ...], name: str, alias: str, bundle: Path | None, top: int) -> None:
    """Name the pill on each of PHOTOS, with the confidence of the answer."""
    from pillsnap.core.errors import ImageError
    from pillsnap.core.images import read_image_bytes
    from pillsnap.core.text import shown
    from pillsnap.inference.session import PillSession

    if not any(photo.exists() for photo in photos):  # before the registry is asked for a model that nobody needs
        raise ImageError("\n".join(f"{shown(photo)}: no such file" for photo in photos))
    asked = click.get_current_context().get_parameter_source
    plain = bundle is None and asked("name") == asked("alias") == ParameterSource.DEFAULT
    beside = _bundle_beside(photos) if plain else None
    with ExitStack() as stack:
        if bundle is not None:
            session, who = PillSession.load(bundle), str(bundle)
        elif beside is not None:
            session, who = PillSession.load(beside), f"{beside} (beside the photos; no gate has promoted it)"
        else:
            from pillsnap.registry.champion import champion_session

            session, version = stack.enter_context(champion_session(name, alias))
            who = f"{name} version {version} ({alias})"
        click.echo(f"model: {who}, sha256 {session.sha256[:12]}")
        unusable = []
        for photo in photos:
            click.echo(f"\n{shown(photo)}")
            try:
                told = session.answer(read_image_bytes(photo), top, name=str(photo))
            except ImageError as error:
                unusable.append(str(error))
                click.echo("  not identified")
                continue
            if not told.sure:
                causes = [f"{doubt.code.replace('_', ' ')}: {doubt.message}" for doubt in told.doubts]
                why = "; ".join(causes) or f"under {session.unsure_below:.0%}"
                click.echo(f"  NOT SURE ({why}): check the imprint, do not rely on this")
            for answer in told.candidates:
                drug = f"{answer.kcode}  {answer.drug_name} ({answer.manufacturer})"
                click.echo(f"  {answer.rank}. {answer.confidence:6.1%}  {drug}")
    if unusable:
        raise ImageError(f"{len(unusable)} of {len(photos)} photos cannot be used:\n" + "\n".join(unusable))


def _bundle_beside(photos: tuple[Path, ...]) -> Path | None:
    """The one bundle in the folder of the photos, where there is no registry yet that could have a champion.

    So ``pillsnap identify examples/*.jpg`` answers right after the installation.
    """
    named = os.environ.get("MLFLOW_TRACKING_URI") or os.environ.get("MLFLOW_REGISTRY_URI")
    if named or Path("mlflow.db").exists() or len({photo.parent for photo in photos}) != 1:
        return None
    bundles = sorted(photos[0].parent.glob("*.onnx"))
    return bundles[0] if len(bundles) == 1 else None
