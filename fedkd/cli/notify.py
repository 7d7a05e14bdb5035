"""``--notify``: a command of the user's that is run when a study ends, however it ends."""

from __future__ import annotations

import json
import shlex
import subprocess
from typing import Any

import typer

from fedkd.errors import UserError

TIMEOUT_SECONDS = 60.0


def read_command(command: str | None) -> list[str]:
    """Return the words of a command, which no shell runs; none for None."""
    try:
        return shlex.split(command or "")
    except ValueError as error:
        raise UserError(f"--notify: {command!r} is not a command: {error}") from error


def run_command(words: list[str], told: dict[str, Any]) -> None:
    """Run a command with JSON on its standard input; if it fails, a line says so."""
    given, timeout = json.dumps(told) + "\n", TIMEOUT_SECONDS
    try:
        if words:
            subprocess.run(words, input=given, text=True, timeout=timeout, check=True)  # noqa: S603 -- the user's own
    except (OSError, subprocess.SubprocessError) as error:
        typer.echo(f"--notify: {error}", err=True)
