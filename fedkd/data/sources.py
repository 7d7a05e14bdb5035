"""Data sources by the name a study gives them: digits, public sets, and files of one's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fedkd.data.images import Images, resize, to_channels
from fedkd.data.source import MAX_CLASSES, Source
from fedkd.errors import UserError
from fedkd.registry import check_source


def load_source(name: str, *, image_size: int | None = None) -> Source:
    """Read a data source: local files first, then a download where there is one.

    Args:
        name: ``digits``, the name of a public set, ``folder:PATH``, ``npz:PATH`` or
            ``hf:OWNER/NAME``; a relative path is seen from the working directory.
        image_size: height and width to resize to, in pixels; by default images stay as they are.

    Raises:
        UserError: the source is missing, unreadable, or not what a study can use.
    """
    try:
        check_source(name)
    except ValueError as problem:
        raise UserError(str(problem)) from problem
    try:
        source = _read(name, image_size)
        _check_filled(source)
        if image_size is not None:
            source = _resize_all(source, image_size)
        _check(source)
    except (UserError, OSError) as problem:
        raise UserError(f"data source {name!r}: {problem}") from problem
    _ = source.image_size  # refuses what is not square
    return source


def convert_like(images: Images, *, channels: int, size: int) -> Images:
    """Bring images of another source to the channels and the size that a study's images have.

    Args:
        images: what to convert, ``[N, C, H, W]``.
        channels: wanted; greyscale is repeated, RGB becomes ITU-R BT.601 luma.
        size: height and width wanted, in pixels; longer sides are cropped at their centre.

    Raises:
        UserError: the channels cannot be converted.
    """
    return Images(resize(to_channels(images.images, channels), size), images.labels)


def _read(name: str, image_size: int | None) -> Source:
    kind, _, place = name.partition(":")
    if kind == "npz":
        from fedkd.data.npz import read_npz

        return read_npz(name, _path(place))
    if kind == "folder":
        from fedkd.data.folder import read_folder

        return read_folder(name, _path(place), image_size)
    if kind == "hf":
        from fedkd.data.folder import read_hugging_face

        return read_hugging_face(name, place, image_size)
    from fedkd.data.public import read_public

    return read_public(name)


def _path(place: str) -> Path:
    try:
        return Path(place).expanduser()
    except RuntimeError as error:
        raise UserError(f"{place} names no user of this machine") from error


def _resize_all(source: Source, size: int) -> Source:
    train = Images(resize(source.train.images, size), source.train.labels)
    test = source.test
    if test is not None:
        test = Images(resize(test.images, size), test.labels)
    return dataclasses.replace(source, train=train, test=test)


def _check_filled(source: Source) -> None:
    for what, part in (("training", source.train), ("test", source.test)):
        if part is not None and 0 in part.images.shape:
            raise UserError(f"its {what} set has no images, or images without pixels")


def _check(source: Source) -> None:
    """Refuse what no reader should let through: all of them rely on these sentences."""
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
        if part.images.shape[1:] != source.train.images.shape[1:]:
            raise UserError(
                f"its test images are {_dimensions(part)} but its training images are "
                f"{_dimensions(source.train)}; set data.image_size, or make their channels equal"
            )


def _dimensions(part: Images) -> str:
    channels, height, width = part.images.shape[1:]
    return f"{channels} x {height} x {width} (channels, height, width)"
