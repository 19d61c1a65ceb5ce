"""``pillsnap demo``: the whole journey on the embedded demo data, by the commands that a user would type.

What is there and unchanged is used again.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from pillsnap.cli.options import workspace_option
from pillsnap.core.errors import ConfigError, PillSnapError

MODEL = "pillsnap"
_TRIAL_DRUGS = 1.6
"""A trial of the study trains on as many pictures as this many drugs have, or more: two updates."""
_TRIAL_SHARE = 0.1
"""Of all pictures: the experiment file's."""
_PHOTOS = 3
_UI = "http://127.0.0.1:5000"
"""Where `make ui` shows a store that is no server."""
_RENDER = "Render the synthetic pills"
_PREPARE = "Prepare the data set: links, 3:7 mix, split by capture group"
_TUNE = "Tune learning rate, dropout and mixup"
_TRAIN = "Train, export, evaluate and gate, through the MLproject"
_REGISTER = "Register the bundle"
_KEYS = "Make the gate's keys"
_JUDGE = "Have the gate measure and judge it"
_PROMOTE = "Promote it"
_IDENTIFY = "Identify three test photos with the champion"
_IDENTIFY_FILE = "Identify three test photos all the same, with the bundle that nobody serves"
# Of the whole time, measured on two cores.
_SHARES = {
    _RENDER: 0.06, _PREPARE: 0.03, _TUNE: 0.33, _TRAIN: 0.57, _REGISTER: 0.001, _KEYS: 0.0, _JUDGE: 0.015,
    _PROMOTE: 0.001, _IDENTIFY: 0.003,
}  # fmt: skip


@click.command()
@workspace_option
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the training.")
@click.option(
    "--drugs", type=click.IntRange(min=2, max=200), default=100, show_default=True, help="Number of synthetic drugs."
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("experiments/demo.yaml"),
    show_default=True,
    help="Experiment file.",
)
@click.option("--overrides", default="", help="Several KEY=VALUE for the experiment, separated by blanks.")
@click.option("--studio-per-drug", type=int, default=15, show_default=True, help="Studio images per drug.")
@click.option("--real-per-drug", type=int, default=35, show_default=True, help="Real photos per drug, 1 to 240.")
def demo(
    workspace: Path,
    seed: int,
    drugs: int,
    config_file: Path,
    overrides: str,
    studio_per_drug: int,
    real_per_drug: int,
) -> None:
    """Run the whole journey: render, prepare, tune, train, export, evaluate, register, judge, promote, identify.

    Exit status 1 where the gate refuses the model, but 0 where the test set is too small for any model to be promoted
    (few --drugs).
    """
    if not Path("MLproject").is_file():
        raise ConfigError(f"no MLproject in {Path.cwd()}: run the demo from the project's folder")
    from pillsnap.cli.demo_steps import Steps

    click.echo(
        f"PillSnap demo: {drugs * (studio_per_drug + real_per_drug):,} drawn pictures of {drugs} drugs, from pixels to "
        "a promoted model. About ten minutes for 100 drugs on two cores, two for 20; Ctrl-C ends it, the same command "
        "goes on."
    )
    raw, data, best = workspace / "demo" / "raw", workspace / "demo" / "data", workspace / "demo" / "best.yaml"
    numbers = ("--drugs", drugs, "--studio-per-drug", studio_per_drug, "--real-per-drug", real_per_drug)
    needed = _TRIAL_DRUGS / drugs
    share = f"tuning.train_share={needed:.2f} " if needed > _TRIAL_SHARE else ""
    common = ("--config", str(config_file), "--overrides", f"{share}seed={seed} {overrides}".strip())
    steps = Steps(_SHARES)
    started = time.monotonic()
    with steps.speaking():
        steps.run(_RENDER, "data", "render", "--out", str(raw), *map(str, numbers))
        steps.run(_PREPARE, "data", "prepare", "--raw", str(raw), "--out", str(data), "--name", "demo")
        steps.run(
            _TUNE, "tune", "--data", str(data), *common, "--out", str(best), "--workspace", str(workspace)
        )  # fmt: skip
        output = steps.run_process(
            _TRAIN, "mlflow", "run", ".", "--env-manager", "local", "--experiment-name", "pillsnap",
            "-P", f"data={data}", "-P", f"config={best}", "-P", f"workspace={workspace}",
        )  # fmt: skip
        folder = workspace / "runs" / _value_after(output, "run: ")
        output = steps.run(_REGISTER, "registry", "register", folder.name, "--name", MODEL)
        version = output.partition(" version ")[2].split()[0]
        key = workspace / "gate" / "gate.key"
        if not key.exists():
            steps.run(_KEYS, "registry", "keygen", "--private", str(key), "--comment", "demo")
        judge = ("registry", "judge", version, "--name", MODEL, "--manifest", str(data), "--key", str(key))
        promoted = "verdict PROMOTE" in steps.run(_JUDGE, *judge, may_refuse=True)
        photos, lacking = _test_photos(data), [] if promoted else _lacking_test_images(data)
        if promoted:
            steps.run(_PROMOTE, "registry", "promote", version, "--name", MODEL)
            steps.run(_IDENTIFY, "identify", *photos, "--name", MODEL)
        elif lacking:
            click.secho("\nThe gate did its job: on so few test images no model can prove itself.", bold=True)
            for line in lacking:
                click.echo(f"  - {line}")
            steps.run(_IDENTIFY_FILE, "identify", *photos, "--bundle", str(folder / "pillsnap.onnx"))
    _summary(folder, steps.costs, promoted, version, time.monotonic() - started)
    if not promoted and not lacking:
        raise PillSnapError("the gate refused the candidate; the reasons stand above")


def _value_after(output: str, prefix: str) -> str:
    for line in output.splitlines():
        if line.startswith(prefix):
            return line.removeprefix(prefix).strip()
    raise PillSnapError(f"the step's output holds no line that starts with {prefix!r}")


def _test_photos(data: Path) -> list[str]:
    """Real photos of the test split, evenly over it."""
    from pillsnap.core.manifest import Manifest

    manifest = Manifest.load(data)
    test = manifest.split("test")
    domains = test["domain"].to_pylist()
    paths = [path for path, domain in zip(test["path"].to_pylist(), domains, strict=True) if domain == "real"]
    return [str(data / path) for path in paths[:: max(len(paths) // _PHOTOS, 1)][:_PHOTOS]]


def _lacking_test_images(data: Path) -> list[str]:
    """What the test set lacks of what the gate's policy asks for, whatever the model."""
    from pillsnap.core.manifest import Manifest
    from pillsnap.gate.trust import TrustRoot

    needed = TrustRoot.find().policy().minimum_test_images
    test = Manifest.load(data).summary["splits_by_domain"]["test"]
    found = {"test images": (sum(test.values()), needed.total), "real test photos": (test["real"], needed.real)}
    return [f"{have} {what}, {want} needed" for what, (have, want) in found.items() if have < want]


def _summary(folder: Path, costs: list[Any], promoted: bool, version: str, seconds: float) -> None:
    from pillsnap.tracking.store import tracking_uri
    from pillsnap.tracking.ui_links import server_of, start_page, version_page

    decision: dict[str, Any] = json.loads((folder / "decision.json").read_text(encoding="utf-8"))
    click.secho("\n── The journey in figures", bold=True)
    click.echo("   time   processor")
    for cost in costs:
        click.echo(f"  {cost.wall_s:5.0f} s   {cost.cpu_s:5.0f} s   {cost.title}")
    click.echo(f"  {seconds:5.0f} s   {sum(cost.cpu_s for cost in costs):5.0f} s   in all\n")
    for check in decision["checks"]:
        click.echo(f"  {check['metric']:18s} {check['shown'][0]:>12s}   target {check['shown'][2]}")
    click.secho(f"\n  verdict: {decision['verdict']}{', promoted to champion' if promoted else ''}", bold=True)
    click.echo(f"  pictures and report: {folder / 'evaluation' / 'report.html'}")
    server = server_of(tracking_uri())
    first = "" if server else "make ui, then "
    click.echo(f"  everything in MLflow: {first}{start_page(server or _UI)}")
    click.echo(f"  the model's version: {version_page(server or _UI, MODEL, version)}")
    if promoted:
        click.echo("  a page that answers photos: pillsnap serve, then http://127.0.0.1:8000")
