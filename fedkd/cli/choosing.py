"""The commands that choose settings and methods: ``fedkd tune``, ``pairs`` and ``recommend``."""

from __future__ import annotations

import json
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
    progress_console,
    wide_console,
)
from fedkd.errors import UserError

if TYPE_CHECKING:
    from fedkd.config import Study
    from fedkd.federation.recommend import Recommendation


def tune(
    study: StudyPath,
    arm: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The arm to tune; default: the first that distils."),
    ] = None,
    search: Annotated[
        str, typer.Option(metavar="KIND", help="tpe, or grid: 5 x 5 over temperature and weight.")
    ] = "tpe",
    trials: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Total number of trials, earlier ones included; default: 30, or the whole grid.",
        ),
    ] = None,
    proxy: Annotated[
        bool,
        typer.Option(
            "--proxy",
            help="Select without validation data, and measure on validation data how well that "
            "agrees.",
        ),
    ] = False,
    overrides: Overrides = None,
    seeds: Seeds = None,
    out: Out = RUNS,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard earlier trials.")] = False,
    as_json: AsJson = False,
) -> None:
    """Search distillation settings of an arm of STUDY, on validation data only.

    For example: fedkd tune experiments/quickstart.yaml --arm fedkd --trials 30

    Trials are stored in DIR/<study>/tune-<arm>.db; the same command resumes an interrupted search.
    The best settings are written as a study, DIR/<study>/tuned.yaml, and all trials as
    tune-<arm>.json.
    """
    if search not in ("tpe", "grid"):
        raise UserError(f"--search: {search!r} is not a valid search: give tpe or grid")
    loaded = load(study, overrides, seeds=seeds)
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
            kind="grid" if search == "grid" else "tpe",
            trials=trials,
            proxy=proxy,
            fresh=fresh,
        )
    if as_json:
        typer.echo(json.dumps(search_result.results, indent=1))
    else:
        console = wide_console()
        print_outcome(search_result.results, console)
        console.print(
            f"Tuned study: {search_result.tuned}\nAll trials: {search_result.data}", soft_wrap=True
        )
    if search_result.interrupted:
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


def recommend(
    study: StudyPath,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
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
    from fedkd.config.study_file import check_files
    from fedkd.federation.check import check_study
    from fedkd.federation.describe import describe
    from fedkd.federation.federation import Federation
    from fedkd.federation.recommend import recommend
    from fedkd.federation.thread_pool import silo_pool
    from fedkd.util.cache import cache_root, check_cache_root

    check_files(study)
    check_cache_root()
    federation = Federation.load(study, study.seeds[0], cache_root())
    for sentence in check_study([federation]):
        typer.echo(f"note: {sentence}", err=True)
    federation.require_transfer()
    with silo_pool(study) as pool:
        federation.pretrain(pool)
    figures = describe(federation)
    return recommend(figures), figures
