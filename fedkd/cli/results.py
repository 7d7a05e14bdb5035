"""The commands that show results: ``fedkd report`` and ``fedkd watch``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedkd.cli.options import wide_console
from fedkd.errors import UserError
from fedkd.util import interrupt


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Results folders, or folders of studies: the newest results."
        ),
    ],
    kinds: Annotated[
        str, typer.Option("--format", metavar="KIND,...", help="html, png, svg, csv.")
    ] = "html",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where to write: by default into the results folder, or the working folder for "
            "several.",
        ),
    ] = None,
) -> None:
    """Write report.html of one or more RUNs, and figures and tables for papers.

    Several RUNs are compared on one page. Pictures and tables go to a folder figures or tables
    beside the page, in one of its own for each of several RUNs.

    For example: fedkd report runs/quickstart --format html,svg,csv
    """
    from fedkd.report.page import write_report
    from fedkd.report.paper import PICTURES, write_csv, write_pictures
    from fedkd.results.folder import REPORT_FILE, Results, find_run

    wanted = list(dict.fromkeys(kind.strip() for kind in kinds.split(",")))
    for kind in wanted:
        if kind not in ("html", "csv", *PICTURES):
            raise UserError(f"--format: {kind!r} is none of html, png, svg and csv")
    folders = [find_run(run) for run in runs]
    results = [Results.read(folder) for folder in folders]
    place = out or (folders[0] if len(folders) == 1 else Path())
    written = [write_report(results, place / REPORT_FILE)] if "html" in wanted else []
    for index, each in enumerate(results):
        own = Path() if len(results) == 1 else Path(f"{index + 1}-{each.summary['study']}")
        for kind in wanted:
            if kind in PICTURES:
                written += write_pictures(each, place / "figures" / own, kind)
            elif kind == "csv":
                written += write_csv(each, place / "tables" / own)
    for path in written:
        typer.echo(path)


def watch(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A results folder, or a study's: its newest results."),
    ],
    once: Annotated[bool, typer.Option("--once", help="Show how far it is, and exit.")] = False,
) -> None:
    """Follow RUN, a study that another process runs, until it ends.

    Arms, seeds, rounds, accuracy against targets and time left are read from the files in the
    folder, so any host that sees it can watch. Ctrl-C ends the watching; the study goes on.
    """
    from fedkd.report.watch import watch as follow

    interrupt.advise("The study itself goes on.")
    follow(run, wide_console(), once=once)
