"""Export of a final model: as safetensors, or as a program of ``torch.export``."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedkd.errors import FedKDError, UserError, raise_exhaustion
from fedkd.models.build import Shape, rebuild
from fedkd.models.card import ModelCard, load_model, read_card, save_model
from fedkd.models.given import find_given
from fedkd.models.state import Checkpoint, State
from fedkd.results.folder import STUDY_FILE, read_study
from fedkd.results.record import RunRecord
from fedkd.util.files import hash_file, replacing, write_json

SUFFIXES = {"safetensors": ".safetensors", "torch-export": ".pt2"}
"""Formats, and how the names of their files end."""

_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Described:
    """Architecture and shape of a checkpoint, as far as the user gives them."""

    arch: str | None = None
    num_classes: int | None = None
    in_channels: int | None = None
    image_size: int | None = None

    def card(self) -> ModelCard | None:
        """Return a card, or None if anything is missing."""
        if self.num_classes is None or self.in_channels is None or self.image_size is None:
            return None
        if self.arch is None:
            return None
        return ModelCard(self.arch, Shape(self.num_classes, self.in_channels, self.image_size))


def export_model(
    source: Path, out: Path, file_format: str, described: Described | None = None
) -> dict[str, Any]:
    """Write the model of a finished run or of a checkpoint, and a JSON file beside it.

    The JSON's name is :func:`sidecar`'s. A checkpoint without a card needs a description.

    Returns:
        What the JSON file holds.

    Raises:
        UserError: there is no such model, or nothing says how to build it.
        FedKDError: PyTorch cannot export it, or the exported program gives other logits.
    """
    path, facts = _find(source)
    if out.resolve() == path.resolve():
        raise UserError(f"--out: {out} is the model itself; choose another name")
    card = _card(path, described or Described())
    checkpoint = load_model(path, card, what=str(source))
    card = replace(card, facts=card.facts | facts)
    if file_format == "torch-export":
        _write_program(out, checkpoint.state, card)
    else:
        save_model(out, checkpoint.state, card)
    description = _describe(out, file_format, checkpoint, card)
    write_json(sidecar(out), description)
    return description


def sidecar(out: Path) -> Path:
    """Return the path of the JSON file that goes with an exported model."""
    return out.with_name(f"{out.name}.json")


def _find(source: Path) -> tuple[Path, dict[str, Any]]:
    """Return the checkpoint that ``source`` names and, if it is a run's, facts about the run."""
    found = find_given(source, what="export")
    if not found.run:
        return found.path, {}
    record = RunRecord.read(found.path.parent)
    folder = found.path.absolute().parents[2]
    facts: dict[str, Any] = {
        "study": read_study(folder).get("name") if (folder / STUDY_FILE).is_file() else None,
        "arm": record.arm,
        "seed": record.seed,
        "rounds": record.curve[-1].round,
        "accuracy": record.curve[-1].accuracy,
        "accuracy_on": "the study's test examples"
        if record.accuracy_source == "test"
        else "the silos' own examples",
    }
    return found.path, facts


def _card(path: Path, described: Described) -> ModelCard:
    """Return the file's card, else one of what the user gives."""
    card = read_card(path, what="export")
    if card is None:
        card = described.card()
        if card is None:
            raise UserError(
                f"export: {path} does not say how to build its model; give --arch, --classes, "
                "--channels and --image-size"
            )
        return card
    # Code of a user's own is never imported because a file says so.
    if card.is_own and described.arch != card.arch:
        raise UserError(
            f"export: {path} says that its architecture is {card.arch}, which is code that would "
            f"be run; if it is yours, give --arch {card.arch}"
        )
    for key, value in vars(described).items():
        own = card.arch if key == "arch" else getattr(card.shape, key)
        if value is not None and value != own:
            raise UserError(f"export: {path} says that its {key} is {own}, not {value}")
    return card


def _write_program(out: Path, state: State, card: ModelCard) -> None:
    """Write a program that takes any number of images, and check that it gives the same logits."""
    model = rebuild(card.arch, card.shape, state).eval()
    shape = card.shape
    images = shape.zeros(5)
    if images.is_floating_point():
        images = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    batch = torch.export.Dim("batch", min=1)
    try:
        program = torch.export.export(model, (images[:2],), dynamic_shapes=({0: batch},))
    except Exception as error:  # a model of any kind may fail anywhere inside PyTorch
        raise_exhaustion(error)
        reason = str(error).strip().split("\n", 1)[0]
        raise FedKDError(
            f"export: torch.export cannot export {card.arch}: {reason}; use --format safetensors"
        ) from error
    with replacing(out) as temporary:
        with temporary.open("wb") as file:
            torch.export.save(program, file)
        with temporary.open("rb") as file:
            _check_same(model, torch.export.load(file).module(), images, card)


@torch.no_grad()
def _check_same(
    model: nn.Module, program: nn.Module, images: torch.Tensor, card: ModelCard
) -> None:
    for count in (1, len(images)):
        expected, exported = model(images[:count]), program(images[:count])
        if not torch.allclose(expected, exported, rtol=_TOLERANCE, atol=_TOLERANCE):
            worst = float((expected - exported).abs().max())
            raise FedKDError(
                f"export: the exported {card.arch} gives logits that differ from the model's by up "
                f"to {worst:g}; use --format safetensors"
            )


def _normalization(file_format: str, card: ModelCard) -> str:
    """Return who normalises the images: the program itself, or whoever uses the weights."""
    preprocessing = card.preprocessing
    if preprocessing is None:
        return "no further normalisation"
    if file_format != "safetensors":
        return "the program normalises them itself"
    size = f"resize them to {preprocessing.size} pixels, " if preprocessing.size else ""
    return (
        f"then {size}subtract {list(preprocessing.mean)} and divide by {list(preprocessing.std)}, "
        "channel by channel, as fedkd does by the file's card"
    )


def _preprocessing(file_format: str, card: ModelCard) -> dict[str, Any]:
    """Return how examples become the model's inputs."""
    if card.shape.kind != "image":
        return {"columns": json.loads(card.columns)} if card.columns else {}
    return {
        "range": [0, 1],
        "preprocessing": "crop the centre square, resize it with antialiased bilinear "
        f"interpolation, divide 8-bit values by 255; {_normalization(file_format, card)}",
    }


def _describe(
    out: Path, file_format: str, checkpoint: Checkpoint, card: ModelCard
) -> dict[str, Any]:
    shape = card.shape
    return {
        "file": out.name,
        "format": file_format,
        "sha256": hash_file(out),
        "arch": card.arch,
        **shape.sizes,
        "classes": list(card.classes) or None,
        "num_parameters": sum(tensor.numel() for tensor in checkpoint.state.values()),
        "input": {
            "type": "int64" if shape.kind == "text" else "float32",
            "shape": ["N", *shape.input_shape],
            **_preprocessing(file_format, card),
        },
        "output": {
            "type": "float32",
            "shape": ["N", shape.num_classes],
            "meaning": "logits; their softmax gives probabilities",
        },
        "origin": card.facts,
        "notes": list(checkpoint.notes),
        "versions": {"fedkd": card.version, "torch": torch.__version__},
    }
