"""The model card in a checkpoint's metadata, which says how to build the model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedkd.config.backbone import Normalization
from fedkd.data.columns import Encoder
from fedkd.data.source import MAX_CLASSES
from fedkd.errors import UserError
from fedkd.models.backbone import Backbone
from fedkd.models.build import Shape, count_bytes
from fedkd.models.check import check_model
from fedkd.models.own_checkpoint import read_model, to_plain
from fedkd.models.preprocessing import Preprocessing, from_config, preprocessing_in
from fedkd.models.state import Checkpoint, State, save_state
from fedkd.registry import ARCHITECTURES, HUGGING_FACE
from fedkd.suggestions import RENAMED
from fedkd.util.checkpoint_files import files_of, find_weights_problem
from fedkd.util.files import parse_json
from fedkd.util.safetensors_header import read_metadata
from fedkd.version import VERSION

_KEY = "fedkd"
_BOUNDS = {"num_classes": (2, MAX_CLASSES), "in_channels": (1, 16), "image_size": (1, 2048)}

_MAX_INPUTS = 16 * 2048 * 2048

_AFFORDABLE = 64 << 20
"""Bytes of parameters that are allocated for a file of any size."""


@dataclass(frozen=True)
class ModelCard:
    """What a program needs to rebuild a model, and what else is known of it.

    Attributes:
        classes: names of the classes, or empty where they are unknown.
        facts: how it came to be, as plain values: study, arm, seed, accuracy and the like.
        version: of the fedkd that wrote the file.
        columns: of a model of tables, what columns become: the text of
            :class:`fedkd.data.columns.Encoder`; else empty.
    """

    arch: str
    shape: Shape
    classes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    version: str = VERSION
    columns: str = ""

    @property
    def is_own(self) -> bool:
        """Whether the architecture is a user's own code, or read from a folder or a hub."""
        return ARCHITECTURES.is_own(self.arch) or self.arch.startswith(HUGGING_FACE)

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What the model does to images in [0, 1] before its network gets them."""
        backbone = self.shape.backbone
        prepares = backbone is not None and backbone.prepares(self.arch)
        return backbone.preprocessing if backbone is not None and prepares else None

    def with_preprocessing(self, preprocessing: Preprocessing | None) -> ModelCard:
        """Return the card of a model that has this preprocessing, and all of it trained."""
        backbone = None
        if preprocessing is not None:
            backbone = Backbone(self.arch, preprocessing=preprocessing)
        return replace(self, shape=replace(self.shape, backbone=backbone))

    def to_metadata(self) -> dict[str, str]:
        """Return the card as a safetensors header holds it, text to text.

        It is a single entry: safetensors writes several in an order that changes from call to
        call, and the same model must give the same bytes.
        """
        card = {
            "version": self.version,
            "arch": self.arch,
            **self.shape.sizes,
            "classes": list(self.classes),
            "facts": self.facts,
        }
        if self.columns:
            card["columns"] = self.columns
        if (preprocessing := self.preprocessing) is not None:
            card["preprocessing"] = asdict(preprocessing)
        return {_KEY: json.dumps(card, sort_keys=True, allow_nan=False)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ModelCard | None:
        """Read a card; None where there is none.

        Raises:
            ValueError: the card is not valid.
        """
        if _KEY not in metadata:
            return None
        card = parse_json(metadata[_KEY])
        if not isinstance(card, dict):
            raise ValueError("it is not a mapping")  # noqa: TRY004 -- all one kind
        shape = _read_shape(card)
        classes = _typed("classes", card.get("classes"), list)
        arch = _typed("arch", card.get("arch"), str)
        if classes and len(classes) != shape.num_classes:
            raise ValueError(f"it names {len(classes)} classes of {shape.num_classes}")
        columns = _typed("columns", card.get("columns", ""), str)
        if columns and shape.inputs != (len(Encoder.from_json(columns).names),):
            raise ValueError("its columns are not those of its inputs")
        given = card.get("preprocessing")
        preprocessing = None if given is None else _read_preprocessing(given)
        return cls(
            arch=ARCHITECTURES.check(RENAMED.get(arch, arch)),
            shape=shape,
            classes=tuple(str(name) for name in classes),
            facts=_typed("facts", card.get("facts"), dict),
            version=_typed("version", card.get("version"), str),
            columns=columns,
        ).with_preprocessing(preprocessing)


def read_card(path: Path, *, what: str) -> ModelCard | None:
    """Read a checkpoint's card from its header alone; None where it has none.

    Only a ``.safetensors`` file can have a card.

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


def load_model(
    path: Path, card: ModelCard, *, what: str, preprocessing: Preprocessing | None = None
) -> Checkpoint:
    """Read a checkpoint that must fit its card.

    ``preprocessing`` is what the model was trained with, if it is not the card's.

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
            f"{shape} and {shape.num_classes} classes"
        )
    check_model(card.arch, card.shape, trained=False)
    return read_model(
        path, card.arch, card.shape, what=what, preprocessing=preprocessing or card.preprocessing
    )


def check_preprocessing(path: Path, expected: Preprocessing | None, *, what: str) -> None:
    """Refuse a checkpoint whose card names another mean or standard deviation than expected."""
    if path.suffix != ".safetensors" or not path.is_file():
        return
    card = read_card(path, what=what)
    if card is None:
        return
    own, given = (
        None if each is None or each.is_identity else (each.mean, each.std)
        for each in (card.preprocessing, expected)
    )
    if own != given:
        raise UserError(
            f"{what}: {path} says that its preprocessing is {_show(own)}, which contradicts "
            f"{_show(given)}; set the silo's preprocessing to what the model was trained with"
        )


def check_columns(
    path: Path, card: ModelCard | None, encoder: Encoder | None, *, what: str
) -> tuple[str, ...]:
    """Refuse a checkpoint whose card names other columns of a table than the study's encoder.

    Returns:
        A sentence where the columns are the same, but numbers were standardized otherwise.
    """
    if encoder is None or card is None or not card.columns:
        return ()
    own = Encoder.from_json(card.columns)
    for index, (ours, theirs) in enumerate(zip_longest(own.names, encoder.names)):
        if ours != theirs:
            raise UserError(
                f"{what}: {path} was trained on other columns: its input {index + 1} is "
                f"{_quote(ours)}, that of the study {_quote(theirs)}"
            )
    moved = encoder.moved_since(own)
    shown = ", ".join(moved[:5]) + (" and others" if len(moved) > 5 else "")
    sentence = (
        f"{path}: {shown} had another mean or deviation where it was trained, so that it may "
        "predict worse on the study's rows"
    )
    return (sentence,) if moved else ()


def _quote(name: str | None) -> str:
    return "missing" if name is None else repr(name)


def _show(values: tuple[tuple[float, ...], tuple[float, ...]] | None) -> str:
    return "none" if values is None else f"mean {list(values[0])} and std {list(values[1])}"


def save_model(path: Path, state: State, card: ModelCard) -> None:
    """Write a model with its card, atomically: the whole network, as its library names it.

    The card says what the model does to images before, by the state's own mean and standard
    deviation.
    """
    own = preprocessing_in(state, card.preprocessing)
    plain = to_plain(card.arch, card.shape, state)
    save_state(path, plain, card.with_preprocessing(own).to_metadata())


def _read_preprocessing(value: object) -> Preprocessing | None:
    try:
        return from_config(Normalization.model_validate(value))
    except ValidationError as error:
        raise ValueError("its preprocessing is not valid") from error


def _read_shape(card: Mapping[str, Any]) -> Shape:
    if "kind" not in card:
        num_classes, in_channels, size = (_bounded(key, card.get(key)) for key in _BOUNDS)
        return Shape(num_classes, in_channels, size)
    kind, inputs = card["kind"], _typed("inputs", card.get("inputs"), list)
    if kind not in ("table", "text", "tensor"):
        raise ValueError("kind must be table, text or tensor")
    if not inputs or any(type(size) is not int or size < 1 for size in inputs):
        raise ValueError("inputs must be whole numbers from 1")
    if math.prod(inputs) > _MAX_INPUTS:
        raise ValueError(f"inputs must have at most {_MAX_INPUTS} values")
    return Shape.of(_bounded("num_classes", card.get("num_classes")), kind, inputs)


def _bounded(key: str, value: object) -> int:
    least, most = _BOUNDS[key]
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{key} must be a whole number from {least} to {most}")
    return value


def _typed(key: str, value: object, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{key} must be a JSON {kind.__name__}")  # noqa: TRY004 -- all one kind
    return value
