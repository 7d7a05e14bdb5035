"""The command line. Each command imports what it needs when it runs: ``--help`` stays quick."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedkd.cli import cache, hosts, offline
from fedkd.cli.checks import doctor, schema, validate
from fedkd.cli.choosing import pairs, recommend, tune
from fedkd.cli.results import report, watch
from fedkd.cli.run import compare
from fedkd.errors import FedKDError
from fedkd.util.files import DISK_ERRORS
from fedkd.version import VERSION

app = typer.Typer(
    name="fedkd",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Consolidate pre-trained silo models by knowledge distillation, then federate, and count "
    "the communication rounds that this saves.\n\n"
    "For example: fedkd compare experiments/quickstart.yaml",
)

for command in (compare, tune, pairs, report, watch, validate, recommend, schema, doctor):
    app.command()(command)
for module in (offline, cache, hosts):
    module.add_commands(app)


def _version(value: bool) -> None:  # noqa: FBT001 -- typer calls it
    if value:
        typer.echo(VERSION)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. An expected error is printed as one sentence, without a traceback."""
    # A user's own model, named package.module:function, may be in the working folder.
    sys.path.insert(0, str(Path.cwd()))
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    try:
        app()
    except FedKDError as error:
        typer.echo(f"fedkd: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        # A full or broken disk is for the user to fix; any other system error is our bug.
        if error.errno not in DISK_ERRORS:
            raise
        typer.echo(f"fedkd: {error.filename or 'the disk'}: {error.strerror}", err=True)
        sys.exit(1)
