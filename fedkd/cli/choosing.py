"""The commands that choose settings and methods: ``fedkd tune``, ``pairs`` and ``recommend``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedkd.cli.options import (
    RUNS,
    AsJson,
    Out,
    Overrides,
    Seeds,
    StudyPath,
    load,
    parse_numbers,
    progress_console,
    wide_console,
)
from fedkd.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from fedkd.config import Study
    from fedkd.federation.recommend import Recommendation
    from fedkd.tuning.outcome import Searched


def tune(
    study: StudyPath,
    arm: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Tune the start of one arm; default: of the first that distils."
        ),
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...", help="Tune whole arms, baselines first; all stands for every arm."
        ),
    ] = None,
    search: Annotated[
        str,
        typer.Option(
            metavar="KIND", help="For --arm: tpe, or grid: 5 x 5 over temperature and weight."
        ),
    ] = "tpe",
    trials: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Total number of trials of each arm, earlier ones included; default: 16 with "
            "--arms, else 30 or the whole grid.",
        ),
    ] = None,
    proxy: Annotated[
        bool,
        typer.Option(
            "--proxy",
            help="For --arm: select without validation data, and measure on validation data how "
            "well that agrees.",
        ),
    ] = False,
    overrides: Overrides = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Seeds of the trials, none of them a seed of the study; default: 100,101.",
        ),
    ] = None,
    out: Out = RUNS,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard earlier trials.")] = False,
    as_json: AsJson = False,
) -> None:
    """Search settings of arms of STUDY, on validation data and on seeds of their own.

    For example: fedkd tune experiments/quickstart.yaml --arms all --trials 16

    With --arms every arm gets the same number of trials over the same kinds of settings: learning
    rate, local epochs, batch size, momentum, schedule, the server's learning rate, and the numeric
    settings of its start. A trial is judged by the exchanges to the highest target.

    With --arm only the start of one arm is tuned, judged by its metric before any round.

    Trials are stored in DIR/<study>; the same command resumes an interrupted search. The best
    settings are written as a study, DIR/<study>/tuned.yaml, and all trials as tuning.json (--arms)
    or tune-<arm>.json (--arm).
    """
    if search not in ("tpe", "grid"):
        raise UserError(f"--search: {search!r} is not a valid search: give tpe or grid")
    loaded = load(study, overrides)
    from fedkd.tuning.seeds import SEEDS

    trial_seeds = parse_numbers(seeds, "--seeds") or list(SEEDS)
    if arms is not None:
        if arm is not None or search != "tpe" or proxy:
            raise UserError("--arms: tunes whole arms; leave out --arm, --search and --proxy")
        _tune_arms(loaded, arms, trial_seeds, trials, out, fresh=fresh, as_json=as_json)
        return
    from fedkd.federation.thread_pool import silo_pool
    from fedkd.report.progress import SearchProgress
    from fedkd.tuning.command import tune as run_search
    from fedkd.tuning.outcome import print_outcome

    console = progress_console(quiet=as_json)
    with SearchProgress(console) as progress, silo_pool(loaded) as pool:
        search_result = run_search(
            loaded,
            arm,
            out=out,
            pool=pool,
            progress=progress,
            seeds=trial_seeds,
            kind="grid" if search == "grid" else "tpe",
            trials=trials,
            proxy=proxy,
            fresh=fresh,
        )
    _show(search_result, print_outcome, as_json=as_json)


def _tune_arms(
    study: Study,
    arms: str,
    seeds: list[int],
    trials: int | None,
    out: Path,
    *,
    fresh: bool,
    as_json: bool,
) -> None:
    from fedkd.engines.inline import InlineEngine
    from fedkd.federation.thread_pool import silo_pool
    from fedkd.report.progress import ArmSearchProgress
    from fedkd.runner.trial import TrialRunner
    from fedkd.tuning.arm_search import TRIALS
    from fedkd.tuning.arms_command import tune_arms
    from fedkd.tuning.arms_outcome import print_arms

    console = progress_console(quiet=as_json)
    with (
        ArmSearchProgress(console) as progress,
        silo_pool(study) as pool,
        InlineEngine(pool) as engine,
    ):
        search_result = tune_arms(
            study,
            None if arms == "all" else [name.strip() for name in arms.split(",")],
            seeds=seeds,
            trials=TRIALS if trials is None else trials,
            out=out,
            pool=pool,
            make_runner=lambda federations: TrialRunner(federations, engine),
            progress=progress,
            fresh=fresh,
        )
    _show(search_result, print_arms, as_json=as_json)


def _show(
    search: Searched,
    print_results: Callable[[dict[str, Any], Console], None],
    *,
    as_json: bool,
) -> None:
    """Print what a search found, and where its files are."""
    if as_json:
        typer.echo(json.dumps(search.results, indent=1))
    else:
        console = wide_console()
        print_results(search.results, console)
        if search.tuned is not None:
            console.print(f"Tuned study: {search.tuned}", soft_wrap=True)
        console.print(f"All trials: {search.data}", soft_wrap=True)
    if search.interrupted:
        raise KeyboardInterrupt


def pairs(
    study: StudyPath,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="kd, kd-tuned, dml, dp-kd, fine-tune or your own; default: all that the study's "
            "labels and validation data allow.",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Epochs; overrides the study.")
    ] = None,
    overrides: Overrides = None,
    seeds: Seeds = None,
    out: Out = RUNS,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard earlier rows.")] = False,
    as_json: AsJson = False,
) -> None:
    """Distil every silo's model of STUDY into every other, and measure gain and forgetting.

    For example: fedkd pairs experiments/quickstart.yaml --set partition.silos=5 --methods kd,dml

    Each student starts from its silo's own model and is distilled on the transfer set, with the
    optimiser of the first arm that consolidates. Temperature and weight are 1 and 0.5; kd-tuned
    takes the best of 1, 4, 16 and 0.1, 0.5, 0.9 on validation data. The table is written to
    DIR/<study>/pairs.csv, and with a description of its columns to pairs.json. The same command
    resumes after the rows that are already in pairs.jsonl.
    """
    loaded = load(study, overrides, seeds=seeds)
    from fedkd.federation.thread_pool import silo_pool
    from fedkd.pairs.command import measure_pairs
    from fedkd.pairs.outcome import print_outcome
    from fedkd.report.progress import PairsProgress

    console = progress_console(quiet=as_json)
    with PairsProgress(console) as progress, silo_pool(loaded) as pool:
        measured = measure_pairs(
            loaded,
            out=out,
            pool=pool,
            progress=progress,
            methods=None if methods is None else [name.strip() for name in methods.split(",")],
            epochs=epochs,
            fresh=fresh,
        )
    if as_json:
        typer.echo(json.dumps(measured.results, indent=1))
    else:
        console = wide_console()
        print_outcome(measured.results, console)
        console.print(f"Table: {measured.table}\nWith its summary: {measured.data}", soft_wrap=True)
    if measured.interrupted:
        raise KeyboardInterrupt


def recommend(study: StudyPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Describe the federation of STUDY, a YAML file, and print the method best on average.

    For example: fedkd recommend experiments/quickstart.yaml --set partition.alpha=0.5

    The description is of the first seed: label skew, silo sizes, accuracy of the silos' models
    (pre-trained if they are not in the cache) and the transfer set. The method is the one with the
    highest accuracy, averaged over the project's recorded federations. It is the same for every
    federation: no property in the description was found to predict a better method.
    """
    loaded = load(study, overrides)
    recommendation, figures = _recommend(loaded)
    if as_json:
        typer.echo(json.dumps({"federation": figures, **vars(recommendation)}, indent=1))
        return
    from fedkd.report.terminal import print_recommendation

    print_recommendation(recommendation, figures, wide_console())


def _recommend(study: Study) -> tuple[Recommendation, dict[str, Any]]:
    from fedkd.federation.describe import describe
    from fedkd.federation.federation import Federation
    from fedkd.federation.prepare import load_federations
    from fedkd.federation.recommend import recommend
    from fedkd.federation.thread_pool import silo_pool

    first = study.model_copy(update={"seeds": study.seeds[:1]})
    [federation], warnings = load_federations(first, Federation.load)
    for sentence in warnings:
        typer.echo(f"note: {sentence}", err=True)
    federation.require_transfer()
    with silo_pool(study) as pool:
        federation.pretrain(pool)
    figures = describe(federation)
    return recommend(figures), figures
