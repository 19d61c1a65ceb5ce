"""``pillsnap demo``: the whole journey on the embedded demo data, by the commands that a user would type.

Each step is a command of its own, shown before it runs. What is there and unchanged is used again.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from pillsnap.cli.options import workspace_option
from pillsnap.core.errors import ConfigError, PillSnapError

MODEL = "pillsnap"
_PHOTOS = 3


@dataclass
class _Steps:
    """Runs commands one after another and remembers how long each took."""

    seconds: list[tuple[str, float]] = field(default_factory=list)

    def run(self, title: str, *command: str, may_refuse: bool = False) -> str:
        """Run one command with its output shown; returns the output. Raises PillSnapError where it fails."""
        number = len(self.seconds) + 1
        shown = " ".join(shlex.quote(part) for part in command)
        click.secho(f"\n── {number}. {title}\n$ {shown}", bold=True)
        started = time.monotonic()
        status, output = _run_shown(command)
        self.seconds.append((title, time.monotonic() - started))
        if status == 0 or (may_refuse and status == 1):
            return output
        raise PillSnapError(f"step {number} ({title}) ended with status {status}: {shown}")


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
@click.option("--studio-per-drug", type=int, default=42, show_default=True, help="Studio pictures a drug.")
def demo(workspace: Path, seed: int, drugs: int, config_file: Path, overrides: str, studio_per_drug: int) -> None:
    """Run the whole journey: render, prepare, tune, train, export, evaluate, register, judge, promote, identify."""
    if not Path("MLproject").is_file():
        raise ConfigError(f"no MLproject in {Path.cwd()}: run the demo from the project's folder")
    started = time.monotonic()
    steps = _Steps()
    pillsnap = (sys.executable, "-m", "pillsnap")
    raw, data, best = workspace / "demo" / "raw", workspace / "demo" / "data", workspace / "demo" / "best.yaml"
    common = ("--config", str(config_file), "--overrides", f"seed={seed} {overrides}".strip())

    steps.run(
        "Render the synthetic pills", *pillsnap, "data", "render", "--out", str(raw), "--drugs", str(drugs),
        "--studio-per-drug", str(studio_per_drug),
    )  # fmt: skip
    prepare = ("--raw", str(raw), "--out", str(data), "--name", "demo")
    steps.run("Prepare the data set: links, 3:7 mix, split by capture group", *pillsnap, "data", "prepare", *prepare)
    steps.run(
        "Tune learning rate, dropout and mixup", *pillsnap, "tune", "--data", str(data), *common, "--out", str(best),
        "--workspace", str(workspace),
    )  # fmt: skip
    output = steps.run(
        "Train, export, evaluate and gate, through the MLproject", *_mlflow(), "run", ".", "--env-manager", "local",
        "--experiment-name", "pillsnap", "-P", f"data={data}", "-P", f"config={best}", "-P", f"workspace={workspace}",
    )  # fmt: skip
    run_id = _value_after(output, "run: ")
    output = steps.run("Register the bundle", *pillsnap, "registry", "register", run_id, "--name", MODEL)
    version = output.partition(" version ")[2].split()[0]
    key = workspace / "gate" / "gate.key"
    if not key.exists():
        steps.run("Make the gate's keys", *pillsnap, "registry", "keygen", "--private", str(key), "--comment", "demo")
    judge = ("registry", "judge", version, "--name", MODEL, "--manifest", str(data), "--key", str(key))
    output = steps.run("Have the gate measure and judge it", *pillsnap, *judge, may_refuse=True)
    promoted = "verdict PROMOTE" in output
    if promoted:
        steps.run("Promote it", *pillsnap, "registry", "promote", version, "--name", MODEL)
        photos = _test_photos(data)
        steps.run("Identify three test photos with the champion", *pillsnap, "identify", *photos, "--name", MODEL)
    _summary(workspace / "runs" / run_id, steps, promoted, time.monotonic() - started)
    if not promoted:
        raise PillSnapError("the gate refused the candidate; the reasons stand above")


def _mlflow() -> tuple[str, ...]:
    return (sys.executable, "-m", "mlflow")


def _run_shown(command: tuple[str, ...]) -> tuple[int, str]:
    """Run a command, showing each line as it comes; Ctrl-C and SIGTERM reach the whole process group."""
    # `python` of `mlflow run --env-manager local` must be this interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line)
                click.echo(line, nl=False)
            status = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
    return status, "".join(lines)


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


def _summary(folder: Path, steps: _Steps, promoted: bool, seconds: float) -> None:
    decision: dict[str, Any] = json.loads((folder / "decision.json").read_text(encoding="utf-8"))
    click.secho("\n── The journey in figures", bold=True)
    for title, taken_s in steps.seconds:
        click.echo(f"  {taken_s:6.1f} s  {title}")
    click.echo(f"  {seconds:6.1f} s  in all\n")
    for check in decision["checks"]:
        click.echo(f"  {check['metric']:18s} {check['shown'][0]:>12s}   target {check['shown'][2]}")
    click.secho(f"\n  verdict: {decision['verdict']}{', promoted to champion' if promoted else ''}", bold=True)
    click.echo(f"  pictures and report: {folder / 'evaluation' / 'report.html'}")
    click.echo("  everything in MLflow: make ui")
    if promoted:
        click.echo("  a page that answers photos: pillsnap serve, then http://127.0.0.1:8000")
