"""``fedkd compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedkd.cli.notify import read_command, run_command
from fedkd.cli.options import (
    RUNS,
    AsJson,
    Out,
    Overrides,
    Seeds,
    load,
    progress_console,
    wide_console,
)
from fedkd.errors import UserError

if TYPE_CHECKING:
    from fedkd.config import Study
    from fedkd.runner.study_runner import Outcome


def compare(
    study: Annotated[
        Path | None,
        typer.Argument(metavar="STUDY", help="The study file (YAML); not with --resume."),
    ] = None,
    overrides: Overrides = None,
    seeds: Seeds = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="inline, ray, or a SuperLink connection in Flower's config.toml; overrides the "
            "study.",
        ),
    ] = None,
    out: Out = RUNS,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Recompute everything; ignore the cache.")
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Resume the interrupted study of this results folder."),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=1_000_000,
            help="With --resume: lengthen the study to N rounds an arm; finished runs go on.",
        ),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Also log every round to tensorboard, mlflow, wandb or your own "
            "package.module:Class; may be repeated.",
        ),
    ] = None,
    notify: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="Run a command when the study ends, with its status as JSON on standard input.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run every arm of STUDY, a YAML file, on every seed and compare the exchanges to each target.

    For example: fedkd compare experiments/quickstart.yaml --set rounds.lr=0.1 --seeds 0,1,2,3,4

    Results are written to DIR/<study>/<timestamp>: the resolved study, summary.json, report.html,
    and for each run its curve (rounds.jsonl, one line per round), final model and state.

    An interrupted or killed study continues with --resume RUN, from the last complete round. The
    curves are those of an uninterrupted run. The study and --fresh are then read from RUN. With
    --rounds N the runs that used up their rounds go on, to the curves of a study of N rounds.

    The exit code is 1 if a run failed or stopped because too few silos replied.
    """
    if resume is not None:
        if study is not None or overrides or seeds is not None or engine is not None or fresh:
            raise UserError(
                "--resume: the study is read from RUN; leave out STUDY, --set, --seeds, --engine "
                "and --fresh"
            )
        loaded = _study_of(resume)
    elif study is not None:
        loaded = load(study, overrides, seeds=seeds, engine=engine)
    else:
        raise UserError("compare: give a study file, or a results folder with --resume")
    if rounds is not None and resume is None:
        raise UserError("--rounds: lengthens a study of which there are results; give --resume RUN")
    words, told = read_command(notify), {"study": loaded.name, "status": "failed"}
    try:
        from fedkd.runner.run import execute

        outcome = execute(
            loaded,
            progress_console(quiet=as_json),
            out=out,
            fresh=fresh,
            track=track or (),
            resume=resume,
            rounds=rounds,
        )
        short_of_silos = any(run["stopped"] == "quorum" for run in outcome.summary["runs"])
        incomplete = bool(outcome.summary["failures"]) or short_of_silos
        status = "interrupted" if outcome.interrupted else "failed" if incomplete else "ended"
        told |= {"status": status, "folder": str(outcome.folder)}
    finally:
        run_command(words, told)
    if as_json:
        typer.echo(json.dumps(outcome.summary, indent=1))
    else:
        _show(outcome)
    if outcome.interrupted:
        raise KeyboardInterrupt
    if incomplete:
        raise typer.Exit(1)


def _study_of(run: Path) -> Study:
    from fedkd.config.study_file import resolve_study
    from fedkd.results.folder import STUDY_FILE, find_run, read_study

    folder = find_run(run)
    return resolve_study(read_study(folder), origin=str(folder / STUDY_FILE))


def _show(outcome: Outcome) -> None:
    from fedkd.report import print_summary

    console = wide_console()
    print_summary(outcome.summary, console)
    console.print(f"Results: {outcome.folder}", soft_wrap=True)
