"""The command line: one file a command group, imported only when it is called.

Exit status: 0 done, 1 refused or failed with a reason, 2 wrong use.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import click

from pillsnap import __version__
from pillsnap.core.errors import PillSnapError
from pillsnap.core.interruption import listen
from pillsnap.core.passwords import WithoutPasswords, hide_passwords

# name → (module, attribute, one line of help). The help stands here so that `pillsnap --help` imports nothing.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("pillsnap.cli.demo", "demo", "Run the whole journey on the embedded demo data."),
    "data": ("pillsnap.cli.data", "data", "Prepare data sets: links, mixing, split, manifest."),
    "run": ("pillsnap.cli.run", "run", "Train, export, evaluate and gate, in one MLflow run."),
    "train": ("pillsnap.cli.train", "train", "Train a checkpoint from a manifest."),
    "tune": ("pillsnap.cli.tune", "tune", "Search the best parameters with Optuna."),
    "export": ("pillsnap.cli.export", "export", "Turn a checkpoint into a bundle (one ONNX file)."),
    "quantise": ("pillsnap.cli.quantise", "quantise", "Make a variant of a bundle: in 8 bits, or for another engine."),
    "parity": ("pillsnap.cli.parity", "parity", "Compare bundles on the test images: accuracy, agreement, logits."),
    "benchmark": ("pillsnap.cli.benchmark", "benchmark", "Time a bundle by threads, batch and stage."),
    "evaluate": ("pillsnap.cli.evaluate", "evaluate", "Measure a bundle on the test split: evidence and pictures."),
    "gate": ("pillsnap.cli.gate", "gate", "Judge evidence by the policy: PROMOTE, HOLD or REJECT."),
    "registry": ("pillsnap.cli.registry", "registry", "Register model versions and promote them through the gate."),
    "tracking": ("pillsnap.cli.tracking", "tracking", "Send to MLflow what runs could not send in an outage."),
    "serve": ("pillsnap.cli.serve", "serve", "Answer photos over HTTP with the champion, and follow it."),
    "identify": ("pillsnap.cli.identify", "identify", "Name the pill on a photo with the champion."),
    "doctor": ("pillsnap.cli.doctor", "doctor", "Say what is installed, which device and stores there are."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the journey."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        try:
            command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("pillsnap"):
                raise
            raise click.ClickException(_missing_package(error)) from error
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="pillsnap")
def cli() -> None:
    """PillSnap teaches a phone to recognise 100 Korean pills, and ships a model only when it has proven itself."""


_EXTRAS = {
    **dict.fromkeys(("prometheus_client", "python_multipart", "h11", "uvicorn", "fastapi", "starlette"), "[serve]"),
    **dict.fromkeys(("boto3", "botocore", "psycopg"), "[registry]"),
    "openvino": "[openvino]",
}
"""Where a package is declared that is missing; all others train."""


def main() -> NoReturn:
    """Run the command line; the only place where errors become exit statuses."""
    listen()
    log = logging.StreamHandler()
    log.setFormatter(WithoutPasswords("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[log])
    logging.getLogger("pillsnap").setLevel(logging.INFO)
    let_go = _watch_mlflow_run() if "MLFLOW_RUN_ID" in os.environ else lambda: None
    try:
        cli.main(standalone_mode=False)
        status = 0
    except click.exceptions.Exit as error:
        status = error.exit_code
    except click.ClickException as error:
        error.show()
        status = 1 if type(error) is click.ClickException else 2
    except PillSnapError as error:
        _complain(error)
        status = error.exit_status
    except ModuleNotFoundError as error:  # commands import what they need when they need it
        _complain(_missing_package(error))
        status = 1
        if os.environ.get("PILLSNAP_DEBUG"):
            traceback.print_exc()
    except ImportError as error:
        _complain(f"a package is installed but cannot be loaded ({error}); ask: pillsnap doctor")
        status = 1
        if os.environ.get("PILLSNAP_DEBUG"):
            traceback.print_exc()
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted")
        let_go()
        status = 1
    except OSError as error:
        _complain(error)
        status = 1
        if os.environ.get("PILLSNAP_DEBUG"):
            traceback.print_exc()
    except Exception as error:  # the edge of the process: nothing may end in a bare trace
        _complain(f"unexpected {type(error).__name__}: {error}")
        click.echo("This is a fault in PillSnap: set PILLSNAP_DEBUG=1 to see where, and report it.", err=True)
        status = 1
        if os.environ.get("PILLSNAP_DEBUG"):
            traceback.print_exc()
    sys.exit(status)


def _watch_mlflow_run() -> Callable[[], None]:
    from pillsnap.cli.orphan import end_with_mlflow_run

    return end_with_mlflow_run()


def _complain(what: object) -> None:
    click.echo(hide_passwords(f"error: {what}"), err=True)


def _missing_package(error: ModuleNotFoundError) -> str:
    package = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(package, "[train]")
    return f"this command needs the package {error.name}: pip install 'pillsnap{extra}' -c constraints.txt"
