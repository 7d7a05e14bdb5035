"""The commands that check before a run: ``fedkd validate``, ``schema`` and ``doctor``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fedkd.cli.options import AsJson, Overrides, StudyPath, load, show_findings


def validate(
    study: StudyPath,
    overrides: Overrides = None,
    file_only: Annotated[
        bool,
        typer.Option("--file-only", help="Check only the file and that the files it names exist."),
    ] = False,
) -> None:
    """Check STUDY, a YAML file, without running it, and print it with every default filled in.

    For example: fedkd validate experiments/quickstart.yaml --set rounds.lr=0.1

    These are the checks of compare: data are read and split, every model is built and trained on
    one batch, every checkpoint is read. Warnings and a description of the data (shapes, examples by
    class, pixels, columns or texts) go to the standard error.
    """
    from fedkd.config.study_file import check_files, dump_study

    loaded = load(study, overrides)
    if file_only:
        check_files(loaded)
    else:
        from fedkd.federation.describe_data import describe_data
        from fedkd.runner.run import check

        federations, warnings = check(loaded)
        for sentence in warnings:
            typer.echo(f"note: {sentence}", err=True)
        for line in describe_data(federations[0]):
            typer.echo(f"data: {line}", err=True)
    typer.echo(dump_study(loaded), nl=False)


def schema() -> None:
    """Print the JSON schema of study files, for editors and programs.

    For example: fedkd schema > study.schema.json
    """
    from fedkd.config.study_file import study_schema

    typer.echo(json.dumps(study_schema(), indent=1))


def doctor(as_json: AsJson = False) -> None:
    """Check this machine: packages, processor, GPU, disk, data; print how to fix problems."""
    from fedkd.doctor import examine

    show_findings(examine(), ("ok", "note", "BAD"), 10, as_json=as_json)
