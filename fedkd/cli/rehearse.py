"""``fedkd rehearse``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedkd.cli.options import AsJson, Overrides, StudyPath, load, progress_console, wide_console

if TYPE_CHECKING:
    from rich.console import Console


def rehearse(
    study: StudyPath,
    overrides: Overrides = None,
    images: Annotated[
        int, typer.Option(min=10, max=1_000_000, help="Generated images of each silo.")
    ] = 200,
    as_json: AsJson = False,
) -> None:
    """Try a study with deployed silos on this machine, before any host is set up.

    For example: fedkd rehearse lesions.yaml

    Makes keys and certificates, generates images of the study's shape, starts a SuperLink and one
    SuperNode per silo on the loopback interface, runs one round of every arm, and removes all of
    it. Prints the seconds and bytes of each arm. Seconds include the start of the silos' processes,
    which later rounds do not wait for; all silos share this machine's cores.

    The exit code is 1 if an arm failed or a silo's reply was refused.
    """
    from fedkd.report.progress import StudyProgress
    from fedkd.runner.rehearse import rehearse_study

    loaded = load(study, overrides)
    console = progress_console(quiet=as_json)
    with StudyProgress(console, len(loaded.arms), loaded.metric) as progress:
        summary = rehearse_study(
            loaded, images=images, progress=progress, report=lambda text: console.print(text)
        )
    if as_json:
        typer.echo(json.dumps(summary, indent=1))
    else:
        _show(summary, wide_console())
    if summary["failures"] or any(run["quarantined"] for run in summary["runs"]):
        raise typer.Exit(1)


def _show(summary: dict[str, Any], console: Console) -> None:
    from rich.table import Table

    table = Table("arm", title=f"Rehearsal of {summary['study']}: one round, generated images")
    for column in ("start: s", "MB up", "MB down", "round 1: s", "MB up", "MB down", "silos"):
        table.add_column(column, justify="right")
    for run in summary["runs"]:
        cells = []
        for point in run["curve"][:2]:
            sizes = (f"{point[key] / 1e6:.3g}" for key in ("bytes_up", "bytes_down"))
            cells += [f"{point['seconds']:.1f}", *sizes]
        table.add_row(run["arm"], *cells, str(run["curve"][-1]["silos_ok"]))
    console.print(table)
    for run in summary["runs"]:
        for entry in run["quarantined"]:
            console.print(f"{run['arm']}: {entry['silo']} did not answer: {entry['reason']}")
    for failure in summary["failures"]:
        console.print(f"{failure['arm']} failed: {failure['reason']}")
