"""The transfer set: drawn from the study's source or from another one, or noise."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from fedkd.config import Study
from fedkd.data.alignment import align, unite_columns
from fedkd.data.images import Images
from fedkd.data.partition import Indices as Rows
from fedkd.data.source import Source
from fedkd.data.sources import check_like, convert_like
from fedkd.errors import UserError
from fedkd.util.seeding import numpy_generator


def draw(pool: Rows, size: int, seed: int, purpose: str) -> tuple[Rows, Rows]:
    """Return ``size`` random indices of ``pool``, and the others."""
    shuffled = numpy_generator(seed, purpose).permutation(pool)
    return shuffled[:size], shuffled[size:]


def draw_from_other(source: Source, study: Study, seed: int, transfer_source: Source) -> Images:
    """Draw the transfer set from another source, in the shape of the study's examples."""
    settings = study.data.transfer
    if settings.source == study.data.source:
        raise UserError(
            f"data.transfer.source: {settings.source!r} is also data.source, so transfer examples "
            "could be in silos or in the test set; leave the key out to hold out examples of "
            "data.source"
        )
    if settings.labelled and transfer_source.num_classes != source.num_classes:
        raise UserError(
            f"data.transfer.labelled: {transfer_source.name!r} has {transfer_source.num_classes} "
            f"classes but {source.name!r} has {source.num_classes}; use data.transfer.labelled: "
            "false"
        )
    if settings.labelled and source.columns and transfer_source.classes != source.classes:
        raise UserError(
            f"data.transfer.labelled: {transfer_source.name!r} has other classes than "
            f"{source.name!r}; use data.transfer.labelled: false"
        )
    check_left(
        settings.size,
        len(transfer_source.train),
        f"are in the training set of {transfer_source.name!r}",
    )
    pool = np.arange(len(transfer_source.train), dtype=np.int64)
    chosen, _ = draw(pool, settings.size, seed, "cut-transfer")
    drawn = transfer_source.train.take(chosen)
    if source.columns:
        tables = [(each.name, each.columns) for each in (source, transfer_source)]
        unite_columns(tables)  # refuses columns that differ
        drawn = align(drawn, transfer_source.columns, source.columns)
    elif source.kind == "image":
        drawn = convert_like(drawn, channels=source.in_channels, size=source.image_size)
    else:
        check_like(drawn, source.train, f"data.transfer.source: {transfer_source.name}")
    return hide_labels(drawn, study)


def noise(source: Source, size: int, seed: int) -> Images:
    """Draw images whose pixels are independent and uniform, in the shape of the study's images."""
    shape = (size, source.in_channels, source.image_size, source.image_size)
    pixels = numpy_generator(seed, "cut-noise").integers(0, 256, shape, dtype=np.uint8)
    return Images(torch.from_numpy(pixels), torch.full((size,), -1))


def check_left(size: int, left: int, where: str) -> None:
    """Refuse a transfer set of more than the ``left`` examples that there are."""
    if size > left:
        raise UserError(
            f"data.transfer.size: {size} examples are requested, but only {left} {where}; lower it"
        )


def hide_labels(drawn: Images, study: Study) -> Images:
    """Return a transfer set with labels only if the study may use them."""
    if study.data.transfer.labelled:
        return drawn
    return dataclasses.replace(drawn, labels=torch.full_like(drawn.labels, -1))
