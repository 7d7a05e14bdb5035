"""The part of a network that nobody trains, and its features, computed once for each image."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedkd.data.images import Images, as_float
from fedkd.util.cache import cache_key, cache_root
from fedkd.util.cache_entries import has_entry, new_entry
from fedkd.util.parallel import check_stopped

FEATURES = "features"
"""The cache's folder of features."""
_FILE, _HASHES, _VALUES = "features.safetensors", "hashes", "features"
_IN_ENTRY = 1024
"""Most images whose features are computed before they are written."""
_AT_ONCE = {"cpu": 1, "cuda": 64}
"""Images in a batch, by kind of device; the last batch is filled up with zeros.

The size is always the same, so that an image's features do not depend on what else was asked for
when they were computed. On a processor each image is computed alone, to the last bit.
"""


class FixedPart(nn.Module):
    """Images in [0, 1] to features ``[N, D]``; it is shared and never changes.

    Args:
        network: maps floats ``[N, C, H, W]`` to features; it is put into evaluation mode.
        key: hash of all that the features depend on beside the images.
    """

    def __init__(self, network: nn.Module, key: str) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(requires_grad=False)
        self.key = key
        self._moved: dict[str, FixedPart] = {"cpu": self}
        self._bytes: dict[tuple[int, ...], int] = {}
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, object]) -> FixedPart:
        """Return itself."""
        return self

    def train(self, mode: bool = True) -> FixedPart:  # noqa: ARG002, FBT001, FBT002 -- PyTorch's
        """Stay in evaluation mode."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of floats ``[N, C, H, W]``."""
        with torch.no_grad():
            features: Tensor = self.network(images)
        return features

    def on(self, device: str) -> FixedPart:
        """Return the same part on another device, which is moved there once."""
        import copy

        with self._lock:
            if device not in self._moved:
                moved = FixedPart(copy.deepcopy(self.network).to(device), self.key)
                self._moved[device] = moved
            return self._moved[device]

    def feature_bytes(self, shape: tuple[int, ...]) -> int:
        """Return how many bytes the features of one image ``[C, H, W]`` take."""
        if shape not in self._bytes:
            self._bytes[shape] = self(torch.zeros(1, *shape)).numel() * 4
        return self._bytes[shape]

    def features(self, images: Tensor | Images, *, device: str, precision: str) -> Tensor:
        """Return the features, float32 ``[N, D]`` on the CPU, of uint8 images ``[N, C, H, W]``.

        Those of images that were seen before, in this process or another, are read from the cache.
        """
        return _store(self.key, device, precision, cache_root()).get(self.on(device), images)

    def compute(self, images: Tensor, *, device: str, precision: str) -> Tensor:
        """Compute features as :meth:`features` returns them.

        On a processor the images are divided among as many threads as PyTorch may use in this one.
        """
        kind = device.partition(":")[0]
        size = _AT_ONCE[kind]

        def compute(batch: Tensor) -> Tensor:
            check_stopped()
            filled = as_float(batch).to(device)
            if len(batch) < size:
                filled = torch.cat([filled, filled.new_zeros(size - len(batch), *batch.shape[1:])])
            enabled = precision == "bf16"
            with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=enabled):
                features: Tensor = self(filled.contiguous(memory_format=torch.channels_last))
            return features[: len(batch)].float().cpu()

        # The pool's threads compute with one intra-op thread each: the bits do not depend on it.
        threads = torch.get_num_threads() if kind == "cpu" else 1
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return torch.cat(list(pool.map(compute, torch.split(images, size))))


def _batched(names: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    """Yield the names in lists of at most ``size``."""
    rest = iter(names)
    while some := list(islice(rest, size)):
        yield some


@lru_cache(maxsize=16)
def _store(key: str, device: str, precision: str, root: Path) -> FeatureStore:
    return FeatureStore(key, device, precision, root)


class FeatureStore:
    """Features of one fixed part by the content of images, in memory and in the cache.

    Every entry of the cache holds what was computed at one time. Its name begins with a hash of the
    fixed part and ends with one of the images.
    """

    def __init__(self, key: str, device: str, precision: str, root: Path) -> None:
        self._device, self._precision = device, precision
        self._folder = root / FEATURES
        parts = {"kind": "features", "fixed": key, "device": device.partition(":")[0]}
        self._prefix = cache_key({**parts, "precision": precision})[:20]
        self._rows: dict[bytes, Tensor] = {}
        self._read: set[str] = set()
        self._lock = threading.Lock()

    def get(self, fixed: FixedPart, images: Tensor | Images) -> Tensor:
        """Return the features of uint8 images ``[N, C, H, W]``; see :meth:`FixedPart.features`."""
        starts = range(0, len(images), _IN_ENTRY)
        hashes = [
            _hash(image)
            for start in starts
            for image in _pick(images, range(start, min(start + _IN_ENTRY, len(images))))
        ]
        with self._lock:
            if any(each not in self._rows for each in hashes):
                self._read_new_entries()
            missing = {each: n for n, each in enumerate(hashes) if each not in self._rows}
        for names in _batched(missing, _IN_ENTRY):
            wanted = _pick(images, [missing[name] for name in names])
            found = fixed.compute(wanted, device=self._device, precision=self._precision)
            self._write(names, found)
            with self._lock:
                self._rows.update(zip(names, found, strict=True))
        return torch.stack([self._rows[each] for each in hashes])

    def _read_new_entries(self) -> None:
        for entry in sorted(self._folder.glob(f"{self._prefix}*")):
            if entry.name in self._read or not has_entry(entry):
                continue
            try:
                tensors = load_file(entry / _FILE)
            except (SafetensorError, OSError):  # another process removed it meanwhile
                continue
            names = [bytes(row) for row in tensors[_HASHES].numpy()]
            self._rows.update(zip(names, tensors[_VALUES], strict=True))
            self._read.add(entry.name)

    def _write(self, names: Sequence[bytes], features: Tensor) -> None:
        digest = hashlib.sha256(b"".join(names)).hexdigest()[:20]
        hashes = torch.tensor([list(name) for name in names], dtype=torch.uint8)
        with new_entry(self._folder / (self._prefix + digest)) as folder:
            save_file({_HASHES: hashes, _VALUES: features.contiguous()}, folder / _FILE)
        self._read.add(self._prefix + digest)


def _pick(images: Tensor | Images, rows: Sequence[int]) -> Tensor:
    chosen = torch.tensor(list(rows), dtype=torch.int64)
    return images[chosen] if isinstance(images, Tensor) else images.pick(chosen)


def _hash(image: Tensor) -> bytes:
    digest = hashlib.sha256(str(tuple(image.shape)).encode())
    digest.update(image.contiguous().numpy().data)
    return digest.digest()
