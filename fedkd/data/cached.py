"""Decoded public sets and drawn partitions in the cache.

The files of a public set are compressed, and their readers are slow to import. In the cache a set
lies as plain arrays that are mapped into memory and read only as far as they are used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedkd.data.download import Seen, data_directory, look_at, noting_files
from fedkd.data.images import Images
from fedkd.data.partition import Indices, partition
from fedkd.data.source import Source
from fedkd.data.sources import load_source
from fedkd.registry import PARTITIONS, SOURCES
from fedkd.util.cache import cache_key
from fedkd.util.cache_entries import has_entry, new_entry

if TYPE_CHECKING:
    from fedkd.data.partition import Scheme

_SOURCES, _PARTITIONS = "sources", "partitions"
_META, _INDICES = "source.json", "indices.npz"


def load_cached_source(
    name: str,
    *,
    image_size: int | None,
    cache: Path | None,
    options: Mapping[str, Any] | None = None,
) -> Source:
    """Read a data source; a public one from the cache, if the same files were decoded before.

    Args:
        name: see :func:`fedkd.data.sources.load_source`.
        image_size: height and width to resize to, in pixels; by default images stay as they are.
        cache: root of the cache, or None to read the files themselves.
        options: keyword arguments of a function of the user's own.

    Raises:
        UserError: the source is missing, unreadable, or not what a study can use.
    """
    if cache is None or name not in SOURCES:
        return load_source(name, image_size=image_size, options=options)
    entry = _entry(cache, name, image_size)
    cached = _read_source(entry)
    if cached is not None:
        return cached
    with noting_files() as seen:
        source = load_source(name, image_size=image_size)
    # check_cache_root refuses a cache that cannot be written, in a sentence.
    with contextlib.suppress(OSError), new_entry(entry) as folder:
        _write_source(folder, source, seen)
    return source


def cached_partition(
    labels: np.ndarray[Any, np.dtype[np.int64]], scheme: Scheme, seed: int, cache: Path | None
) -> list[Indices]:
    """Return the indices of each silo's images, from the cache if they were drawn before.

    Args:
        labels: int64 ``[N]``.
        scheme: the partition scheme.
        seed: of the draw.
        cache: root of the cache, or None to draw anew.

    Raises:
        UserError: the scheme cannot partition these images.
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


def _entry(cache: Path, name: str, image_size: int | None) -> Path:
    parts = {
        "kind": "source",
        "name": name,
        "image_size": image_size,
        "data": str(data_directory().absolute()),
        # The digits come with scikit-learn; torchvision says where the others are published.
        "packages": [version("scikit-learn"), version("torchvision")],
    }
    return cache / _SOURCES / cache_key(parts)


def _write_source(folder: Path, source: Source, seen: Seen) -> None:
    for what, part in (("train", source.train), ("test", source.test)):
        if part is not None:
            np.save(folder / f"{what}-images.npy", part.images.numpy())
            np.save(folder / f"{what}-labels.npy", part.labels.numpy())
    meta = {
        "name": source.name,
        "classes": source.classes,
        "has_test": source.test is not None,
        "files": seen,
    }
    (folder / _META).write_text(json.dumps(meta), encoding="utf-8")


def _read_source(entry: Path) -> Source | None:
    """Map an entry into memory; None where there is none, or its files are no longer the same."""
    if not has_entry(entry):
        return None
    try:
        meta = json.loads((entry / _META).read_text(encoding="utf-8"))
        for path, noted in meta["files"].items():
            if look_at(Path(path)) != (None if noted is None else tuple(noted)):
                return None
        train = _map(entry, "train")
        test = _map(entry, "test") if meta["has_test"] else None
        return Source(meta["name"], train, test, tuple(meta["classes"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None


def _map(entry: Path, what: str) -> Images:
    """Map images into memory: a page that is never looked at is never read."""
    # Copy on write: the mapping counts as writable, as PyTorch wants, and the file stays as it is.
    arrays = [
        np.load(entry / f"{what}-{kind}.npy", mmap_mode="c", allow_pickle=False)
        for kind in ("images", "labels")
    ]
    images, labels = (torch.from_numpy(array) for array in arrays)
    return Images(images, labels)
