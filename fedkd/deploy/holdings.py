"""What a silo in the field holds, read from its host's disk in the study's order and shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fedkd.config import Study
from fedkd.config.table import Table
from fedkd.config.text import Text
from fedkd.data.alignment import align
from fedkd.data.cached import load_cached_source
from fedkd.data.columns import Column, Encoder
from fedkd.data.images import Images
from fedkd.data.source import Source
from fedkd.data.sources import convert_like
from fedkd.deploy.silo_file import SiloFile
from fedkd.errors import UserError
from fedkd.models.build import Shape
from fedkd.models.card import (
    ModelCard,
    check_columns,
    check_preprocessing,
    load_model,
    read_card,
)
from fedkd.models.external import read_external
from fedkd.models.preprocessing import IMAGENET, Preprocessing, from_config, identity
from fedkd.models.state import Checkpoint
from fedkd.util.cache import cache_root
from fedkd.util.checkpoint_files import external_format


@dataclass(frozen=True, eq=False)
class Holdings:
    """A silo's examples, labelled by the study's classes.

    Attributes:
        train: examples that its models learn from.
        test: examples that they do not, or None where its source has none.
        classes: of the study, in its order.
        shape: of the examples, and the number of classes.
        warnings: sentences on what may not be as the silo's owner thinks.
        columns: of a table; empty for all else.
        encoder: what was done to the columns; None for rows as they were read, and for images.
    """

    train: Images
    test: Images | None
    classes: tuple[str, ...]
    shape: Shape
    warnings: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    encoder: Encoder | None = None

    def encode(self, encoder: Encoder) -> Holdings:
        """Return rows of a table as models get them."""
        aligned = align(self.train, self.columns, encoder.columns)
        shape = Shape.of(len(self.classes), "table", [len(encoder.names)])
        train = encoder.encode(aligned)
        return dataclasses.replace(self, train=train, shape=shape, encoder=encoder)


def read_holdings(
    file: SiloFile,
    *,
    classes: Sequence[str] | None = None,
    channels: int | None = None,
    image_size: int | None = None,
    columns: Table | Text | None = None,
) -> Holdings:
    """Read a silo's examples and bring labels and pixels into the study's terms.

    Classes are those of the study, in its order; by default those that the file maps to.
    Channels and size of images are by default as they are.

    Raises:
        UserError: they cannot be read, or a label has no place among the study's classes.
    """
    source = load_cached_source(
        file.data, image_size=image_size, cache=cache_root(), columns=columns
    )
    kind = "text" if isinstance(columns, Text) else "image" if columns is None else "table"
    if source.kind != kind:
        raise UserError(
            f"data: the study's examples are of kind {kind}, those of {file.data} of kind "
            f"{source.kind}"
        )
    known = set(source.classes)
    if strange := [name for name in file.labels if name not in known]:
        raise UserError(
            f"labels: {file.data} has no class {strange[0]!r}; it has {', '.join(source.classes)}"
        )
    names = [file.labels.get(name, name) for name in source.classes]
    wanted = tuple(dict.fromkeys(names)) if classes is None else tuple(classes)
    train = _convert(source.train, names, wanted, source, channels, image_size)
    test = source.test
    if test is not None:
        test = _convert(test, names, wanted, source, channels, image_size)
    shape = Shape.of(len(wanted), train.kind, train.shape[1:])
    return Holdings(train, test, wanted, shape, source.warnings, source.columns)


def study_at_silo(file: SiloFile, study: Study) -> Study:
    """Return a study with the tokenizer of texts where it lies on this host, beside the model."""
    given = study.data.text or Text()
    if not study.is_text or file.weights is None or given.tokenizer is not None:
        return study
    text = given.model_copy(update={"tokenizer": file.weights})
    return study.model_copy(update={"data": study.data.model_copy(update={"text": text})})


def read_own_model(
    file: SiloFile, shape: Shape, classes: Sequence[str], table: Holdings | None = None
) -> tuple[str, Checkpoint]:
    """Read the silo's own model, which must fit its architecture and the study's classes.

    Returns:
        The architecture and the checkpoint, all of it finite.

    Raises:
        UserError: there is no such model, or it does not fit.
    """
    if file.model is None or file.checkpoint is None:
        raise UserError("model: the silo has none")
    path, what = file.checkpoint, "model.checkpoint"
    if external := external_format(path):
        if file.model.arch not in (None, external):
            raise UserError(f"model.arch: is {file.model.arch}, but {path} is of {external}")
        examples = None
        if table is not None:
            examples = table.train.take(torch.arange(min(8, len(table.train)))).images
        state = read_external(
            path,
            shape,
            classes,
            what=what,
            labels=file.labels,
            examples=examples,
            encoder=None if table is None else table.encoder,
        )
        return external, Checkpoint(state, finite=True)
    card = read_card(path, what=what)
    arch, backbone = file.model.arch or (card.arch if card else None), shape.backbone
    here = None if backbone is None else backbone.arch_here(backbone.arch)
    if backbone and here != backbone.arch and file.model.arch in (None, here):
        arch = backbone.arch  # as the study names what this host has elsewhere
    elif arch is None:
        raise UserError(f"model.arch: is missing, and {path} does not name its architecture")
    elif card is not None and card.is_own and file.model.arch is None:
        raise UserError(
            f"model.arch: {path} says that its architecture is {arch}, which is code that would "
            f"be run; if it is yours, set model.arch: {arch}"
        )
    elif card is not None and card.arch != arch:
        raise UserError(f"model.arch: is {arch}, but {path} says that it is {card.arch}")
    if card is not None and card.classes:
        _check_order(card.classes, file.labels, classes, path)
    preprocessing = _preprocessing(file, card, shape, arch)
    known = ModelCard(arch, shape)
    notes = check_columns(path, card, None if table is None else table.encoder, what=what)
    checkpoint = load_model(path, known, what=what, preprocessing=preprocessing)
    if not checkpoint.finite:
        raise UserError(f"{what}: {path} holds values that are not finite; train it again")
    return arch, dataclasses.replace(checkpoint, notes=(*checkpoint.notes, *notes))


def _preprocessing(
    file: SiloFile, card: ModelCard | None, shape: Shape, arch: str
) -> Preprocessing | None:
    """Return what the silo's model was trained with: its owner says it, or its card, or the study.

    Raises:
        UserError: owner and card contradict each other.
    """
    given = None if file.model is None else file.model.preprocessing
    if given is not None and file.checkpoint is not None:
        chosen = from_config(given)
        check_preprocessing(file.checkpoint, chosen, what="model.preprocessing")
        return chosen or identity(len(IMAGENET.mean))
    if card is not None:
        return card.preprocessing
    return ModelCard(arch, shape).preprocessing


def _convert(
    images: Images,
    names: Sequence[str],
    wanted: Sequence[str],
    source: Source,
    channels: int | None,
    image_size: int | None,
) -> Images:
    place = {name: index for index, name in enumerate(wanted)}
    mapping = torch.tensor([place.get(name, -1) for name in names])
    labels = mapping[images.labels]
    if bool((labels < 0).any()):
        local = source.classes[int(images.labels[labels < 0][0])]
        raise UserError(
            f"labels: examples of class {local!r} have no place among the study's classes "
            f"({', '.join(wanted[:20])}); map it under labels, or take these examples out"
        )
    relabelled = dataclasses.replace(images, labels=labels)
    if relabelled.kind != "image":
        return relabelled
    return convert_like(
        relabelled, channels=channels or images.shape[1], size=image_size or source.image_size
    )


def _check_order(
    own: Sequence[str], labels: Mapping[str, str], classes: Sequence[str], path: Path
) -> None:
    mapped = [labels.get(name, name) for name in own]
    if mapped != list(classes):
        raise UserError(
            f"model.checkpoint: {path} predicts {', '.join(mapped[:20])}, in this order, but the "
            f"study's classes are {', '.join(classes[:20])}; classes that differ cannot be "
            "averaged: give a model with these outputs in this order, or share.teacher: none"
        )
