"""Options that several commands share, and what stands behind them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pillsnap.cli.duration import Duration
from pillsnap.core.errors import ConfigError

if TYPE_CHECKING:
    from pillsnap.core.experiment import ExperimentConfig

_Command = TypeVar("_Command", bound=Callable[..., Any])

DATA_HELP = (
    "Data set: a folder with a manifest.json (from: pillsnap data prepare), or a raw folder with drugs.json, studio "
    "and real_photos, or the word demo for the embedded demo data. A relative path starts at the current folder "
    "(under mlflow run: at the project)."
)


class MaybePath(click.Path):
    """A path; an empty text is None (``mlflow run`` passes one)."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        return None if value == "" else super().convert(value, param, ctx)


def data_option(command: _Command) -> _Command:
    """``--data``."""
    return click.option("--data", "data_name", default="demo", show_default=True, help=DATA_HELP)(command)


def workspace_option(command: _Command) -> _Command:
    """``--workspace``."""
    return click.option(
        "--workspace",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("workspace"),
        show_default=True,
        help="Folder for prepared data, caches, checkpoints and reports.",
    )(command)


def experiment_options(command: _Command) -> _Command:
    """``--config``, ``--set``, ``--overrides`` and ``--seed``, for `load_experiment`."""
    options = (
        click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path, dir_okay=False),
            default=Path("experiments/demo.yaml"),
            show_default=True,
            help="Experiment file (YAML).",
        ),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="One value of the file, by its dotted key; repeatable.",
        ),
        click.option(
            "--overrides", default="", help="Several KEY=VALUE in one text, separated by blanks (for mlflow run -P)."
        ),
        click.option("--seed", type=click.IntRange(min=0), help="Seed; stronger than the file's."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def training_options(command: _Command) -> _Command:
    """``--fresh``, ``--time-budget`` and ``--dry-run``."""
    options = (
        click.option(
            "--fresh",
            is_flag=False,
            flag_value=True,
            default=False,
            type=click.BOOL,
            metavar="[yes|no]",
            help="Start anew, also where an unfinished run of this experiment could go on.",
        ),
        click.option(
            "--time-budget",
            "time_budget_s",
            type=Duration(),
            default=None,
            help="Begin no epoch that would end later than this, counted from the start (8h, 90m, 1h30m). The "
            "schedule stays that of all epochs; the same command again trains the rest.",
        ),
        click.option(
            "--dry-run",
            is_flag=True,
            help="Try one batch of everything in seconds: an update, validation, checkpoint and export. Leaves "
            "neither files nor a run.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def policy_option(command: _Command) -> _Command:
    """``--policy``."""
    return click.option(
        "--policy",
        "policy_file",
        type=click.Path(path_type=Path, dir_okay=False),
        default=Path("registry/policy.yaml"),
        show_default=True,
        help="The gate's policy (YAML): targets, minimums and how many test images are needed.",
    )(command)


def gates_options(command: _Command) -> _Command:
    """``--manifest`` and ``--key`` of the gate at work."""
    options = (
        click.option(
            "--manifest",
            "manifest_dir",
            type=click.Path(path_type=Path),
            required=True,
            help="Folder of the gate's own manifest, whose test split is answered.",
        ),
        click.option(
            "--key",
            "key_file",
            type=click.Path(path_type=Path),
            help="The gate's private key; by default the one that `keygen` makes by default.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def name_option(command: _Command) -> _Command:
    """``--name`` of a registered model."""
    return click.option("--name", default="pillsnap", show_default=True, help="Name of the registered model.")(command)


def load_experiment(config_file: Path, settings: tuple[str, ...], overrides: str, seed: int | None) -> ExperimentConfig:
    """The experiment of the shared options. Raises ConfigError."""
    import shlex

    from pillsnap.core.experiment import ExperimentConfig, parse_override

    try:
        texts = [*shlex.split(overrides), *settings]
    except ValueError as error:
        raise ConfigError(f"--overrides {overrides!r}: {error}") from error
    values = dict(parse_override(text) for text in texts)
    if seed is not None:
        values["seed"] = seed
    return ExperimentConfig.load(config_file, values)
