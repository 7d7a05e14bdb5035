"""The cut: one seed's test, validation and transfer images, and what each silo holds."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedkd.config.data import Deployed
from fedkd.data.cached import load_kept_source, share_out
from fedkd.data.images import Images
from fedkd.data.source import Source
from fedkd.data.sources import convert_like
from fedkd.errors import UserError
from fedkd.registry import NO_SOURCE, NOISE, STUDENT_SILO
from fedkd.util.seeding import derive_seed, numpy_generator

if TYPE_CHECKING:
    from fedkd.config import Study
    from fedkd.data.partition import Indices


@dataclass(frozen=True, eq=False)
class Split:
    """The data of one seed, the same for every arm of a study.

    Attributes:
        test: images on which the global model is judged.
        validation: images by which the server chooses; may be empty.
        transfer: images on which teachers and student meet, with labels of -1 unless the study
            says that they are labelled; None if they come from elsewhere and were left out.
        silos: private images of silo-0, silo-1, and so on.
        classes: names of the classes.
        num_classes: number of classes, whether or not all of them occur.
        in_channels: 1 for greyscale, 3 for RGB.
        image_size: height and width of all images, in pixels.
        warnings: sentences on the sources.
    """

    test: Images
    validation: Images
    transfer: Images | None
    silos: tuple[Images, ...]
    classes: tuple[str, ...]
    num_classes: int
    in_channels: int
    image_size: int
    warnings: tuple[str, ...] = ()


def load_split(study: Study, seed: int, cache: Path | None = None) -> Split:
    """Read the data that a study names and cut it.

    Args:
        study: its ``data`` and ``partition`` say what and how.
        seed: of the study's repetition.
        cache: root of a cache that may hold the data decoded and shared out before.

    Raises:
        UserError: a source cannot be read, has too few images for what is asked, or is not here:
            silos in the field keep theirs.
    """
    if study.is_deployed:
        raise UserError(
            "partition.scheme: deployed: these silos and their images are on hosts of their own; "
            "only fedkd compare with --engine CONNECTION, a SuperLink of theirs, reaches them"
        )
    source = load_kept_source(
        study.data.source,
        image_size=study.data.image_size,
        cache=cache,
        options=study.data.options,
    )
    if study.data.transfer.source in (None, NOISE, STUDENT_SILO):
        return split(source, study, seed, None, cache)
    elsewhere = load_kept_source(
        study.data.transfer.source,
        image_size=source.image_size,
        cache=cache,
        options=study.data.transfer.options,
    )
    return split(source, study, seed, elsewhere, cache)


def split(
    source: Source,
    study: Study,
    seed: int,
    transfer_source: Source | None,
    cache: Path | None = None,
) -> Split:
    """Split a source: test, validation, transfer set, then the silos.

    Each step draws by a seed of its own, so that, say, another transfer set leaves test and
    validation images what they were. The arms of the study have no influence.

    Args:
        source: all images.
        study: its ``data`` and ``partition`` say how to cut.
        seed: of the study's repetition.
        transfer_source: where transfer images come from if ``data.transfer.source`` is set; if it
            is set and this is None, the cut has no transfer set.
        cache: root of a cache that may hold what the partition scheme drew before.

    Raises:
        UserError: too few images for what is asked, or a transfer set that does not fit.
    """
    data = study.data
    remaining = np.arange(len(source.train), dtype=np.int64)
    if source.test is not None:
        test = source.test
    else:
        size = _part_of(len(remaining), data.test)
        chosen, remaining = _draw(remaining, size, seed, "cut-test")
        test = source.train.take(chosen)
    if data.test_size is not None and data.test_size < len(test):
        chosen, _ = _draw(np.arange(len(test)), data.test_size, seed, "cut-test-size")
        test = test.take(chosen)
    size = _part_of(len(remaining), data.validation)
    chosen, remaining = _draw(remaining, size, seed, "cut-validation")
    validation = source.train.take(chosen)

    transfer = None
    if transfer_source is not None:
        transfer = _draw_elsewhere(source, study, seed, transfer_source)
    elif data.transfer.source == NOISE:
        transfer = _noise(source, data.transfer.size, seed)
    elif data.transfer.source is None and data.source != NO_SOURCE and _is_drawn(study, remaining):
        _check_left(data.transfer.size, len(remaining), "are left after test and validation")
        chosen, remaining = _draw(remaining, data.transfer.size, seed, "cut-transfer")
        transfer = _hide_labels(source.train.take(chosen), study)

    if data.train_size is not None and data.train_size < len(remaining):
        remaining, _ = _draw(remaining, data.train_size, seed, "cut-train-size")
    if isinstance(study.partition, Deployed):
        parts = []
    else:
        labels = source.train.labels.numpy()[remaining]
        parts = share_out(labels, study.partition, derive_seed(seed, "partition"), cache)
    return Split(
        test=test,
        validation=validation,
        transfer=transfer,
        silos=tuple(source.train.take(remaining[part]) for part in parts),
        classes=source.classes,
        num_classes=source.num_classes,
        in_channels=source.in_channels,
        image_size=source.image_size,
        warnings=tuple(
            f"{each.name}: {sentence}"
            for each in (source, transfer_source)
            if each is not None
            for sentence in each.warnings
        ),
    )


def _is_drawn(study: Study, remaining: Indices) -> bool:
    """Whether a transfer set is set apart: always, unless no arm needs it and images are few.

    With enough of them it is, so that an arm added to a study changes no other arm's silos.
    """
    least = 0 if study.is_deployed else study.partition.silos * study.partition.min_size
    return study.needs_transfer or len(remaining) >= study.data.transfer.size + least


def _part_of(count: int, fraction: float) -> int:
    """Return the images in a fraction, rounded up so that none is empty unless it is 0."""
    # Without the inner rounding, 0.07 of 100 images would be 8: it is 7.000000000000001.
    return math.ceil(round(fraction * count, 9))


def _draw(pool: Indices, size: int, seed: int, purpose: str) -> tuple[Indices, Indices]:
    """Return ``size`` of the indices in ``pool`` at random, and the others."""
    mixed = numpy_generator(seed, purpose).permutation(pool)
    return mixed[:size], mixed[size:]


def _draw_elsewhere(source: Source, study: Study, seed: int, elsewhere: Source) -> Images:
    """Draw the transfer set from another source, in the shape of the study's images."""
    wanted = study.data.transfer
    if wanted.source == study.data.source:
        raise UserError(
            f"data.transfer.source: {wanted.source!r} is data.source itself, so that silos or even "
            "the test set could hold transfer images; leave the key out to set images apart"
        )
    if wanted.labelled and elsewhere.num_classes != source.num_classes:
        raise UserError(
            f"data.transfer.labelled: {elsewhere.name!r} has {elsewhere.num_classes} classes but "
            f"{source.name!r} has {source.num_classes}; use data.transfer.labelled: false"
        )
    _check_left(wanted.size, len(elsewhere.train), f"are in the training set of {elsewhere.name!r}")
    pool = np.arange(len(elsewhere.train), dtype=np.int64)
    chosen, _ = _draw(pool, wanted.size, seed, "cut-transfer")
    drawn = convert_like(
        elsewhere.train.take(chosen), channels=source.in_channels, size=source.image_size
    )
    return _hide_labels(drawn, study)


def _noise(source: Source, size: int, seed: int) -> Images:
    """Draw images whose pixels are independent and uniform, in the shape of the study's images."""
    shape = (size, source.in_channels, source.image_size, source.image_size)
    pixels = numpy_generator(seed, "cut-noise").integers(0, 256, shape, dtype=np.uint8)
    return Images(torch.from_numpy(pixels), torch.full((size,), -1))


def _check_left(size: int, left: int, where: str) -> None:
    if size > left:
        raise UserError(
            f"data.transfer.size: asks for {size} images, but only {left} {where}; lower it"
        )


def _hide_labels(drawn: Images, study: Study) -> Images:
    if study.data.transfer.labelled:
        return drawn
    return dataclasses.replace(drawn, labels=torch.full_like(drawn.labels, -1))
