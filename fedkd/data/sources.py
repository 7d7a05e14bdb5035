"""Data sources by their names in a study: public sets, files, and functions of the user's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fedkd.config.table import Table
from fedkd.config.text import Text
from fedkd.data.folder import read_flat_folder
from fedkd.data.images import Images, describe_few_values, resize, to_channels
from fedkd.data.npz import read_unlabelled_npz
from fedkd.data.own import call_source
from fedkd.data.source import MAX_CLASSES, Source
from fedkd.errors import UserCodeError, UserError, raise_exhaustion
from fedkd.registry import SOURCES, is_table, is_text
from fedkd.util.places import expand


def load_source(
    name: str,
    *,
    image_size: int | None = None,
    options: Mapping[str, Any] | None = None,
    unlabelled: bool = False,
    columns: Table | Text | None = None,
) -> Source:
    """Read a data source: local files first, then a download where there is one.

    Args:
        name: of :data:`fedkd.registry.SOURCES`; a relative path in it is seen from the working
            directory.
        image_size: height and width to resize to, in pixels; by default images stay as they are.
        options: keyword arguments of a function of the user's own.
        unlabelled: whether a folder or archive may be without labels, as for a transfer set: the
            source then has no classes, and all labels are -1.
        columns: says what the columns of a table are, or where texts stand.

    Raises:
        UserError: the source is missing, unreadable, or not what a study can use.
    """
    try:
        SOURCES.check(name)
    except ValueError as problem:
        raise UserError(str(problem)) from problem
    try:
        if is_table(name) or is_text(name):
            source: Source = SOURCES.load(name)(name, columns, unlabelled=unlabelled)
        else:
            source = _read(name, image_size, options or {}, unlabelled=unlabelled)
        _check_filled(source)
        if source.kind != "image":
            _check(source)
            return source
        if image_size is not None:
            source = _resize_all(source, image_size)
        _check(source)
        if sentence := describe_few_values(source.train.images):
            source = dataclasses.replace(source, warnings=(*source.warnings, sentence))
    except UserCodeError:
        raise  # it names the source already
    except (UserError, OSError) as problem:
        raise_exhaustion(problem)
        raise UserError(f"data source {name!r}: {problem}") from problem
    _ = source.image_size  # refuses what is not square
    return source


def check_like(examples: Images, like: Images, what: str) -> None:
    """Refuse examples that differ in kind or shape from those of a study, which are no images.

    ``what`` names them in the error.

    Raises:
        UserError: they differ.
    """
    own, wanted = ((each.kind, list(each.shape[1:])) for each in (examples, like))
    if own != wanted:
        raise UserError(
            f"{what}: its examples are of kind {own[0]} and have the shape {own[1]}, but those of "
            f"the study are of kind {wanted[0]} and have {wanted[1]}"
        )


def convert_like(images: Images, *, channels: int, size: int) -> Images:
    """Convert images of another source to the channels and the size of a study's images.

    See :func:`fedkd.data.images.to_channels` and :func:`fedkd.data.images.resize`.

    Raises:
        UserError: the channels cannot be converted.
    """
    if images.shape[1:] == (channels, size, size):
        return images
    return Images(resize(to_channels(images.images, channels), size), images.labels)


def _read(
    name: str, image_size: int | None, options: Mapping[str, Any], *, unlabelled: bool
) -> Source:
    if SOURCES.is_own(name):
        return call_source(name, options)
    prefix, place = SOURCES.split(name)
    reader = SOURCES.load(name)
    if unlabelled and prefix is not None and prefix.path:
        read = read_flat_folder if prefix.path == "folder" else read_unlabelled_npz
        if (found := read(name, expand(place), image_size)) is not None:
            return found
    if prefix is None:
        source: Source = reader(name)
    else:
        source = reader(name, expand(place) if prefix.path else place, image_size)
    return source


def _resize_all(source: Source, size: int) -> Source:
    channels = source.in_channels
    train = convert_like(source.train, channels=channels, size=size)
    test = source.test
    if test is not None:
        test = convert_like(test, channels=int(test.shape[1]), size=size)
    return dataclasses.replace(source, train=train, test=test)


def _check_filled(source: Source) -> None:
    for what, part in (("training", source.train), ("test", source.test)):
        if part is not None and 0 in part.shape:
            raise UserError(f"its {what} set has no examples, or examples without values")


def _check(source: Source) -> None:
    """Refuse labels and shapes that no reader checks for itself."""
    if not source.classes:
        return  # without labels
    if not 2 <= source.num_classes <= MAX_CLASSES:
        raise UserError(
            f"it has {source.num_classes} classes, but must have between 2 and {MAX_CLASSES}"
        )
    for what, part in (("training", source.train), ("test", source.test)):
        if part is None:
            continue
        least, most = int(part.labels.min()), int(part.labels.max())
        if least < 0 or most >= source.num_classes:
            raise UserError(
                f"the labels of its {what} set run from {least} to {most}, but must lie within 0 "
                f"to {source.num_classes - 1}"
            )
        if part.shape[1:] != source.train.shape[1:]:
            raise UserError(
                f"its test examples are {_dimensions(part)} but its training examples are "
                f"{_dimensions(source.train)}; set data.image_size, or make their channels equal"
            )


def _dimensions(part: Images) -> str:
    sizes = " x ".join(map(str, part.shape[1:]))
    return f"{sizes} (channels, height, width)" if part.kind == "image" else sizes
