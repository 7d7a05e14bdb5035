"""The commands that need no federation: ``fedkd consolidate`` and ``fedkd export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fedkd.cli.many_values import TEACHERS, ManyTeachers
from fedkd.cli.options import AsJson, parse_numbers, progress_console, wide_console
from fedkd.errors import UserError
from fedkd.util.places import nearest

_SAFETENSORS = ".safetensors"

Classes = Annotated[
    int | None,
    typer.Option("--classes", min=2, max=10_000, help="Number of classes of the models."),
]
Channels = Annotated[
    int | None, typer.Option("--channels", min=1, max=16, help="Channels of their images.")
]
ImageSize = Annotated[
    int | None,
    typer.Option("--image-size", min=4, max=1024, help="Height and width of their images."),
]


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command(cls=ManyTeachers)(consolidate)
    app.command()(export)


def consolidate(
    teachers: Annotated[
        list[str],
        typer.Option(
            TEACHERS,
            metavar="[ARCH=]PATH ...",
            help="One or more checkpoints (.safetensors, .pt, .pth, .ckpt); ARCH=PATH if the "
            "architecture is not --arch.",
        ),
    ],
    transfer: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="Examples to distil on: folder:PATH, flat or one folder a class, npz:PATH, "
            "csv:PATH, parquet:PATH, text:PATH, digits, fashion-mnist, ...",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Where to write the student (.safetensors).")
    ],
    arch: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Architecture of the student, and of teachers for which neither ARCH=PATH nor the "
            "file names one.",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=1, help="Number of examples to distil on; default: all."),
    ] = None,
    labelled: Annotated[
        bool, typer.Option("--labelled", help="The examples' labels may be used.")
    ] = False,
    validation: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE|FRACTION",
            help="Labelled examples on which teachers and student are evaluated: a source (its "
            "test set, if it has one), or a fraction of the transfer source, held out.",
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of the classes in a table or in texts."),
    ] = None,
    column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of the texts; default: text.")
    ] = None,
    method: Annotated[
        str, typer.Option(metavar="NAME", help="kd, dml, dp-kd, fine-tune, or your own.")
    ] = "kd",
    weighting: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Weights of teachers: equal, confidence, consensus, size (with --examples), "
            "accuracy (with --validation), or your own.",
        ),
    ] = "equal",
    student: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Initial student model: average, best, worst, random, fresh."
        ),
    ] = "average",
    batch_norm: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="BatchNorm of an average: average, or recalibrate for statistics computed anew on "
            "the transfer examples.",
        ),
    ] = "average",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set a key of a study's consolidation section, such as temperature=4; may be "
            "repeated.",
        ),
    ] = None,
    examples: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...", help="Number of examples that each teacher was trained on."
        ),
    ] = None,
    classes: Classes = None,
    channels: Channels = None,
    image_size: ImageSize = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Random seed.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Distil several checkpoints into one model, without a federation.

    For example: fedkd consolidate --teachers a.safetensors mlp=b.safetensors --arch cnn
    --transfer folder:scans --validation 0.2 --set temperature=4 --out student.safetensors

    The same files and settings give the same student, bit for bit. The number of classes, the
    channels and the image size are read from the checkpoints' metadata or from the images. Models
    of tables are final models of runs, whose metadata say how columns become inputs; texts need
    --arch hf:FOLDER, whose tokenizer is used.
    """
    from fedkd.config.study_file import parse_consolidation

    chosen = {"method": method, "weighting": weighting, "student": student}
    settings = parse_consolidation(chosen, overrides or ())
    numbers = parse_numbers(examples, "--examples")
    _check_out(out, _SAFETENSORS)

    from fedkd.models.card import save_model
    from fedkd.offline.from_files import consolidate_files
    from fedkd.offline.reader import Wanted
    from fedkd.offline.report import render
    from fedkd.offline.request import Offline, TeacherFile
    from fedkd.report.progress import EpochBar

    offline = Offline(
        teachers=tuple(TeacherFile.parse(text) for text in teachers),
        images=Wanted(
            *(transfer, size, labelled, validation, classes, channels, image_size),
            label=label,
            column=column,
        ),
        arch=_check_arch(arch),
        settings=settings,
        examples=tuple(numbers or ()),
        batch_norm=batch_norm,
        seed=seed,
    )
    if out.resolve() in {teacher.path.resolve() for teacher in offline.teachers}:
        raise UserError(f"--out: {out} is one of the teachers; choose another name")
    with EpochBar(progress_console(quiet=False)) as bar:
        made = consolidate_files(offline, bar.on_epoch)
    save_model(out, made.state, made.card)
    if as_json:
        typer.echo(json.dumps({"out": str(out), **made.report}, indent=1))
        return
    console = wide_console()
    console.print(render(made.report))
    console.print(f"Student: {out}", soft_wrap=True, highlight=False, markup=False)


def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_CHECKPOINT",
            help="The folder of a run, DIR/<study>/<timestamp>/<arm>/seed-<n>, or a checkpoint.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Output file: .safetensors or .pt2.")],
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="safetensors or torch-export; default: by the ending of FILE.",
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Architecture, if the file names none or if it is your code."
        ),
    ] = None,
    classes: Classes = None,
    channels: Channels = None,
    image_size: ImageSize = None,
    register: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Also make it a version of this model in MLflow's registry (MLFLOW_TRACKING_URI).",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export the final model of a run, or a checkpoint, for use outside fedkd.

    For example: fedkd export runs/quickstart/20260101T120000Z/fedkd/seed-0 --out model.pt2

    A .safetensors file holds the weights. A .pt2 file holds the whole program for
    torch.export.load: it maps images, float32 [N, C, H, W] in [0, 1], to logits. FILE.json lists
    classes, preprocessing (of a table, what columns become), study, seed and accuracy.
    """
    chosen = _choose_format(out, file_format)

    from fedkd.offline.export import SUFFIXES, Described, export_model, sidecar
    from fedkd.trackers import make_trackers

    _check_out(out, SUFFIXES[chosen])
    described = Described(_check_arch(arch), classes, channels, image_size)
    registry: Any = make_trackers(["mlflow"], "--register with")[0] if register else None
    exported = export_model(source, out, chosen, described)
    if register:
        facts = {key: str(value) for key, value in exported["origin"].items()}
        tags = {**facts, "sha256": exported["sha256"]}
        exported["version"] = registry.register(register, [out, sidecar(out)], tags)
    if as_json:
        typer.echo(json.dumps(exported, indent=1))
        return
    shape = " x ".join(map(str, exported["input"]["shape"][1:]))
    typer.echo(
        f"{exported['arch']}, {exported['num_parameters']} parameters, inputs of {shape}, "
        f"{exported['num_classes']} classes\nModel: {out}\nNotes: {sidecar(out)}"
    )
    if register:
        typer.echo(f"MLflow: {register}, version {exported['version']}")


def _choose_format(out: Path, name: str | None) -> str:
    from fedkd.suggestions import suggest

    formats = {"safetensors": _SAFETENSORS, "torch-export": ".pt2"}
    if name is None:
        for known, suffix in formats.items():
            if suffix == out.suffix:
                return known
        raise UserError(f"--out: {out} must end in .safetensors or .pt2, or give --format")
    if name not in formats:
        raise UserError(
            f"--format: unknown format {name!r}{suggest(name, list(formats))}; known are "
            f"{', '.join(formats)}"
        )
    return name


def _check_out(out: Path, suffix: str) -> None:
    """Refuse an output path that cannot be written, before anything is computed."""
    if out.suffix != suffix:
        raise UserError(f"--out: the name of {out} must end in {suffix}")
    if out.is_dir():
        raise UserError(f"--out: {out} is a folder; name a file in it")
    if not (parent := nearest(out.absolute().parent)).is_dir():
        raise UserError(f"--out: {parent} is a file, not a folder")


def _check_arch(arch: str | None) -> str | None:
    from fedkd.registry import ARCHITECTURES

    try:
        return None if arch is None else ARCHITECTURES.check(arch)
    except ValueError as error:
        raise UserError(f"--arch: {error}") from None
