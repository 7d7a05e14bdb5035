"""Silos whose examples the study names: each with a source of its own, or rows of one source."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from fedkd.config import Study
from fedkd.config.data import ByColumn, Given, Indices
from fedkd.config.rows import read_rows
from fedkd.config.table import Table
from fedkd.config.text import Text
from fedkd.data.alignment import align, unite_columns
from fedkd.data.cached import load_cached_source
from fedkd.data.columns import Column
from fedkd.data.images import Images, image_hashes
from fedkd.data.partition import Indices as Rows
from fedkd.data.source import Source
from fedkd.data.sources import check_like, convert_like
from fedkd.errors import UserError
from fedkd.registry import NO_SOURCE
from fedkd.util.names import natural_key

MAX_SHARE_IN_SILOS = 0.01
"""Largest share of a set of the server's that may be found in silos too, and is then left out."""


def load_central(study: Study, cache: Path | None) -> Source:
    """Read the study's own source, from the cache if it was decoded before."""
    data = study.data
    return load_cached_source(
        data.source,
        image_size=data.image_size,
        cache=cache,
        options=data.options,
        columns=study.columns,
    )


def load_given(study: Study, given: Given, cache: Path | None) -> tuple[Source, dict[str, Source]]:
    """Read the study's source and each silo's, in one shape and with one list of classes.

    The study's source, if there is one, has the first classes, the shape and the channels.

    Returns:
        The study's source, without examples where it has none, and the silos' by their names.

    Raises:
        UserError: a source cannot be read, or shapes differ.
    """
    size, central = study.data.image_size, None
    if study.data.source != NO_SOURCE:
        central = load_central(study, cache)
        size = central.image_size if central.kind == "image" else size
    sources = {
        silo: _load_silo(silo, given.silos[silo], size, cache, study.columns)
        for silo in study.silo_names
    }
    every = [*([central] if central else []), *sources.values()]
    classes = unite_classes([each.classes for each in every], ordered=central is not None)
    if any(each.kind != "image" for each in every):
        return _unite_others(central, sources, classes)
    channels = central.in_channels if central else max(each.in_channels for each in every)
    sizes = {each.image_size for each in every}
    if len(sizes) > 1:
        raise UserError(
            "partition.silos: their images differ in size: "
            + ", ".join(f"{silo} has {each.image_size} pixels" for silo, each in sources.items())
            + "; set data.image_size"
        )
    converted = {
        silo: _convert(source, classes, channels, sizes.copy().pop())
        for silo, source in sources.items()
    }
    if central is not None:
        return _convert(central, classes, channels, central.image_size), converted
    no_images = next(iter(converted.values())).train.take([])
    return Source(NO_SOURCE, no_images, no_images, classes), converted


def unite_classes(names: Sequence[Sequence[str]], *, ordered: bool) -> tuple[str, ...]:
    """Return all classes once, in natural order; if ``ordered``, the first list comes first."""
    first = list(names[0]) if ordered else []
    others = {name for each in names for name in each} - set(first)
    return (*first, *sorted(others, key=natural_key))


def read_split(spec: Indices, num_rows: int) -> list[Rows]:
    """Return the rows of each silo as its file gives them, in natural order of names.

    Raises:
        UserError: the file has changed its silos, or has rows that there are not.
    """
    try:
        content = read_rows(spec.path)
    except UserError as error:
        raise UserError(f"partition.path: {error}") from error
    if set(content) != set(spec.names):
        raise UserError(
            f"partition.path: {spec.path} names other silos than the study: "
            f"{', '.join(sorted(set(content) ^ set(spec.names))[:5])}"
        )
    parts = [np.array(content[silo], dtype=np.int64) for silo in sorted(content, key=natural_key)]
    for silo, rows in zip(sorted(content, key=natural_key), parts, strict=True):
        if len(rows) and int(rows.max()) >= num_rows:
            raise UserError(
                f"partition.path: {silo} lists row {int(rows.max())}, but data.source has "
                f"{num_rows} training examples, from row 0"
            )
    return parts


def rows_by_column(spec: ByColumn, source: Source, remaining: Rows) -> list[Rows]:
    """Return the rows of each silo among those that remain, in natural order of names.

    Raises:
        UserError: the column has other silos than the study, or a silo has too few rows.
    """
    silo_of = source.silo_of
    if silo_of is None:
        raise UserError(f"data.table.silo: {source.name} has no column of silos")
    if set(silo_of) != set(spec.names):
        raise UserError(
            "partition.names: the column has other silos than the study: "
            f"{', '.join(sorted(set(silo_of) ^ set(spec.names))[:5])}"
        )
    held = silo_of[remaining]
    parts = [remaining[held == name] for name in sorted(spec.names, key=natural_key)]
    for name, part in zip(sorted(spec.names, key=natural_key), parts, strict=True):
        if len(part) < spec.min_size:
            raise UserError(
                f"partition.min_size: asks for {spec.min_size} rows in every silo, but {name} has "
                f"{len(part)} after test, validation and transfer; lower it"
            )
    return parts


def check_sizes(silos: Mapping[str, Images], least: int) -> None:
    """Refuse silos with too few examples."""
    for silo, images in silos.items():
        if len(images) < least:
            raise UserError(
                f"partition.min_size: asks for {least} examples in every silo, but {silo} has "
                f"{len(images)}; lower it, or leave the silo out"
            )


def leave_out_known(
    sets: Mapping[str, Images | None], silos: Sequence[Images]
) -> tuple[dict[str, Images | None], list[str]]:
    """Leave out of each set the examples on which a silo trains.

    All have the same shape.

    Returns:
        The sets without them, and a sentence for each set that had any.

    Raises:
        UserError: more than :data:`MAX_SHARE_IN_SILOS` of a set is in silos.
    """
    known = {digest for silo in silos for digest in image_hashes(silo)}
    kept, notes = dict(sets), []
    for what, images in sets.items():
        if images is None:
            continue
        is_known = torch.tensor([each in known for each in image_hashes(images)], dtype=torch.bool)
        count, total = int(is_known.sum()), len(images)
        if count > MAX_SHARE_IN_SILOS * total:
            raise UserError(
                f"partition: {count} of {total} {what} examples ({count / total:.1%}) are also "
                "examples on which silos train, so that a result would be too good; take them out "
                "of one of the two"
            )
        if count:
            kept[what] = images.take((~is_known).nonzero()[:, 0])
            notes.append(
                f"{count} of {total} {what} examples are also examples on which silos train, and "
                "are left out"
            )
    return kept, notes


def _load_silo(
    silo: str, name: str, size: int | None, cache: Path | None, columns: Table | Text | None
) -> Source:
    try:
        return load_cached_source(name, image_size=size, cache=cache, columns=columns)
    except UserError as error:
        raise UserError(f"partition.silos.{silo}: {error}") from error


def _unite_others(
    central: Source | None, sources: dict[str, Source], classes: tuple[str, ...]
) -> tuple[Source, dict[str, Source]]:
    """Bring sources that are no images into one list of classes, and tables into equal columns."""
    every = [*([central] if central else []), *sources.values()]
    first = every[0]
    for source in every:
        if bool(source.columns) != bool(first.columns) or source.kind != first.kind:
            raise UserError(
                f"partition.silos: {first.name} and {source.name} hold examples of other kinds"
            )
    columns: tuple[Column, ...] = ()
    if first.columns:
        try:
            columns = unite_columns([(each.name, each.columns) for each in every])
        except UserError as error:
            raise UserError(f"partition.silos: {error}") from error

    def convert(source: Source) -> Source:
        relabelled = _relabel(source, classes, lambda rows: align(rows, source.columns, columns))
        for part in (relabelled.train, relabelled.test):
            if part is not None and not columns:
                check_like(part, first.train, f"partition.silos: {source.name}")
        return dataclasses.replace(relabelled, columns=columns)

    converted = {silo: convert(source) for silo, source in sources.items()}
    if central is not None:
        return convert(central), converted
    nothing = next(iter(converted.values())).train.take([])
    return Source(NO_SOURCE, nothing, nothing, classes, columns=columns), converted


def _convert(source: Source, classes: tuple[str, ...], channels: int, size: int) -> Source:
    """Bring a source of images into the study's classes and shape."""
    return _relabel(
        source, classes, lambda images: convert_like(images, channels=channels, size=size)
    )


def _relabel(
    source: Source, classes: tuple[str, ...], change: Callable[[Images], Images]
) -> Source:
    """Number a source's labels by ``classes``, and change its examples."""
    place = {name: index for index, name in enumerate(classes)}
    mapping = torch.tensor([place[name] for name in source.classes], dtype=torch.int64)

    def convert(images: Images) -> Images:
        labelled = dataclasses.replace(images, labels=mapping[images.labels])
        return change(labelled)

    test = None if source.test is None else convert(source.test)
    return dataclasses.replace(source, train=convert(source.train), test=test, classes=classes)
