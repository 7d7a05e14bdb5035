"""Options that several commands share, loading of a study, and consoles for output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from fedkd.errors import UserError
from fedkd.util.finding import Finding, Level

if TYPE_CHECKING:
    from rich.console import Console

    from fedkd.config import Study

StudyPath = Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (YAML).")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Set a key of the study, such as rounds.lr=0.1; may be repeated. File paths are "
        "relative to the study file.",
    ),
]
Seeds = Annotated[str | None, typer.Option(metavar="N,N,...", help="Seeds; override the study's.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder in which results are written.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
RUNS = Path("runs")


def load(
    path: Path,
    overrides: Sequence[str] | None,
    *,
    seeds: str | None = None,
    engine: str | None = None,
) -> Study:
    """Load a study, with the command line's overrides."""
    from fedkd.config.study_file import load_study

    return load_study(path, overrides or (), seeds=parse_numbers(seeds, "--seeds"), engine=engine)


def parse_numbers(text: str | None, option: str) -> list[int] | None:
    """Parse ``0,1,2``; None stays None."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option}: {text!r} is not a list of integers such as 0,1,2") from None


def wide_console() -> Console:
    """Return a console for results; off a terminal, tables are 160 columns wide."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)


def progress_console(*, quiet: bool) -> Console:
    """Return a console for progress; if ``quiet``, progress is shown on a terminal only."""
    from rich.console import Console

    return Console(stderr=True, quiet=quiet and not sys.stderr.isatty())


def show_findings(
    findings: Iterable[Finding], marks: Sequence[str], width: int, *, as_json: bool
) -> None:
    """Print each finding as it is made, or all of them as JSON; exit with 1 if one is broken.

    Marks are of the levels, in their order; the width is of names.
    """
    mark_of, shown = dict(zip(get_args(Level), marks, strict=True)), []
    longest = max(map(len, marks))
    for finding in findings:
        shown.append(finding)
        if as_json:
            continue
        mark = f"{mark_of[finding.level]:{longest}}"
        typer.echo(f"{mark}  {finding.name:{width}} {finding.value}")
        if finding.advice:
            typer.echo(f"{'':{longest + width + 3}}-> {finding.advice}")
    if as_json:
        typer.echo(json.dumps([vars(finding) for finding in shown], indent=1))
    if any(finding.level == "broken" for finding in shown):
        raise typer.Exit(1)
