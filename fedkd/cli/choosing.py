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
    seeds: Seeds = None,
    out: Out = RUNS,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the trials of before.")] = False,
    as_json: AsJson = False,
) -> None:
    """Search the settings of an arm of STUDY that consolidates, on validation data only.

    The trials are kept in DIR/<study>/tune-<arm>.db; the same command goes on from there. The
    winner is written as a study that runs, DIR/<study>/tuned.yaml, all trials as tune-<arm>.json.
    """
    if search not in ("tpe", "grid"):
        raise UserError(f"--search: {search!r} is neither tpe nor grid")
    loaded = load(study, overrides, seeds=seeds)
    from fedkd.federation.thread_pool import silo_pool
    from fedkd.report.progress import SearchProgress
    from fedkd.tuning.command import tune as run_search
    from fedkd.tuning.outcome import print_outcome

    quiet = progress_console(quiet=as_json)
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
        console = wide_console()
        print_outcome(found.results, console)
        console.print(f"Tuned study: {found.tuned}\nAll trials: {found.data}", soft_wrap=True)
    if found.interrupted:
        raise KeyboardInterrupt


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
    seeds: Seeds = None,
    out: Out = RUNS,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the rows of before.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let every silo of STUDY teach every other under every method: who gains, who forgets?

    Each student starts from its silo's own model and learns on the transfer set, with the
    optimiser of the first arm that consolidates. Temperature and weight are 1 and 0.5; kd-tuned
    takes the best of 1, 4, 16 and 0.1, 0.5, 0.9 on validation data. The table is
    DIR/<study>/pairs.csv, and pairs.json with what its columns mean; the same command goes on
    from the rows that pairs.jsonl holds.

    For example: fedkd pairs experiments/quickstart.yaml --set partition.silos=5 --methods kd,dml
    """
    loaded = load(study, overrides, seeds=seeds)
    from fedkd.federation.thread_pool import silo_pool
    from fedkd.pairs.command import measure_pairs
    from fedkd.pairs.outcome import print_outcome
    from fedkd.report.progress import PairsProgress

    quiet = progress_console(quiet=as_json)
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
        console = wide_console()
        print_outcome(found.results, console)
        console.print(f"Table: {found.table}\nWith its summary: {found.data}", soft_wrap=True)
    if found.interrupted:
        raise KeyboardInterrupt


def recommend(
    study: StudyPath,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Describe the federation of STUDY, a YAML file, and name a method for it.

    Looks at the first seed: how labels and sizes differ between silos, how good the silos' models
    are (they are pre-trained if they are not in the cache), what transfer set there is. The method
    comes from a decision tree fitted on the project's recorded studies; how often such studies
    agree, and how often the tree is right on studies that it has not seen, is printed with it.

    For example: fedkd recommend experiments/quickstart.yaml --set partition.alpha=0.5
    """
    loaded = load(study, overrides)
    found, figures = _recommend(loaded)
    if as_json:
        typer.echo(json.dumps({"federation": figures, **vars(found)}, indent=1))
        return
    from fedkd.report.terminal import print_recommendation

    print_recommendation(found, figures, wide_console())


def _recommend(study: Study) -> tuple[Recommendation, dict[str, Any]]:
    from fedkd.config.study_file import check_files
    from fedkd.federation.describe import describe
    from fedkd.federation.federation import Federation
    from fedkd.federation.recommend import recommend
    from fedkd.federation.thread_pool import silo_pool
    from fedkd.util.cache import cache_root, check_cache_root

    check_files(study)
    check_cache_root()
    federation = Federation.load(study, study.seeds[0], cache_root())
    for sentence in federation.check():
        typer.echo(f"note: {sentence}", err=True)
    federation.require_transfer()
    with silo_pool(study) as pool:
        federation.pretrain(pool)
    figures = describe(federation)
    return recommend(figures), figures
