"""``fedkd sweep``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedkd.cli.options import RUNS, AsJson, Out, Overrides, Seeds, load, progress_console
from fedkd.errors import UserError


def sweep(
    study: Annotated[
        Path | None, typer.Argument(metavar="STUDY", help="The study file; not with --resume.")
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH=VALUE,VALUE",
            help="A key of the study and its values; may be repeated, for all combinations.",
        ),
    ] = None,
    overrides: Overrides = None,
    seeds: Seeds = None,
    out: Out = RUNS,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ignore the cache.")] = False,
    resume: Annotated[
        Path | None, typer.Option(metavar="SWEEP", help="Resume the sweep of this folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run STUDY, a YAML file, with every combination of values, and compare them.

    For example: fedkd sweep experiments/quickstart.yaml --grid partition.alpha=0.05,0.1,0.5

    DIR/<study>-sweep/<timestamp> gets a results folder for each point of the grid, report.html on
    all of them, sweep-summary.json and comparison.csv with a column for each swept key, and
    savings.tex. An interrupted or killed sweep continues with --resume SWEEP.

    The exit code is 1 if a run failed.
    """
    from fedkd.runner.sweep import begin_sweep, overrides_of, parse_grid, run_sweep

    given = any((study, grid, overrides, seeds, fresh))
    if given if resume else not (study and grid):
        raise UserError(
            "sweep: give a study file and --grid, such as --grid partition.alpha=0.1,1, or the "
            "folder of a sweep with --resume alone"
        )
    if study is not None:
        points = [
            (values, load(study, [*(overrides or ()), *overrides_of(values)], seeds=seeds))
            for values in parse_grid(grid or ())
        ]
        resume = begin_sweep(points, out=out, fresh=fresh)
    outcome = run_sweep(resume or Path(), progress_console(quiet=as_json))
    if as_json:
        typer.echo(json.dumps(outcome.summary, indent=1))
    else:
        typer.echo("Exchanges saved to the highest target")
        for cells in (outcome.table.head, *outcome.table.rows):
            typer.echo("  ".join(cells))
        typer.echo(f"Results: {outcome.folder}")
    if outcome.interrupted:
        raise KeyboardInterrupt
    if any(point["failures"] for point in outcome.summary["points"]):
        raise typer.Exit(1)
