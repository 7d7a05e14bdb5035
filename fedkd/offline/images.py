"""Images for consolidation outside a federation: the transfer set, and a validation set if any."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedkd.data.images import Images
from fedkd.data.source import Source
from fedkd.data.sources import convert_like
from fedkd.errors import UserError
from fedkd.models.build import NOUNS, Shape
from fedkd.offline.reader import Cards, Reader, Wanted
from fedkd.util.seeding import numpy_generator

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class OfflineImages:
    """Images, or examples of another kind, in the shape of the models.

    Attributes:
        transfer: images to distil on; labels are -1 where they may not be used.
        validation: labelled images, possibly none.
        validation_from: in words, where they come from; empty if there are none.
        classes: names of the classes, or empty where no labels are used.
        warnings: sentences on the sources.
        columns: of a table: how they became inputs, as models' cards say it; else empty.
    """

    transfer: Images
    validation: Images
    validation_from: str
    shape: Shape
    classes: tuple[str, ...]
    warnings: tuple[str, ...]
    columns: str = ""


def open_images(wanted: Wanted, cards: Cards, arch: str, seed: int) -> OfflineImages:
    """Read the examples and bring them into the shape for which the teachers were made.

    The shape is what the user or the teachers' own files say, else that of the transfer source.
    ``arch`` is the student's.

    Raises:
        UserError: a source cannot be read or does not fit, or the files contradict each other.
    """
    size = _agree("image_size", "--image-size", wanted.image_size, cards)
    fraction = _fraction(wanted.validation)
    needs_labels = wanted.labelled or fraction is not None
    reader = Reader.of(wanted, cards, arch, size or None)
    source = reader.read("--transfer", wanted.transfer, unlabelled=not needs_labels)
    num_classes = _agree("num_classes", "--classes", wanted.num_classes, cards)
    if not (num_classes or source.classes):
        raise UserError(
            f"--classes: is missing: neither {wanted.transfer} nor the teachers' files say how many"
        )
    shape = _shape_of(source, num_classes or source.num_classes, wanted, cards)
    if needs_labels:
        _check_classes("--labelled" if wanted.labelled else "--validation", source, shape)
    pool = np.arange(len(source.train), dtype=np.int64)
    sources, validation, origin = [source], source.train.take([]), ""
    classes = source.classes if wanted.labelled else ()
    if fraction is not None:
        count = min(len(pool) - 1, max(1, round(fraction * len(pool))))
        mixed = numpy_generator(seed, "cut-validation").permutation(pool)
        validation, pool = source.train.take(mixed[:count]), np.sort(mixed[count:])
        origin = f"{NOUNS[source.kind]} of {source.name}, set apart from the transfer set"
        classes = source.classes
    elif wanted.validation is not None:
        other, validation, origin = _open_validation(wanted.validation, source, reader)
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
        columns="" if reader.encoder is None else reader.encoder.to_json(),
    )


def _shape_of(source: Source, num_classes: int, wanted: Wanted, cards: Cards) -> Shape:
    """Return what models are built for."""
    for name, card in cards.items():
        if card is not None and card.shape.kind != source.kind:
            raise UserError(
                f"--transfer: {source.name} has {NOUNS[source.kind]}, but {name} takes {card.shape}"
            )
    channels = _agree("in_channels", "--channels", wanted.in_channels, cards)
    if source.kind == "image":
        return Shape(num_classes, channels or source.in_channels, source.image_size)
    if wanted.in_channels or wanted.image_size:
        raise UserError(f"--channels, --image-size: {source.name} has no images; leave them out")
    return Shape.of(num_classes, source.kind, source.train.shape[1:])


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


def _open_validation(name: str, transfer: Source, reader: Reader) -> tuple[Source, Images, str]:
    """Return the source of the validation images, the images, and in words what they are."""
    what = NOUNS[transfer.kind]
    if name == transfer.name:
        if transfer.test is None:
            raise UserError(
                f"--validation: {name} has no test set of its own, so the student would be judged "
                "on images that it learns from; give a fraction such as 0.2 to set some apart"
            )
        return transfer, transfer.test, f"test {what} of {name}"
    if transfer.kind == "image":
        reader = dataclasses.replace(reader, size=transfer.image_size)
    source = reader.read("--validation", name)
    if source.test is not None:
        return source, source.test, f"test {what} of {name}"
    return source, source.train, f"{what} of {name}"


def _convert(images: Images, shape: Shape, option: str) -> Images:
    if (images.kind, tuple(images.shape[1:])) == (shape.kind, shape.input_shape):
        return images
    if "image" not in (images.kind, shape.kind) or images.kind != shape.kind:
        raise UserError(f"{option}: has {NOUNS[images.kind]}, but the models take {shape}")
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


def _agree(key: str, option: str, given: int | None, cards: Cards) -> int | None:
    """Return the one value that the option and the teachers' files name, or None if none does."""
    values = [(name, int(getattr(card.shape, key))) for name, card in cards.items() if card]
    if given is not None:
        values.insert(0, (option, given))
    for name, value in values:
        if value != values[0][1]:
            raise UserError(
                f"{values[0][0]} says {key} {values[0][1]} but {name} says {value}; teachers and "
                "student must be made for the same images and classes"
            )
    return values[0][1] if values else None
