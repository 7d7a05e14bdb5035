"""Decoded data sources and drawn partitions in the cache.

Pictures and the files of public sets are compressed, and their readers are slow. In the cache a
source lies as plain arrays that are mapped into memory and read only as far as they are used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedkd.config.table import Table
from fedkd.config.text import Text
from fedkd.data.download import Seen, data_directory, look_at, noting_files
from fedkd.data.images import Images
from fedkd.data.mapped import IMAGES_FILE, Area, map_new, mapped_in
from fedkd.data.origin import find_origin
from fedkd.data.partition import Indices, Scheme, partition
from fedkd.data.source import Source
from fedkd.data.sources import load_source
from fedkd.registry import PARTITIONS, SOURCES, is_table
from fedkd.util.cache import cache_key, disk_budget, installed
from fedkd.util.cache_entries import has_entry, is_complete, keep_within, new_entry
from fedkd.util.places import expand

_SOURCES, _PARTITIONS = "sources", "partitions"
_META, _INDICES, _LABELS = "source.json", "indices.npz", "labels.npy"
_CHECKED_BYTES = 64 << 20
"""Entries up to this size are read for their checksums before they are used."""


class _ChangedError(Exception):
    """The files of a source changed while they were read."""


def load_cached_source(
    name: str,
    *,
    image_size: int | None,
    cache: Path | None,
    options: Mapping[str, Any] | None = None,
    unlabelled: bool = False,
    columns: Table | Text | None = None,
) -> Source:
    """Read a data source, from the cache if the same files were decoded before.

    ``cache`` is the cache's root, or None to read the files themselves. Tables are not kept: they
    are read faster than pictures are decoded. All else is as for
    :func:`fedkd.data.sources.load_source`.

    Raises:
        UserError: the source is missing, unreadable, or not what a study can use.
    """

    def load() -> Source:
        return load_source(
            name, image_size=image_size, options=options, unlabelled=unlabelled, columns=columns
        )

    origin = None if cache is None else find_origin(name, options, columns)
    is_public = name in SOURCES and origin is None
    budget = 0 if cache is None else disk_budget()
    if cache is None or budget == 0 or is_table(name) or not (is_public or origin):
        return load()
    entry = _entry(cache, name, image_size, origin, unlabelled=unlabelled)
    if (source := _read_source(entry, name)) is not None:
        return source

    def is_unchanged() -> bool:
        return is_public or find_origin(name, options, columns) == origin

    source = _decode(entry, load, is_unchanged, budget)
    keep_within(cache, budget, latest=entry)
    return _read_source(entry, name) or source


def _decode(
    entry: Path, load: Callable[[], Source], is_unchanged: Callable[[], bool], budget: int
) -> Source:
    """Read a source and write it to the cache, if there is room and its files stay the same."""
    source: Source | None = None
    # check_cache_root refuses a cache that cannot be written, in a sentence.
    with contextlib.suppress(OSError, _ChangedError), new_entry(entry, private=True) as folder:
        with mapped_in(folder, budget) as area, noting_files() as seen:
            source = load()
        _write_source(folder, source, seen, area)
        if not is_unchanged():
            raise _ChangedError
    return load() if source is None else source


def cached_partition(
    labels: np.ndarray[Any, np.dtype[np.int64]], scheme: Scheme, seed: int, cache: Path | None
) -> list[Indices]:
    """Return the indices of each silo's examples, from the cache if they were drawn before.

    Labels are int64 ``[N]``; ``cache`` is the cache's root, or None to draw anew.

    Raises:
        UserError: the scheme cannot partition these examples.
    """
    # A function of the user's own may depend on what is not in the key.
    if cache is None or scheme.scheme not in PARTITIONS:
        return list(partition(labels, scheme, seed))
    key = cache_key(
        {
            "kind": "partition",
            "labels": hashlib.sha256(np.ascontiguousarray(labels).data).hexdigest(),
            "scheme": scheme.model_dump(),
            "seed": seed,
        }
    )
    entry = cache / _PARTITIONS / key
    if has_entry(entry):
        with (
            contextlib.suppress(OSError, ValueError, KeyError, EOFError),
            np.load(entry / _INDICES, allow_pickle=False) as file,
        ):
            return [part.astype(np.int64) for part in np.split(file["indices"], file["ends"])]
    parts = list(partition(labels, scheme, seed))
    ends = np.cumsum([len(part) for part in parts])[:-1]
    with contextlib.suppress(OSError), new_entry(entry) as folder:
        np.savez(folder / _INDICES, indices=np.concatenate(parts), ends=ends)
    return parts


def _entry(
    cache: Path, name: str, image_size: int | None, origin: Any | None, *, unlabelled: bool
) -> Path:
    prefix, place = SOURCES.split(name)
    if prefix is not None and prefix.path:
        name = name.removesuffix(place) + str(expand(place).absolute())
    parts = {
        "kind": "source",
        "name": name,
        "image_size": image_size,
        "data": str(data_directory().absolute()),
        # The digits come with scikit-learn; torchvision says where the others are published.
        "packages": [*installed("scikit-learn", "torchvision", "pillow").values()],
        "origin": origin,
        "unlabelled": unlabelled,
    }
    return cache / _SOURCES / cache_key(parts)


def _write_source(folder: Path, source: Source, seen: Seen, area: Area) -> None:
    """Write the images, those for training first, unless they were decoded into the file."""
    parts = [part for part in (source.train, source.test) if part is not None]
    total = sum(len(part) for part in parts)
    if not _is_written(parts, total, area):
        pixels = map_new(
            folder / IMAGES_FILE, (total, *source.train.shape[1:]), source.train.stored.dtype
        )
        start = 0
        for part in parts:
            pixels[start : start + len(part)] = part.images
            start += len(part)
    np.save(folder / _LABELS, torch.cat([part.labels for part in parts]).numpy())
    meta = {
        "classes": source.classes,
        "num_train": len(source.train),
        "has_test": source.test is not None,
        "warnings": source.warnings,
        "files": seen,
    }
    (folder / _META).write_text(json.dumps(meta), encoding="utf-8")


def _is_written(parts: list[Images], total: int, area: Area) -> bool:
    """Return whether the file of an area holds just these images, in this order."""
    if (
        area.pixels is None
        or parts[0].kind != "image"
        or area.pixels.shape != (total, *parts[0].shape[1:])
    ):
        return False
    ends = np.cumsum([0, *(len(part) for part in parts)]).tolist()
    places = [area.pixels[end:].data_ptr() for end in ends[:-1]]
    return all(
        part.rows is None and part.stored.is_contiguous() and part.stored.data_ptr() == place
        for part, place in zip(parts, places, strict=True)
    )


def _read_source(entry: Path, name: str) -> Source | None:
    """Map an entry into memory; None where there is none, or its files are no longer the same."""
    try:
        size = (entry / IMAGES_FILE).stat().st_size
        if not (has_entry(entry) if size <= _CHECKED_BYTES else is_complete(entry)):
            return None
        meta = json.loads((entry / _META).read_text(encoding="utf-8"))
        for path, noted in meta["files"].items():
            if look_at(Path(path)) != (None if noted is None else tuple(noted)):
                return None
        # Copy on write: it counts as writable, as PyTorch wants, and the file stays as it is.
        arrays = [
            np.load(entry / file, mmap_mode="c", allow_pickle=False)
            for file in (IMAGES_FILE, _LABELS)
        ]
        images, labels = (torch.from_numpy(array) for array in arrays)
        cut = int(meta["num_train"])
        train = Images(images[:cut], labels[:cut])
        test = Images(images[cut:], labels[cut:]) if meta["has_test"] else None
        source = Source(name, train, test, tuple(meta["classes"]), tuple(meta["warnings"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None
    with contextlib.suppress(OSError):
        os.utime(entry)  # the entries that are not used are dropped first
    return source
