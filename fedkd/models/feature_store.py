"""Features of examples by the examples' content: computed once, bounded in memory and on disk."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from cachetools import LRUCache
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedkd.data.images import Images
from fedkd.util.cache import cache_key, disk_budget
from fedkd.util.cache_entries import has_entry, keep_within, new_entry

FEATURES = "features"
"""The cache's folder of features."""
MEMORY_BYTES = 1 << 30
"""Most bytes of features that a process keeps, of all networks together."""
_FILE, _HASHES, _VALUES = "features.safetensors", "hashes", "features"
_IN_ENTRY, _ENTRY_BYTES = 1024, 64 << 20
"""Most examples whose features are computed before they are written, and most bytes of these."""

_in_memory: LRUCache[Path, Tensor] = LRUCache(MEMORY_BYTES, getsizeof=lambda rows: rows.nbytes)
"""Features ``[n, ...]`` of an entry; those that were not used for longest are dropped first."""
_memory_lock = threading.Lock()


class FeatureStore:
    """Features of one fixed part by the content of examples.

    Every entry of the cache holds what was computed at one time. Its name begins with a hash of
    the fixed part and ends with one of the examples. Decoded data and features share the disk
    budget, of which the entries that were not used for longest are dropped first; features that
    are found nowhere are computed again. The key is a hash of all that features depend on
    beside examples, device and precision.
    """

    def __init__(self, key: str, device: str, precision: str, root: Path) -> None:
        self._root = root
        self._folder = root / FEATURES
        parts = {"kind": "features", "fixed": key, "device": device.partition(":")[0]}
        self._prefix = cache_key({**parts, "precision": precision})[:20]
        self._places: dict[bytes, tuple[Path, int]] = {}
        self._read: set[Path] = set()
        self._lock = threading.Lock()

    def get(
        self, images: Tensor | Images, shape: tuple[int, ...], compute: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return the features, float32 ``[N, ...]``, of examples ``[N, ...]``.

        ``compute`` returns those of examples that were not seen before. ``shape`` is of one
        example.
        """
        features = torch.empty(len(images), *shape)
        at_once = max(1, min(_IN_ENTRY, _ENTRY_BYTES // (4 * math.prod(shape))))
        missing = self._take_known(_positions(images), features)
        names = list(missing)
        for hashes in (names[start : start + at_once] for start in range(0, len(names), at_once)):
            computed = compute(_pick(images, [missing[each][0] for each in hashes]))
            self._add(hashes, computed)
            for each, row in zip(hashes, computed, strict=True):
                features[missing[each]] = row
        if missing and (budget := disk_budget()):
            keep_within(self._root, budget)
        return features

    def _take_known(
        self, positions: dict[bytes, list[int]], features: Tensor
    ) -> dict[bytes, list[int]]:
        """Fill in the features that are kept; return the positions of the others."""
        with self._lock:
            if any(each not in self._places for each in positions):
                self._find_new_entries()
            found = defaultdict[Path, list[tuple[bytes, int]]](list)
            for each in positions:
                if each in self._places:
                    entry, row = self._places[each]
                    found[entry].append((each, row))
        missing = dict(positions)
        for entry, rows in found.items():
            kept = _load(entry)
            if kept is None:
                self._forget(entry)
                continue
            for each, row in rows:
                features[missing.pop(each)] = kept[row]
        return missing

    def _find_new_entries(self) -> None:
        """Note which examples' features the entries of other processes hold."""
        for entry in sorted(self._folder.glob(f"{self._prefix}*")):
            if entry in self._read or not has_entry(entry):
                continue
            try:
                with safe_open(entry / _FILE, framework="pt") as file:
                    hashes = file.get_tensor(_HASHES)
            except (SafetensorError, OSError, RuntimeError):  # another process removed it meanwhile
                continue
            self._note(entry, [bytes(row) for row in hashes.numpy()])

    def _note(self, entry: Path, hashes: Sequence[bytes]) -> None:
        self._places.update({each: (entry, row) for row, each in enumerate(hashes)})
        self._read.add(entry)

    def _forget(self, entry: Path) -> None:
        """Note that an entry was removed."""
        with self._lock:
            self._read.discard(entry)
            lost = [each for each, (place, _) in self._places.items() if place == entry]
            for each in lost:
                del self._places[each]

    def _add(self, hashes: Sequence[bytes], features: Tensor) -> None:
        entry = self._folder / (self._prefix + hashlib.sha256(b"".join(hashes)).hexdigest()[:20])
        _remember(entry, features)
        if disk_budget():
            names = torch.tensor([list(each) for each in hashes], dtype=torch.uint8)
            with new_entry(entry) as folder:
                save_file({_HASHES: names, _VALUES: features.contiguous()}, folder / _FILE)
        with self._lock:
            self._note(entry, hashes)


def _load(entry: Path) -> Tensor | None:
    """Return the features of an entry; None where it is neither in memory nor on disk."""
    with _memory_lock:
        if (kept := _in_memory.get(entry)) is not None:
            return kept
    if not has_entry(entry):
        return None
    try:
        features = load_file(entry / _FILE)[_VALUES]
        os.utime(entry)  # the entries that are not used are dropped first
    except (SafetensorError, OSError, RuntimeError):  # another process removed it meanwhile
        return None
    _remember(entry, features)
    return features


def _remember(entry: Path, features: Tensor) -> None:
    with _memory_lock, contextlib.suppress(ValueError):  # one may be larger than all
        _in_memory[entry] = features


def _positions(images: Tensor | Images) -> dict[bytes, list[int]]:
    """Return where each example lies, by a hash of its content."""
    positions = defaultdict[bytes, list[int]](list)
    for start in range(0, len(images), _IN_ENTRY):
        rows = range(start, min(start + _IN_ENTRY, len(images)))
        for row, image in zip(rows, _pick(images, rows), strict=True):
            positions[_hash(image)].append(row)
    return dict(positions)


def _pick(images: Tensor | Images, rows: Sequence[int]) -> Tensor:
    chosen = torch.tensor(list(rows), dtype=torch.int64)
    return images[chosen] if isinstance(images, Tensor) else images.pick(chosen)


def _hash(image: Tensor) -> bytes:
    digest = hashlib.sha256(str(tuple(image.shape)).encode())
    digest.update(image.contiguous().numpy().data)
    return digest.digest()
