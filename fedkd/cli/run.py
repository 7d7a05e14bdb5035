"""``fedkd compare``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
    from fedkd.runner.run import Outcome


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
            help="inline, ray, or a SuperLink connection of Flower's config.toml, instead of the "
            "study's.",
        ),
    ] = None,
    out: Out = RUNS,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ignore and rewrite what the cache holds.")
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Resume the study of this results folder, which was interrupted.",
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
    as_json: AsJson = False,
) -> None:
    """Run every arm of STUDY, a YAML file, on every seed and compare the exchanges to each target.

    Results go to DIR/<study>/<timestamp>: the study as resolved, summary.json, report.html, and
    for each run its curve (rounds.jsonl, a line a round), final model and state.

    For example: fedkd compare experiments/quickstart.yaml --set rounds.lr=0.1 --seeds 0,1,2,3,4

    A study that was interrupted or killed goes on by --resume, from the last whole round of the
    run that was under way, and ends with the curves of an undisturbed one. The study, and whether
    it is --fresh, is then read from RUN.

    The exit code is 1 where a run failed or ended because too few silos answered.
    """
    if resume is not None:
        if study is not None or overrides or seeds is not None or engine is not None or fresh:
            raise UserError(
                "--resume: the study is read from RUN; leave out STUDY, --set, --seeds, --engine "
                "and --fresh"
            )
        loaded = load(_study_of(resume), None)
    elif study is not None:
        loaded = load(study, overrides, seeds=seeds, engine=engine)
    else:
        raise UserError("compare: name a study file, or a results folder by --resume")
    names = track or ()
    outcome = _run(loaded, out=out, fresh=fresh, resume=resume, quiet=as_json, track=names)
    if as_json:
        typer.echo(json.dumps(outcome.summary, indent=1))
    else:
        _show(outcome)
    if outcome.interrupted:
        raise KeyboardInterrupt
    starved = any(run["stopped"] == "quorum" for run in outcome.summary["runs"])
    if outcome.summary["failures"] or starved:
        raise typer.Exit(1)


def _study_of(run: Path) -> Path:
    from fedkd.results.folder import STUDY_FILE, find_run

    return find_run(run) / STUDY_FILE


def _run(
    study: Study,
    *,
    out: Path,
    fresh: bool,
    resume: Path | None,
    quiet: bool,
    track: Sequence[str],
) -> Outcome:
    from fedkd.report.progress import StudyProgress
    from fedkd.runner.run import resume_study, run_study

    console = progress_console(quiet=quiet)
    with StudyProgress(console, len(study.arms) * len(study.seeds)) as progress:
        if resume is not None:
            return resume_study(resume, progress=progress, track=track)
        return run_study(study, out=out, fresh=fresh, progress=progress, track=track)


def _show(outcome: Outcome) -> None:
    from fedkd.report import print_summary

    console = wide_console()
    print_summary(outcome.summary, console)
    console.print(f"Results: {outcome.folder}", soft_wrap=True)
