"""``--notify``: a command of the user's that is run when a study ends, however it ends."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import typer

from fedkd.errors import UserError

TIMEOUT_SECONDS = 60.0


@dataclass
class Ending:
    """How a study ended: ``status``, and what else the command is told."""

    status: str
    told: dict[str, Any]


@contextmanager
def notifying(command: str | None, study: str) -> Iterator[Ending]:
    """Run a command after the block, with how the study ended as JSON on its standard input.

    What the command does changes nothing; if it fails, a line on the standard error says so.

    Args:
        command: as for a shell, which does not run it; None for none.
        study: name of the study.

    Raises:
        UserError: the command cannot be read.
    """
    try:
        words = shlex.split(command or "")
    except ValueError as error:
        raise UserError(f"--notify: {command!r} is not a command: {error}") from error
    ending = Ending("failed", {})
    try:
        yield ending
    except KeyboardInterrupt:
        ending.status = "interrupted"
        raise
    except Exception as error:
        ending.told.setdefault("error", str(error))
        raise
    finally:
        if words:
            _run(words, {"study": study, "status": ending.status, **ending.told})


def _run(words: list[str], told: dict[str, Any]) -> None:
    try:
        subprocess.run(  # noqa: S603 -- the user's own command
            words,
            input=json.dumps(told) + "\n",
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError) as error:
        typer.echo(f"--notify: {error}", err=True)
