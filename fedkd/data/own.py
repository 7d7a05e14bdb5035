"""Data sources and partitions by functions of the user's own, and the checks of what they return.

A source is a function of the options that the study gives (``data.options``). It returns the
arrays that an npz source holds, as a mapping::

    def blobs(**options):
        return {"images": images, "labels": labels}

``images`` is uint8 ``[N, H, W]`` or ``[N, C, H, W]``, ``labels`` are integers ``[N]`` from 0. In
place of images, ``inputs`` are floats ``[N, ...]`` or token ids ``[N, L]``, as in an npz source.
``test_images`` and ``test_labels`` are the test set, if the source has its own; ``classes`` are the
names of the classes. The same options must give the same arrays: every process of a study calls
the function anew.

A partition is a function of the labels ``[N]``, the number of silos, a ``numpy.random.Generator``,
which is the only source of randomness, and the options (``partition.options``)::

    def by_hand(labels, silos, generator, **options):
        return [indices, ...]

It returns the indices of each silo's examples, which must be disjoint. The others are unused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedkd.config import OwnPartition
from fedkd.data.npz import NAMES, source_of
from fedkd.data.npz_arrays import OF_ANY_KIND
from fedkd.data.source import Source
from fedkd.errors import UserError
from fedkd.registry import PARTITIONS, SOURCES

_KEYS = (*dict.fromkeys((*NAMES, *OF_ANY_KIND)), "classes")

Indices = npt.NDArray[np.int64]


def call_source(name: str, options: Mapping[str, Any]) -> Source:
    """Return the source that a function of the user's own gives.

    Raises:
        UserError: the function failed, or did not return such arrays.
    """
    returned = SOURCES.call(name, **options)
    if not isinstance(returned, Mapping):
        raise UserError(
            f"it must return a mapping with images and labels, not {type(returned).__name__}"
        )
    if unknown := [key for key in returned if key not in _KEYS]:
        raise UserError(f"it returned {unknown[0]!r}; known are {', '.join(_KEYS)}")
    with SOURCES.calling(name):
        arrays = {key: np.asarray(returned[key]) for key in _KEYS[:-1] if key in returned}
    return source_of(name, arrays, _class_names(returned.get("classes")))


def call_partition(
    spec: OwnPartition, labels: npt.NDArray[np.int64], generator: np.random.Generator
) -> list[Indices]:
    """Return the examples of each silo that a function of the user's own gives for labels ``[N]``.

    Raises:
        UserError: the function failed, or did not return disjoint indices for every silo.
    """
    parts = PARTITIONS.call(spec.scheme, labels.copy(), spec.silos, generator, **spec.options)
    expected = f"partition.scheme: {spec.scheme} must return {spec.silos} arrays of indices"
    if not isinstance(parts, Sequence | np.ndarray) or len(parts) != spec.silos:
        number = (
            f"{len(parts)}" if isinstance(parts, Sequence | np.ndarray) else type(parts).__name__
        )
        raise UserError(f"{expected}, one for each silo, not {number}")
    owner = np.full(len(labels), -1)
    checked = []
    for silo, part in enumerate(parts):
        with PARTITIONS.calling(spec.scheme):
            indices = np.asarray(part)
        whole = np.issubdtype(indices.dtype, np.integer) or indices.size == 0
        if indices.ndim != 1 or not whole:
            raise UserError(
                f"{expected}, integers [n] each, but that of silo-{silo} is {indices.dtype} "
                f"{list(indices.shape)}"
            )
        indices = indices.astype(np.int64)
        outside = indices[(indices < 0) | (indices >= len(labels))]
        if len(outside):
            raise UserError(
                f"{expected} from 0 to {len(labels) - 1}, but silo-{silo} has {outside[0]}"
            )
        values, counts = np.unique(indices, return_counts=True)
        twice = [*values[counts > 1], *values[owner[values] >= 0]]
        if twice:
            other = owner[twice[0]]
            place = "twice" if other < 0 else f"and so has silo-{other}"
            raise UserError(f"{expected} that are disjoint, but silo-{silo} has {twice[0]} {place}")
        owner[indices] = silo
        checked.append(indices)
    return checked


def _class_names(classes: object) -> tuple[str, ...] | None:
    if classes is None:
        return None
    if not isinstance(classes, Sequence | np.ndarray) or isinstance(classes, str):
        raise UserError(f"classes must be a list of names, not {type(classes).__name__}")
    names = tuple(str(name) for name in classes)
    if len(set(names)) < len(names):
        raise UserError("classes names one class twice")
    return names
