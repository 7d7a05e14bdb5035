"""Data of a study with deployed silos: the server's own data, and none of the silos'."""

from __future__ import annotations

import dataclasses

import torch

from fedkd.config import Study
from fedkd.config.text import Text
from fedkd.data.cached import load_cached_source
from fedkd.data.columns import Column
from fedkd.data.images import Images
from fedkd.data.source import Source
from fedkd.data.sources import convert_like
from fedkd.errors import UserError
from fedkd.federation.own_silos import load_central
from fedkd.federation.split import Split, split
from fedkd.models.build import Shape
from fedkd.registry import NO_SOURCE, NOISE, SOURCES, STUDENT_SILO
from fedkd.util.cache import cache_root


def load_server_split(study: Study, seed: int) -> Split:
    """Read and split the server's own data: test, validation and transfer examples, if any.

    Raises:
        UserError: a source cannot be read on this host, or does not fit the study.
    """
    transfer = _transfer_source(study, study.data.transfer.source)
    source = _server_source(study)
    if transfer is not None and not source.columns and transfer.columns:
        source = _empty_source(study, transfer.columns)
    return dataclasses.replace(split(source, study, seed, transfer), columns=source.columns)


def empty_split(study: Study) -> Split:
    """Return a split without examples: classes and shape alone."""
    source = _empty_source(study)
    no_images = source.train
    return Split(
        no_images, no_images, None, (), source.classes, source.num_classes, shape_of(study)
    )


def draw_transfer(study: Study, seed: int, source: str | None) -> Images | None:
    """Draw the study's transfer set on a silo that has its source, or that needs none (noise).

    Returns:
        The examples, equal to the server's if the source is the same; None without a source.
    """
    wanted = study.data.transfer.source
    if wanted == NOISE:
        return split(_empty_source(study), study, seed, None).transfer
    if source is None or wanted in (None, STUDENT_SILO) or study.is_table:
        return None  # of a table the server sends it, for its columns are not known before the run
    return split(_empty_source(study), study, seed, _transfer_source(study, source)).transfer


def in_study_shape(images: Images, study: Study) -> Images:
    """Convert images to the channels and size of the study."""
    shape = shape_of(study)
    return convert_like(images, channels=shape.in_channels, size=shape.image_size)


def _server_source(study: Study) -> Source:
    if study.data.source == NO_SOURCE:
        return _empty_source(study)
    source = load_central(study, cache_root())
    classes = tuple(study.data.classes or ())
    if source.columns or study.is_text:
        return source.in_order(classes)
    if source.num_classes != len(classes):
        raise UserError(
            f"data.classes: names {len(classes)} classes, but {study.data.source} has "
            f"{source.num_classes}"
        )
    prefix, _ = SOURCES.split(study.data.source)
    if prefix and prefix.path == "folder" and source.classes != classes:
        raise UserError(
            f"data.classes: {', '.join(classes)} differ from the folders of {study.data.source}, "
            f"{', '.join(source.classes)}; list them in the same order"
        )
    test = None if source.test is None else in_study_shape(source.test, study)
    return Source(source.name, in_study_shape(source.train, study), test, classes)


def _empty_source(study: Study, columns: tuple[Column, ...] = ()) -> Source:
    size = (0, max(1, len(columns))) if study.is_table else (0, *shape_of(study).input_shape)
    dtype = torch.float64 if study.is_table else torch.int64 if study.is_text else torch.uint8
    no_images = Images(torch.zeros(size, dtype=dtype), torch.zeros(0, dtype=torch.int64))
    classes = tuple(study.data.classes or ())
    return Source(NO_SOURCE, no_images, no_images, classes, columns=columns)


def _transfer_source(study: Study, source: str | None) -> Source | None:
    if source in (None, NOISE, STUDENT_SILO):
        return None
    options = study.data.transfer.options if source == study.data.transfer.source else None
    labelled = study.data.transfer.labelled
    found = load_cached_source(
        source,
        image_size=study.data.image_size,
        cache=cache_root(),
        options=options,
        unlabelled=not labelled,
        columns=study.columns,
    )
    return found.in_order(tuple(study.data.classes or ())) if labelled and study.is_text else found


def shape_of(study: Study) -> Shape:
    """Return what models are built for; of a table before its columns are known, one column."""
    data = study.data
    if study.is_table:
        return Shape.of(len(data.classes or ()), "table", [1])
    if isinstance(study.columns, Text):
        return Shape.of(len(data.classes or ()), "text", [study.columns.max_length])
    if data.classes is None or data.channels is None or data.image_size is None:
        raise ValueError("the shape of a study of simulated silos comes from its source")
    return Shape(len(data.classes), data.channels, data.image_size)
