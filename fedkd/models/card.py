"""The model card in a checkpoint's metadata, which says how to build the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedkd.data.source import MAX_CLASSES
from fedkd.errors import UserError
from fedkd.models.build import Shape, build_model, count_bytes
from fedkd.models.check import check_model
from fedkd.models.state import Checkpoint, State, copy_state, read_checkpoint, save_state
from fedkd.registry import ARCHITECTURES
from fedkd.suggestions import RENAMED
from fedkd.util.checkpoint_files import files_of, find_weights_problem
from fedkd.util.safetensors_header import read_metadata
from fedkd.version import VERSION

_KEY = "fedkd"
_BOUNDS = {
    "num_classes": (2, MAX_CLASSES),
    "in_channels": (1, 16),
    "image_size": (1, 2048),
}

_AFFORDABLE = 64 << 20
"""Bytes of parameters that are allocated for a file of any size."""


@dataclass(frozen=True)
class ModelCard:
    """What a program needs to rebuild a model, and what else is known of it.

    Attributes:
        arch: its architecture.
        shape: what it is built for.
        classes: names of the classes, or empty where they are unknown.
        facts: how it came to be, as plain values: study, arm, seed, accuracy and the like.
        version: of the fedkd that wrote the file.
    """

    arch: str
    shape: Shape
    classes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    version: str = VERSION

    @property
    def is_own(self) -> bool:
        """Whether the architecture is a user's own code."""
        return ARCHITECTURES.is_own(self.arch)

    def to_metadata(self) -> dict[str, str]:
        """Return the card as a safetensors header holds it, text to text.

        It is a single entry: safetensors writes several in an order that changes from call to
        call, and the same model must give the same bytes.
        """
        card = {
            "version": self.version,
            "arch": self.arch,
            **vars(self.shape),
            "classes": list(self.classes),
            "facts": self.facts,
        }
        return {_KEY: json.dumps(card, sort_keys=True, allow_nan=False)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ModelCard | None:
        """Read a card; None where there is none.

        Raises:
            ValueError: the card is not valid.
        """
        if _KEY not in metadata:
            return None
        card = json.loads(metadata[_KEY], parse_constant=_refuse_constant)
        if not isinstance(card, dict):
            raise ValueError("it is not a mapping")  # noqa: TRY004 -- all one kind
        sizes = {key: _bounded(key, card.get(key)) for key in _BOUNDS}
        classes = _typed("classes", card.get("classes"), list)
        arch = _typed("arch", card.get("arch"), str)
        if classes and len(classes) != sizes["num_classes"]:
            raise ValueError(f"it names {len(classes)} classes of {sizes['num_classes']}")
        return cls(
            arch=ARCHITECTURES.check(RENAMED.get(arch, arch)),
            shape=Shape(**sizes),
            classes=tuple(str(name) for name in classes),
            facts=_typed("facts", card.get("facts"), dict),
            version=_typed("version", card.get("version"), str),
        )


def read_card(path: Path, *, what: str) -> ModelCard | None:
    """Read a checkpoint's card from its header alone; None where it has none.

    Args:
        path: a checkpoint; only a ``.safetensors`` file can have a card.
        what: how to name the file in an error.

    Raises:
        UserError: the file is missing, unreadable, damaged, or its card is.
    """
    if problem := find_weights_problem(path):
        raise UserError(f"{what}: {problem}")
    if path.suffix != ".safetensors":
        return None
    try:
        return ModelCard.from_metadata(read_metadata(path))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{what}: {path} is damaged: its header does not say how to build the model: {error}"
        ) from error


def load_model(path: Path, card: ModelCard, *, what: str) -> Checkpoint:
    """Read a checkpoint that must fit its card.

    Raises:
        UserError: it does not, or the architecture does not take such images.
    """
    # A header may claim any shape: a small file must not make us build a huge model. The model
    # may take more than its file, where that has floats of 16 bits or shared tensors once.
    allowed = max(_AFFORDABLE, 4 * sum(file.stat().st_size for file in files_of(path)))
    if not card.is_own and count_bytes(card.arch, card.shape) > allowed:
        shape = card.shape
        raise UserError(
            f"{what}: {path} does not fit the architecture: it is too small for {card.arch} on "
            f"{shape.in_channels} x {shape.image_size} x {shape.image_size} images and "
            f"{shape.num_classes} classes"
        )
    check_model(card.arch, card.shape, trained=False)
    return read_checkpoint(path, copy_state(build_model(card.arch, card.shape, seed=0)), what=what)


def save_model(path: Path, state: State, card: ModelCard) -> None:
    """Write a state dict with its card, atomically."""
    save_state(path, state, card.to_metadata())


def _bounded(key: str, value: object) -> int:
    least, most = _BOUNDS[key]
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{key} must be a whole number from {least} to {most}")
    return value


def _typed(key: str, value: object, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{key} must be a JSON {kind.__name__}")  # noqa: TRY004 -- all one kind
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON")
