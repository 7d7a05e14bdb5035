"""``fedkd evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedkd.cli.options import AsJson, Overrides, StudyPath, load, progress_console, wide_console
from fedkd.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from fedkd.results.evaluation import Evaluation


def evaluate(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL...",
            help="Checkpoints, or folders RUN/ARM/seed-N of finished runs. For deployed silos: "
            "files on the SuperLink's host by their absolute paths, or folders of runs on it.",
        ),
    ],
    study: StudyPath,
    overrides: Overrides = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Seed by which the data are split; default: the study's first."
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="For deployed silos: a SuperLink connection in Flower's config.toml.",
        ),
    ] = None,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print one line of CSV for each model and silo.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure models on the examples of all silos of STUDY and of the server; nothing is trained.

    For example: fedkd evaluate runs/quickstart/20260101T120000Z/fedkd/seed-0 other.safetensors
    experiments/quickstart.yaml

    A silo measures on its test examples, or on all its examples if it has no test examples; models
    of its study were trained on those. Deployed silos answer as their silo.yaml allows, and write
    it to their audit logs.

    The exit code is 1 if a silo gave no figures.
    """
    if as_csv and as_json:
        raise UserError("--csv: leave out --json, or the other way round")

    from fedkd.runner.evaluate import evaluate_models

    loaded = load(study, overrides, engine=engine)
    console = progress_console(quiet=as_json or as_csv)
    found = evaluate_models(
        loaded, models, seed=seed, report=lambda text: console.print(text, markup=False)
    )
    if as_csv:
        typer.echo(found.to_csv(), nl=False)
    elif as_json:
        typer.echo(json.dumps({"study": loaded.name, **found.to_dict()}, indent=1))
    else:
        _show(found, wide_console())
    for each in found.unmeasured:
        of = "" if each.model is None else f" of {each.model}"
        typer.echo(f"{each.silo} gave no figures{of}: {each.reason}", err=True)
    if found.unmeasured:
        raise typer.Exit(1)


def _show(found: Evaluation, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    models = list(dict.fromkeys(row.model for row in found.measured))
    silos = list(dict.fromkeys(row.silo for row in found.measured if row.silo is not None))
    sizes = {row.silo: row.num_examples for row in found.measured}
    table = Table("silo", title="Accuracy", title_justify="left", title_style="bold")
    table.add_column("examples", justify="right")
    for model in models:
        table.add_column(escape(model), justify="right", overflow="fold")

    def cell(accuracy: float | None) -> str:
        return "" if accuracy is None else f"{accuracy:.1%}"

    for silo in silos:
        cells = [cell(found.accuracy(model, silo)) for model in models]
        table.add_row(escape(silo), str(sizes[silo]), *cells)
    table.add_section()
    total = sum(sizes[silo] for silo in silos)
    table.add_row("all silos", str(total), *(cell(found.mean(model)) for model in models))
    if None in sizes:
        here = [cell(found.accuracy(model, None)) for model in models]
        table.add_row("server", str(sizes[None]), *here)
    console.print(table)
