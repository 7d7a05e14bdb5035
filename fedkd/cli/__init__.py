"""The command line. Each command imports what it needs when it runs: ``--help`` stays quick."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from fedkd.cli import cache, hosts, offline
from fedkd.cli.checks import doctor, schema, validate
from fedkd.cli.choosing import pairs, recommend, tune
from fedkd.cli.convert import convert
from fedkd.cli.evaluate import evaluate
from fedkd.cli.fetch import fetch
from fedkd.cli.output import replace_what_cannot_be_written
from fedkd.cli.rehearse import rehearse
from fedkd.cli.results import report, watch
from fedkd.cli.run import compare
from fedkd.cli.sweep import sweep
from fedkd.errors import FedKDError, describe_shortage
from fedkd.util import interrupt
from fedkd.version import VERSION

INTERRUPTED = 130
"""Typer's exit code for KeyboardInterrupt in a command."""

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

COMMANDS = (
    *(compare, sweep, tune, pairs, report, watch, validate, rehearse, recommend, schema),
    *(doctor, convert, evaluate, fetch),
)
for command in COMMANDS:
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
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 -- a string
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    replace_what_cannot_be_written()
    with interrupt.handle_signals():
        try:
            app()
        except KeyboardInterrupt:
            _end(interrupt.sentence(), interrupt.exit_code())
        except SystemExit as end:
            if end.code != INTERRUPTED:
                raise
            _end(interrupt.sentence(), interrupt.exit_code())
        except FedKDError as error:
            _end(f"fedkd: {error}", error.exit_code)
        except Exception as error:
            shortage = describe_shortage(error)
            if shortage is None:
                raise
            _end(f"fedkd: {shortage}", 1)


def _end(sentence: str, code: int) -> NoReturn:
    typer.echo(sentence, err=True)
    sys.exit(code)
