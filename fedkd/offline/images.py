"""Images for consolidation outside a federation: the transfer set, and a validation set if any."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedkd.data.cached import load_cached_source
from fedkd.data.images import Images
from fedkd.data.source import Source
from fedkd.data.sources import convert_like
from fedkd.errors import UserError
from fedkd.models.build import Shape
from fedkd.models.card import ModelCard
from fedkd.util.cache import cache_root
from fedkd.util.seeding import numpy_generator

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Wanted:
    """Which images the user asks for.

    Attributes:
        transfer: a data source.
        size: how many of its training images to distil on; None for all.
        labelled: whether their labels may be used.
        validation: a fraction of the transfer source to set apart, another data source, or None.
        num_classes: of the models, where the user says so.
        in_channels: likewise.
        image_size: likewise, height and width in pixels.
    """

    transfer: str
    size: int | None = None
    labelled: bool = False
    validation: str | None = None
    num_classes: int | None = None
    in_channels: int | None = None
    image_size: int | None = None


@dataclass(frozen=True, eq=False)
class OfflineImages:
    """Images in the shape of the models.

    Attributes:
        transfer: images to distil on; labels are -1 where they may not be used.
        validation: labelled images, possibly none.
        validation_from: in words, where they come from; empty if there are none.
        classes: names of the classes, or empty where no labels are used.
        warnings: sentences on the sources.
    """

    transfer: Images
    validation: Images
    validation_from: str
    shape: Shape
    classes: tuple[str, ...]
    warnings: tuple[str, ...]


def open_images(wanted: Wanted, cards: Mapping[str, ModelCard], seed: int) -> OfflineImages:
    """Read the images and bring them into the shape for which the teachers were made.

    The shape is what the user or the teachers' own files say, else that of the transfer source.

    Raises:
        UserError: a source cannot be read or does not fit, or the files contradict each other.
    """
    size = _agree("image_size", "--image-size", wanted.image_size, cards)
    fraction = _fraction(wanted.validation)
    needs_labels = wanted.labelled or fraction is not None
    source = _load("--transfer", wanted.transfer, size, unlabelled=not needs_labels)
    num_classes = _agree("num_classes", "--classes", wanted.num_classes, cards)
    if not (num_classes or source.classes):
        raise UserError(
            f"--classes: is missing: neither {wanted.transfer} nor the teachers' files say how many"
        )
    shape = Shape(
        num_classes or source.num_classes,
        _agree("in_channels", "--channels", wanted.in_channels, cards) or source.in_channels,
        source.image_size,
    )
    if needs_labels:
        _check_classes("--labelled" if wanted.labelled else "--validation", source, shape)
    pool = np.arange(len(source.train), dtype=np.int64)
    sources, validation, origin = [source], source.train.take([]), ""
    classes = source.classes if wanted.labelled else ()
    if fraction is not None:
        count = min(len(pool) - 1, max(1, round(fraction * len(pool))))
        mixed = numpy_generator(seed, "cut-validation").permutation(pool)
        validation, pool = source.train.take(mixed[:count]), np.sort(mixed[count:])
        origin = f"images of {source.name}, set apart from the transfer set"
        classes = source.classes
    elif wanted.validation is not None:
        other, validation, origin = _open_validation(wanted.validation, wanted.transfer, source)
        _check_classes("--validation", other, shape)
        sources, classes = [source, other], classes or other.classes
    transfer = source.train.take(_draw(pool, wanted, seed))
    if not wanted.labelled:
        transfer = dataclasses.replace(transfer, labels=torch.full_like(transfer.labels, -1))
    return OfflineImages(
        transfer=_convert(transfer, shape, "--transfer"),
        validation=_convert(validation, shape, "--validation"),
        validation_from=origin,
        shape=shape,
        classes=classes,
        warnings=tuple(
            dict.fromkeys(f"{each.name}: {text}" for each in sources for text in each.warnings)
        ),
    )


def _draw(pool: Indices, wanted: Wanted, seed: int) -> Indices:
    """Return the indices of the transfer images: all of the pool, or as many as are wanted."""
    if wanted.size is None:
        return pool
    if wanted.size > len(pool):
        raise UserError(
            f"--size: asks for {wanted.size} images, but {wanted.transfer} has {len(pool)} to "
            "distil on; lower it"
        )
    return numpy_generator(seed, "cut-transfer").permutation(pool)[: wanted.size]


def _open_validation(name: str, transfer_name: str, transfer: Source) -> tuple[Source, Images, str]:
    """Return the source of the validation images, the images, and in words what they are."""
    if name == transfer_name:
        if transfer.test is None:
            raise UserError(
                f"--validation: {name} has no test set of its own, so the student would be judged "
                "on images that it learns from; give a fraction such as 0.2 to set some apart"
            )
        return transfer, transfer.test, f"test images of {name}"
    source = _load("--validation", name, transfer.image_size)
    if source.test is not None:
        return source, source.test, f"test images of {name}"
    return source, source.train, f"images of {name}"


def _load(option: str, name: str, size: int | None, *, unlabelled: bool = False) -> Source:
    try:
        return load_cached_source(name, image_size=size, cache=cache_root(), unlabelled=unlabelled)
    except UserError as error:
        sentence = str(error).replace("data.image_size", "--image-size")
        raise UserError(f"{option}: {sentence}") from error


def _convert(images: Images, shape: Shape, option: str) -> Images:
    try:
        return convert_like(images, channels=shape.in_channels, size=shape.image_size)
    except UserError as error:
        raise UserError(f"{option}: {error}") from error


def _fraction(text: str | None) -> float | None:
    """Return the number that ``text`` is, or None where it names a source."""
    try:
        fraction = float(text or "")
    except ValueError:
        return None
    if not 0 < fraction < 1:
        raise UserError(
            f"--validation: {text} is not a valid fraction: it must lie between 0 and 1, such as "
            "0.2 of the transfer source's images"
        )
    return fraction


def _check_classes(option: str, source: Source, shape: Shape) -> None:
    if source.num_classes != shape.num_classes:
        raise UserError(
            f"{option}: {source.name} has {source.num_classes} classes but the models have "
            f"{shape.num_classes}, so its labels cannot be used"
        )


def _agree(key: str, option: str, given: int | None, cards: Mapping[str, ModelCard]) -> int | None:
    """Return the one value that the option and the teachers' files name, or None if none does."""
    values = [(name, int(getattr(card.shape, key))) for name, card in cards.items()]
    if given is not None:
        values.insert(0, (option, given))
    for name, value in values:
        if value != values[0][1]:
            raise UserError(
                f"{values[0][0]} says {key} {values[0][1]} but {name} says {value}; teachers and "
                "student must be made for the same images and classes"
            )
    return values[0][1] if values else None
