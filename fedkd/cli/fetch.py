"""``fedkd fetch``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedkd.cli.options import AsJson


def fetch(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The results folder of a study on a SuperLink.")
    ],
    engine: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="SuperLink connection, if it is not the study's."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring the models of a study with deployed silos from the SuperLink's host.

    For example: fedkd fetch runs/lesions/20260101T120000Z

    These are final models, and those that rounds.keep kept, of up to 256 MiB. Each is written to
    RUN/<arm>/seed-<n>, for fedkd export, if its SHA-256 is that of the run's record.
    """
    from fedkd.runner.fetch import fetch_study

    def show(path: Path) -> None:
        if not as_json:
            typer.echo(f"{path}, {path.stat().st_size / 1e6:.1f} MB")

    paths = fetch_study(run, engine, show)
    if as_json:
        typer.echo(json.dumps([str(path) for path in paths], indent=1))
    else:
        typer.echo(f"Models of the study here: {len(paths)}")
