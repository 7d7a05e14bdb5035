"""The command line: the one place where all rooms meet, each imported only when needed."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedkd.errors import FedKDError, UserError

if TYPE_CHECKING:
    from experiments.runner import Outcome
    from fedkd.study import Study

app = typer.Typer(
    name="fedkd",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Consolidate pre-trained silo models by knowledge distillation, then federate, and count "
    "the communication rounds that this saves.",
)

StudyPath = Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (YAML).")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Set a key of the study, such as rounds.lr=0.1; may be repeated. Paths of files are "
        "relative to the study file.",
    ),
]


@app.command()
def compare(
    study: StudyPath,
    overrides: Overrides = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Seeds, instead of the study's.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(metavar="NAME", help="inline or ray, instead of the study's.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Root of all results.")] = Path("runs"),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ignore and rewrite what the cache holds.")
    ] = False,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Also log every round to tensorboard, mlflow or wandb; may be repeated.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON, for programs.")
    ] = False,
) -> None:
    """Run every arm of STUDY, a YAML file, on every seed and compare the exchanges to each target.

    Results go to DIR/<study>/<timestamp>: the study as resolved, summary.json, and for each run
    its curve (rounds.jsonl, a line a round), final model and state.

    For example: fedkd compare experiments/quickstart.yaml --set rounds.lr=0.1 --seeds 0,1,2,3,4
    """
    loaded = _load(study, overrides, seeds=_parse_seeds(seeds), engine=engine)
    outcome = _run(loaded, out=out, fresh=fresh, quiet=as_json, track=track or ())
    if as_json:
        typer.echo(json.dumps(outcome.summary, indent=1))
    else:
        _show(outcome)
    if outcome.interrupted:
        raise typer.Exit(130)
    if outcome.summary["failures"]:
        raise typer.Exit(1)


@app.command()
def validate(study: StudyPath, overrides: Overrides = None) -> None:
    """Check STUDY, a YAML file, without running it, and print it with every default filled in."""
    from fedkd.study_file import check_files, dump_study

    loaded = _load(study, overrides)
    check_files(loaded)
    typer.echo(dump_study(loaded), nl=False)


@app.command()
def schema() -> None:
    """Print the JSON schema of study files, for editors and programs."""
    from fedkd.study_file import study_schema

    typer.echo(json.dumps(study_schema(), indent=1))


@app.command()
def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as JSON, for programs.")
    ] = False,
) -> None:
    """Say what this machine can do, and what to do about what is missing."""
    from fedkd.doctor import examine

    findings = []
    for finding in examine():
        findings.append(finding)
        if not as_json:
            mark = {"ok": "ok  ", "note": "note", "broken": "BAD "}[finding.level]
            typer.echo(f"{mark}  {finding.name:10} {finding.value}")
            if finding.advice:
                typer.echo(f"{'':17}-> {finding.advice}")
    if as_json:
        typer.echo(json.dumps([vars(finding) for finding in findings], indent=1))
    if any(finding.level == "broken" for finding in findings):
        raise typer.Exit(1)


def _version(value: bool) -> None:  # noqa: FBT001 -- typer calls it
    if value:
        from fedkd import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; what fedkd foresaw is told in a sentence, without a traceback."""
    # A user's own model, named package.module:function, may lie where fedkd is started.
    sys.path.insert(0, str(Path.cwd()))
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    try:
        app()
    except FedKDError as error:
        typer.echo(f"fedkd: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        # The disk is the user's to mend; any other system error is ours and keeps its traceback.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        typer.echo(f"fedkd: {error.filename or 'the disk'}: {error.strerror}", err=True)
        sys.exit(1)


def _load(
    path: Path,
    overrides: Sequence[str] | None,
    *,
    seeds: Sequence[int] | None = None,
    engine: str | None = None,
) -> Study:
    from fedkd.study_file import load_study

    return load_study(path, overrides or (), seeds=seeds, engine=engine)


def _parse_seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds: {text!r} is no list of whole numbers such as 0,1,2") from None


def _run(study: Study, *, out: Path, fresh: bool, quiet: bool, track: Sequence[str]) -> Outcome:
    from rich.console import Console

    from experiments.runner import run_study
    from fedkd.progress import StudyProgress

    console = Console(stderr=True, quiet=quiet and not sys.stderr.isatty())
    with StudyProgress(console, len(study.arms) * len(study.seeds)) as progress:
        return run_study(study, out=out, fresh=fresh, progress=progress, track=track)


def _show(outcome: Outcome) -> None:
    from rich.console import Console

    from fedkd.report import print_summary

    console = Console(width=None if sys.stdout.isatty() else 160)
    print_summary(outcome.summary, console)
    console.print(f"Results: {outcome.folder}", soft_wrap=True)
    if outcome.interrupted:
        console.print("Interrupted: the same command goes on from the runs that had finished.")


if __name__ == "__main__":
    main()
