"""The command line: the one place where all rooms meet, each imported only when needed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedkd import cli_cache, cli_hosts, cli_offline
from fedkd.errors import FedKDError, UserError
from fedkd.files import DISK_ERRORS

if TYPE_CHECKING:
    from experiments.runner import Outcome
    from fedkd.recommendation import Recommendation
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
    study: Annotated[
        Path | None,
        typer.Argument(metavar="STUDY", help="The study file (YAML); not with --resume."),
    ] = None,
    overrides: Overrides = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Seeds, instead of the study's.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="inline, ray, or a SuperLink connection of Flower's config.toml, instead of the "
            "study's.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Root of all results.")] = Path("runs"),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ignore and rewrite what the cache holds.")
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Go on with the study of this results folder, which was cut short.",
        ),
    ] = None,
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
        loaded = _load(_study_of(resume), None)
    elif study is not None:
        loaded = _load(study, overrides, seeds=_parse_seeds(seeds), engine=engine)
    else:
        raise UserError("compare: name a study file, or a results folder by --resume")
    names = track or ()
    outcome = _run(loaded, out=out, fresh=fresh, resume=resume, quiet=as_json, track=names)
    if as_json:
        typer.echo(json.dumps(outcome.summary, indent=1))
    else:
        _show(outcome)
    if outcome.interrupted:
        from experiments.resumption import command

        typer.echo(f"Interrupted. Go on by: {command(outcome.folder, names)}", err=as_json)
        raise typer.Exit(130)
    starved = any(run["stopped"] == "quorum" for run in outcome.summary["runs"])
    if outcome.summary["failures"] or starved:
        raise typer.Exit(1)


@app.command()
def tune(
    study: StudyPath,
    arm: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The arm to tune; by default the first that can be."),
    ] = None,
    search: Annotated[
        str, typer.Option(metavar="KIND", help="tpe, or grid: 5 x 5 over temperature and weight.")
    ] = "tpe",
    trials: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Trials in all, those of earlier starts included; by default 30, or the grid.",
        ),
    ] = None,
    proxy: Annotated[
        bool,
        typer.Option(
            "--proxy",
            help="Choose without validation data although there are some, and say how well the "
            "choice agrees with them.",
        ),
    ] = False,
    overrides: Overrides = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Seeds, instead of the study's.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Root of all results.")] = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the trials of before.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON, for programs.")
    ] = False,
) -> None:
    """Search the settings of an arm of STUDY that consolidates, on validation data only.

    The trials are kept in DIR/<study>/tune-<arm>.db; the same command goes on from there. The
    winner is written as a study that runs, DIR/<study>/tuned.yaml, all trials as tune-<arm>.json.
    """
    if search not in ("tpe", "grid"):
        raise UserError(f"--search: {search!r} is neither tpe nor grid")
    loaded = _load(study, overrides, seeds=_parse_seeds(seeds))
    from rich.console import Console

    from experiments.engines.inline import silo_pool
    from fedkd.progress import SearchProgress
    from fedkd.tuning.command import tune as run_search
    from fedkd.tuning.outcome import print_outcome

    quiet = Console(stderr=True, quiet=as_json and not sys.stderr.isatty())
    with SearchProgress(quiet) as progress, silo_pool(loaded) as pool:
        found = run_search(
            loaded,
            arm,
            out=out,
            pool=pool,
            progress=progress,
            kind="grid" if search == "grid" else "tpe",
            trials=trials,
            proxy=proxy,
            fresh=fresh,
        )
    if as_json:
        typer.echo(json.dumps(found.results, indent=1))
    else:
        console = Console(width=None if sys.stdout.isatty() else 160)
        print_outcome(found.results, console)
        console.print(f"Tuned study: {found.tuned}\nAll trials: {found.data}", soft_wrap=True)
        if found.interrupted:
            console.print("Interrupted: the same command goes on from the trials that had ended.")
    if found.interrupted:
        raise typer.Exit(130)


@app.command()
def pairs(
    study: StudyPath,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Of kd, kd-tuned, dml, dp-kd, fine-tune and your own; by default all that the "
            "study's labels and validation data allow.",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Epochs, instead of the study's.")
    ] = None,
    overrides: Overrides = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Seeds, instead of the study's.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Root of all results.")] = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the rows of before.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON, for programs.")
    ] = False,
) -> None:
    """Let every silo of STUDY teach every other under every method: who gains, who forgets?

    Each student starts from its silo's own model and learns on the transfer set, with the
    optimiser of the first arm that consolidates. Temperature and weight are 1 and 0.5; kd-tuned
    takes the best of 1, 4, 16 and 0.1, 0.5, 0.9 on validation data. The table is
    DIR/<study>/pairs.csv, and pairs.json with what its columns mean; the same command goes on
    from the rows that pairs.jsonl holds.

    For example: fedkd pairs experiments/quickstart.yaml --set partition.silos=5 --methods kd,dml
    """
    loaded = _load(study, overrides, seeds=_parse_seeds(seeds))
    from rich.console import Console

    from experiments.engines.inline import silo_pool
    from fedkd.pairs.command import measure_pairs
    from fedkd.pairs.outcome import print_outcome
    from fedkd.progress import PairsProgress

    quiet = Console(stderr=True, quiet=as_json and not sys.stderr.isatty())
    with PairsProgress(quiet) as progress, silo_pool(loaded) as pool:
        found = measure_pairs(
            loaded,
            out=out,
            pool=pool,
            progress=progress,
            methods=None if methods is None else [name.strip() for name in methods.split(",")],
            epochs=epochs,
            fresh=fresh,
        )
    if as_json:
        typer.echo(json.dumps(found.results, indent=1))
    else:
        console = Console(width=None if sys.stdout.isatty() else 160)
        print_outcome(found.results, console)
        console.print(f"Table: {found.table}\nWith its summary: {found.data}", soft_wrap=True)
    if found.interrupted:
        if not as_json:
            console.print("Interrupted: the same command goes on from the rows that are there.")
        raise typer.Exit(130)


@app.command()
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
    from fedkd.report.results import REPORT_FILE, Results, find_run

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


@app.command()
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
    from rich.console import Console

    from fedkd.watch import watch as follow

    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        follow(run, console, once=once)
    except KeyboardInterrupt:
        console.print("No longer watching; the study goes on.")
        raise typer.Exit(130) from None


@app.command()
def validate(study: StudyPath, overrides: Overrides = None) -> None:
    """Check STUDY, a YAML file, without running it, and print it with every default filled in."""
    from fedkd.study_file import check_files, dump_study

    loaded = _load(study, overrides)
    check_files(loaded)
    typer.echo(dump_study(loaded), nl=False)


@app.command()
def recommend(
    study: StudyPath,
    overrides: Overrides = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON, for programs.")
    ] = False,
) -> None:
    """Describe the federation of STUDY, a YAML file, and name a method for it.

    Looks at the first seed: how labels and sizes differ between silos, how good the silos' models
    are (they are pre-trained if they are not in the cache), what transfer set there is. The method
    comes from a decision tree fitted on the project's recorded studies; how often such studies
    agree, and how often the tree is right on studies that it has not seen, is printed with it.

    For example: fedkd recommend experiments/quickstart.yaml --set partition.alpha=0.5
    """
    loaded = _load(study, overrides)
    found, figures = _recommend(loaded)
    if as_json:
        typer.echo(json.dumps({"federation": figures, **vars(found)}, indent=1))
        return
    from rich.console import Console

    from fedkd.report.terminal import print_recommendation

    print_recommendation(found, figures, Console(width=None if sys.stdout.isatty() else 100))


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


cli_offline.add_commands(app)
cli_cache.add_commands(app)
cli_hosts.add_commands(app)


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
        if error.errno not in DISK_ERRORS:
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


def _recommend(study: Study) -> tuple[Recommendation, dict[str, Any]]:
    from experiments.engines.inline import silo_pool
    from fedkd.cache import cache_root, check_cache_root
    from fedkd.description import describe
    from fedkd.federation import Federation
    from fedkd.recommendation import recommend
    from fedkd.study_file import check_files

    check_files(study)
    check_cache_root()
    federation = Federation.load(study, study.seeds[0], cache_root())
    federation.check()
    with silo_pool(study) as pool:
        federation.pretrain(pool)
    figures = describe(federation)
    return recommend(figures), figures


def _study_of(run: Path) -> Path:
    from fedkd.report.results import STUDY_FILE, find_run

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
    from rich.console import Console

    from experiments.runner import resume_study, run_study
    from fedkd.progress import StudyProgress

    console = Console(stderr=True, quiet=quiet and not sys.stderr.isatty())
    with StudyProgress(console, len(study.arms) * len(study.seeds)) as progress:
        if resume is not None:
            return resume_study(resume, progress=progress, track=track)
        return run_study(study, out=out, fresh=fresh, progress=progress, track=track)


def _show(outcome: Outcome) -> None:
    from rich.console import Console

    from fedkd.report import print_summary

    console = Console(width=None if sys.stdout.isatty() else 160)
    print_summary(outcome.summary, console)
    console.print(f"Results: {outcome.folder}", soft_wrap=True)


if __name__ == "__main__":
    main()
