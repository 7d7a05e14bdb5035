"""Data of a study whose silos are in the field: what the server owns, and nothing of theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fedkd.data.images import Images
from fedkd.data.source import Source
from fedkd.data.sources import convert_like, load_source
from fedkd.errors import UserError
from fedkd.federation.split import Split, split
from fedkd.registry import NO_SOURCE, NOISE, SOURCES, STUDENT_SILO

if TYPE_CHECKING:
    from fedkd.config import Study


def load_server_split(study: Study, seed: int) -> Split:
    """Read and cut what the server itself owns: test, validation and transfer images, if any.

    Raises:
        UserError: a source cannot be read on this host, or does not fit the study.
    """
    return split(_own_source(study), study, seed, _elsewhere(study, study.data.transfer.source))


def empty_split(study: Study) -> Split:
    """Return what a caller knows who has none of the images: classes and shape."""
    source = _no_source(study)
    none = source.train
    return Split(none, none, None, (), source.classes, *_shape(study))


def draw_transfer(study: Study, seed: int, source: str | None) -> Images | None:
    """Draw the study's transfer set on a silo that owns its source too, or needs none for it.

    Args:
        study: says how many images are drawn.
        seed: of the study's repetition.
        source: the data source as this host names it, or None.

    Returns:
        The images, the server's own if the source is the same; None if nothing tells.
    """
    wanted = study.data.transfer.source
    if wanted == NOISE:
        return split(_no_source(study), study, seed, None).transfer
    if source is None or wanted in (None, STUDENT_SILO):
        return None
    return split(_no_source(study), study, seed, _elsewhere(study, source)).transfer


def in_study_shape(images: Images, study: Study) -> Images:
    """Bring images into the channels and size that the study asks for."""
    _, channels, size = _shape(study)
    return convert_like(images, channels=channels, size=size)


def _own_source(study: Study) -> Source:
    if study.data.source == NO_SOURCE:
        return _no_source(study)
    data = study.data
    source = load_source(data.source, image_size=data.image_size, options=data.options)
    classes = tuple(study.data.classes or ())
    if source.num_classes != len(classes):
        raise UserError(
            f"data.classes: names {len(classes)} classes, but {study.data.source} has "
            f"{source.num_classes}"
        )
    prefix, _ = SOURCES.split(data.source)
    if prefix and prefix.path == "folder" and source.classes != classes:
        raise UserError(
            f"data.classes: are {', '.join(classes)}, but the folders of {study.data.source} are "
            f"{', '.join(source.classes)}; bring them into one order"
        )
    test = None if source.test is None else in_study_shape(source.test, study)
    return Source(source.name, in_study_shape(source.train, study), test, classes)


def _no_source(study: Study) -> Source:
    _, channels, size = _shape(study)
    none = Images(
        torch.zeros(0, channels, size, size, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)
    )
    return Source(NO_SOURCE, none, none, tuple(study.data.classes or ()))


def _elsewhere(study: Study, source: str | None) -> Source | None:
    if source in (None, NOISE, STUDENT_SILO):
        return None
    options = study.data.transfer.options if source == study.data.transfer.source else None
    return load_source(source, image_size=study.data.image_size, options=options)


def _shape(study: Study) -> tuple[int, int, int]:
    """Return the number of classes, channels, and height and width in pixels."""
    data = study.data
    if data.classes is None or data.channels is None or data.image_size is None:
        raise ValueError("a study of simulated silos has its shape from its source")
    return len(data.classes), data.channels, data.image_size
