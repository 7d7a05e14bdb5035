"""Which settings go with a table, and which with texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedkd.config.data import ByColumn
from fedkd.registry import NOISE, is_table

if TYPE_CHECKING:
    from fedkd.config.study import Study

_BASES = {
    "text": ("backbone", "features"),
    **dict.fromkeys(("table", "tensor"), ("inputs", "features")),
}
"""By kind of the examples the spaces in which densities of them may be computed."""


def check_table(study: Study) -> None:
    """Refuse settings of a table or texts without one, and these with settings of images."""
    has_texts = study.is_text
    if study.data.text is not None and not has_texts:
        raise ValueError(f"data.text: is for texts, but {study.data.source} has none; leave it out")
    if has_texts and (study.is_table or is_table(study.data.transfer.source)):
        raise ValueError("data.source: a study is of texts or of tables, not of both")
    if not study.is_table:
        if study.data.table is not None:
            raise ValueError(
                f"data.table: says what columns of a table are, but {study.data.source} is not a "
                "table; leave it out"
            )
        if isinstance(study.partition, ByColumn):
            raise ValueError(
                f"partition.scheme: by-column needs a table, but data.source is {study.data.source}"
            )
        if has_texts:
            check_kind(study, "text")
        return
    if isinstance(study.partition, ByColumn) and not study.partition.names:
        raise ValueError(
            "partition.names: are missing; they are read from the column when a study is loaded"
        )
    transfer = study.data.transfer.source
    if transfer not in (None, NOISE, "student-silo") and not is_table(transfer):
        raise ValueError(f"data.transfer.source: {transfer} is not a table, but data.source is one")
    check_kind(study, "table")


def check_kind(study: Study, kind: str) -> None:
    """Refuse settings that are for images alone.

    The kind is ``image``, ``table``, ``text`` or ``tensor``.
    """
    if kind == "image":
        for name, arm in study.arms.items():
            settings = arm.consolidation
            if settings and settings.uses_densities and settings.familiarity.basis == "inputs":
                raise ValueError(
                    f"arms.{name}.consolidation.familiarity.basis: inputs is for tables and other "
                    "floats; use pixels for images"
                )
        return
    for key, value in _for_images(study):
        if value not in (None, "none", 0):
            raise ValueError(f"{key}: {value} is for images, but the examples are of kind {kind}")
    for name, arm in study.arms.items():
        settings = arm.consolidation
        if settings is None:
            continue
        basis = settings.familiarity.basis
        if settings.uses_densities and basis not in _BASES[kind]:
            raise ValueError(
                f"arms.{name}.consolidation.familiarity.basis: {basis} is not for examples of kind "
                f"{kind}; use basis: {_BASES[kind][0]}"
            )
        if kind == "text" and settings.mixup:
            raise ValueError(
                f"arms.{name}.consolidation.mixup: cannot interpolate the token ids of texts"
            )


def _for_images(study: Study) -> Iterator[tuple[str, object]]:
    """Yield keys of settings for images alone, and their values."""
    yield "data.image_size", study.data.image_size
    if study.data.transfer.source == NOISE:
        yield "data.transfer.source", NOISE
    yield "model.weights", study.model.weights
    yield "model.preprocessing", study.model.preprocessing
    yield "pretraining.augment", study.pretraining.augment
    for name, arm in study.arms.items():
        yield f"arms.{name}.rounds.augment", study.rounds_of(name).augment
        if arm.consolidation is not None:
            path = f"arms.{name}.consolidation"
            yield f"{path}.augment", arm.consolidation.augment
            yield f"{path}.mixed_inputs", arm.consolidation.mixed_inputs
