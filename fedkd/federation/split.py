"""Split the data of one seed: test, validation and transfer examples, and the silos' examples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedkd.config import Study
from fedkd.config.data import ByColumn, Deployed, Given, Indices
from fedkd.config.table_checks import check_kind
from fedkd.data.cached import cached_partition, load_cached_source
from fedkd.data.columns import Column, Encoder
from fedkd.data.images import Images
from fedkd.data.partition import Indices as Rows
from fedkd.data.source import Source
from fedkd.errors import UserError
from fedkd.federation.held_out import divide
from fedkd.federation.own_silos import (
    check_sizes,
    leave_out_known,
    load_central,
    load_given,
    read_split,
    rows_by_column,
)
from fedkd.federation.tables import encode_tables
from fedkd.federation.transfer_set import check_left, draw, draw_from_other, hide_labels, noise
from fedkd.models.build import Shape
from fedkd.registry import NO_SOURCE, NOISE, STUDENT_SILO
from fedkd.util.seeding import derive_seed

SPLIT_RULE = 2
"""Version of the rule by which examples are drawn.

1, in fedkd 0.1: all by the study's seed. 2: test and validation examples by ``data.split_seed``,
the same for every seed of a study.
"""


@dataclass(frozen=True, eq=False)
class Split:
    """The data of one seed, the same for every arm of a study.

    Attributes:
        test: examples on which the global model is evaluated.
        validation: examples for the server's choices; may be empty.
        transfer: examples to distil on, with labels of -1 unless ``data.transfer.labelled``; None
            if they are on a silo or were left out.
        silos: private examples of every silo, in natural order of names.
        classes: names of the classes.
        num_classes: number of classes, whether or not all of them occur.
        shape: what models are built for.
        warnings: about the sources, one sentence each.
        silo_tests: for each silo the test examples of its own source or those that it holds out, or
            None where it has none; empty where no silo has any.
        encoder: what was done to the columns of a table; None for all else.
        columns: of the server's table, to which nothing is done yet; empty for all else.
    """

    test: Images
    validation: Images
    transfer: Images | None
    silos: tuple[Images, ...]
    classes: tuple[str, ...]
    num_classes: int
    shape: Shape
    warnings: tuple[str, ...] = ()
    silo_tests: tuple[Images | None, ...] = ()
    encoder: Encoder | None = None
    columns: tuple[Column, ...] = ()


def load_split(study: Study, seed: int, cache: Path | None = None) -> Split:
    """Read the data of a study and split it.

    Args:
        study: ``data`` names the sources, ``partition`` the scheme.
        seed: of the repetition.
        cache: root of a cache of decoded sources and partitions.

    Raises:
        UserError: a source cannot be read or has too few examples, or the silos are deployed.
    """
    if study.is_deployed:
        raise UserError(
            "partition.scheme: deployed: these silos and their examples are on hosts of their own; "
            "use fedkd compare with --engine CONNECTION, a connection to their SuperLink"
        )
    # Models may have been trained elsewhere on a silo's examples: these never move.
    seed = study.data.split_seed if study.has_own_split else seed
    silos: dict[str, Source] = {}
    if isinstance(study.partition, Given):
        source, silos = load_given(study, study.partition, cache)
    else:
        source = load_central(study, cache)
    try:
        check_kind(study, source.kind)
    except ValueError as error:
        raise UserError(str(error)) from None
    transfer_source = None
    if study.data.transfer.source not in (None, NOISE, STUDENT_SILO):
        transfer_source = load_cached_source(
            study.data.transfer.source,
            image_size=source.image_size if source.kind == "image" else None,
            cache=cache,
            options=study.data.transfer.options,
            unlabelled=not study.data.transfer.labelled,
            columns=study.columns,
        )
    made = split(source, study, seed, transfer_source, cache)
    if silos:
        made = dataclasses.replace(
            made,
            silos=tuple(each.train for each in silos.values()),
            silo_tests=tuple(each.test for each in silos.values()),
            warnings=(*made.warnings, *_warnings_of(silos.values())),
        )
    made = _without_leaks(made, study) if study.has_own_split else made
    made = _hold_out(made, study, seed) if study.data.silo_test else made
    return encode_tables(made, study, source.columns) if source.columns else made


def _hold_out(made: Split, study: Study, seed: int) -> Split:
    """Hold out a share of each silo's examples, unless its own source has test examples."""
    tests = made.silo_tests or (None,) * len(made.silos)
    divided = [
        (images, test) if test is not None else divide(silo, images, study.data.silo_test, seed)
        for silo, images, test in zip(study.silo_names, made.silos, tests, strict=True)
    ]
    return dataclasses.replace(
        made,
        silos=tuple(images for images, _ in divided),
        silo_tests=tuple(test for _, test in divided),
    )


def _without_leaks(made: Split, study: Study) -> Split:
    """Leave out of the server's sets what silos train on; see :func:`leave_out_known`."""
    if isinstance(study.partition, Given | Indices):
        check_sizes(dict(zip(study.silo_names, made.silos, strict=True)), study.partition.min_size)
    sets = {"test": made.test, "validation": made.validation, "transfer": made.transfer}
    kept, notes = leave_out_known(sets, made.silos)
    test, validation = kept["test"], kept["validation"]
    return dataclasses.replace(
        made,
        test=made.test if test is None else test,
        validation=made.validation if validation is None else validation,
        transfer=kept["transfer"],
        warnings=(*made.warnings, *notes),
    )


def split(
    source: Source,
    study: Study,
    seed: int,
    transfer_source: Source | None,
    cache: Path | None = None,
) -> Split:
    """Split a source: test, validation, transfer set, then the silos.

    Test and validation examples are drawn by ``data.split_seed``, so that the seeds on which
    settings are chosen and those on which they are judged have the same test examples, and no
    validation example of the one is a test example of the other. The transfer set and the silos'
    examples are drawn from the rest by ``seed``. Each step has a random stream of its own: another
    transfer set leaves test and validation examples unchanged. The arms have no influence.

    Args:
        source: all examples.
        study: ``data`` and ``partition`` set sizes and scheme.
        seed: of the repetition.
        transfer_source: source of the transfer examples if ``data.transfer.source`` is set; if it
            is set and this is None, the split has no transfer set.
        cache: root of a cache of partitions.

    Raises:
        UserError: there are too few examples, or the transfer set does not fit.
    """
    data = study.data
    remaining = np.arange(len(source.train), dtype=np.int64)
    parts: list[Rows] = []
    if isinstance(study.partition, Indices):
        parts = read_split(study.partition, len(remaining))
        remaining = np.setdiff1d(remaining, np.concatenate(parts))
    if source.test is not None:
        test = source.test
    else:
        size = _count_of(len(remaining), data.test)
        chosen, remaining = draw(remaining, size, data.split_seed, "cut-test")
        test = source.train.take(chosen)
    if data.test_size is not None and data.test_size < len(test):
        chosen, _ = draw(np.arange(len(test)), data.test_size, data.split_seed, "cut-test-size")
        test = test.take(chosen)
    size = _count_of(len(remaining), data.validation)
    chosen, remaining = draw(remaining, size, data.split_seed, "cut-validation")
    validation = source.train.take(chosen)

    transfer = None
    if transfer_source is not None:
        transfer = draw_from_other(source, study, seed, transfer_source)
    elif data.transfer.source == NOISE:
        transfer = noise(source, data.transfer.size, seed)
    elif data.transfer.source is None and data.source != NO_SOURCE and _is_drawn(study, remaining):
        check_left(data.transfer.size, len(remaining), "are left after test and validation")
        chosen, remaining = draw(remaining, data.transfer.size, seed, "cut-transfer")
        transfer = hide_labels(source.train.take(chosen), study)

    if data.train_size is not None and data.train_size < len(remaining):
        remaining, _ = draw(remaining, data.train_size, seed, "cut-train-size")
    warnings = list(_warnings_of([source, *([transfer_source] if transfer_source else [])]))
    if isinstance(study.partition, Indices):
        if len(remaining):
            warnings.append(
                f"{source.name}: {len(remaining)} of {len(source.train)} training examples are in "
                "no silo and no other set, and are not used"
            )
    elif isinstance(study.partition, ByColumn):
        parts = rows_by_column(study.partition, source, remaining)
    elif not isinstance(study.partition, Deployed | Given):
        labels = source.train.labels.numpy()[remaining]
        drawn = cached_partition(labels, study.partition, derive_seed(seed, "partition"), cache)
        parts = [remaining[part] for part in drawn]
    return Split(
        test=test,
        validation=validation,
        transfer=transfer,
        silos=tuple(source.train.take(part) for part in parts),
        classes=source.classes,
        num_classes=source.num_classes,
        shape=_shape_of(source),
        warnings=tuple(warnings),
    )


def _shape_of(source: Source) -> Shape:
    if source.kind == "image":
        return Shape(source.num_classes, source.in_channels, source.image_size)
    return Shape.of(source.num_classes, source.kind, source.train.shape[1:])


def _warnings_of(sources: Iterable[Source]) -> Iterator[str]:
    return (f"{each.name}: {sentence}" for each in sources for sentence in each.warnings)


def _is_drawn(study: Study, remaining: Rows) -> bool:
    """Whether to draw a transfer set: always, unless no arm needs it and there are few examples.

    With enough examples it is drawn in any case, so that adding an arm does not change the silos.
    """
    divided = not (study.is_deployed or study.has_own_split)
    min_images = study.num_silos * study.partition.min_size if divided else 0
    return study.needs_transfer or len(remaining) >= study.data.transfer.size + min_images


def _count_of(count: int, fraction: float) -> int:
    """Return the number of examples in a fraction, rounded up: 0 only for a fraction of 0."""
    # Without the inner rounding, 0.07 * 100 = 7.000000000000001 would give 8 examples.
    return math.ceil(round(fraction * count, 9))
