"""The commands that show results: ``fedkd report`` and ``fedkd watch``."""

from __future__ import annotations

import json
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
            metavar="RUN...", help="Results folders, or study folders: then their newest results."
        ),
    ],
    kinds: Annotated[
        str, typer.Option("--format", metavar="KIND,...", help="html, png, svg, csv.")
    ] = "html",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Output folder; default: RUN, or the working folder for several RUNs.",
        ),
    ] = None,
) -> None:
    """Write report.html of one or more RUNs, and figures and tables for papers.

    For example: fedkd report runs/quickstart --format html,svg,csv

    Several RUNs are compared on one page. Figures and tables are written to the folders figures and
    tables beside the page, with one subfolder per RUN if there are several.
    """
    from fedkd.report.page import write_report
    from fedkd.report.paper import PICTURES, write_csv, write_pictures
    from fedkd.results.folder import REPORT_FILE, Results, find_run

    formats = list(dict.fromkeys(kind.strip() for kind in kinds.split(",")))
    for kind in formats:
        if kind not in ("html", "csv", *PICTURES):
            raise UserError(f"--format: {kind!r} is not a valid format: give html, png, svg or csv")
    run_folders = [find_run(run) for run in runs]
    results = [Results.read(run) for run in run_folders]
    folder = out or (run_folders[0] if len(run_folders) == 1 else Path())
    written = [write_report(results, folder / REPORT_FILE)] if "html" in formats else []
    for index, result in enumerate(results):
        subfolder = Path() if len(results) == 1 else Path(f"{index + 1}-{result.summary['study']}")
        for kind in formats:
            if kind in PICTURES:
                written += write_pictures(result, folder / "figures" / subfolder, kind)
            elif kind == "csv":
                written += write_csv(result, folder / "tables" / subfolder)
    for path in written:
        typer.echo(path)


def watch(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A results folder, or a study folder: its newest results."
        ),
    ],
    once: Annotated[bool, typer.Option("--once", help="Print the current state and exit.")] = False,
    prometheus: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write a text file for Prometheus, such as node_exporter's collector reads.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON at every change instead.")
    ] = False,
) -> None:
    """Show the progress of RUN, a study that another process runs, until it ends.

    For example: fedkd watch runs/quickstart

    Rounds, accuracy, targets reached and time left are read from the files in the folder, so any
    host that can read the folder can watch. Ctrl-C stops watching; the study continues.
    """
    from fedkd.report.monitor import to_plain, to_prometheus
    from fedkd.report.watch import StudyState
    from fedkd.report.watch import watch as follow
    from fedkd.util.files import write_text

    def tell(state: StudyState) -> None:
        if prometheus is not None:
            write_text(prometheus, to_prometheus(state))
        if as_json:
            typer.echo(json.dumps(to_plain(state)))

    interrupt.advise("The study continues.")
    follow(run, wide_console(), once=once, on_state=tell, draw=not as_json)
