"""The part of a network that nobody trains, and its features, computed once for each example."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor, nn

from fedkd.data.images import Images, as_inputs
from fedkd.models.feature_store import FeatureStore
from fedkd.util.cache import cache_root
from fedkd.util.parallel import check_stopped

_AT_ONCE = {"cpu": 1, "cuda": 64, "mps": 64}
"""Examples in a batch, by kind of device; the last batch is filled up with zeros.

The size is always the same, so that an example's features do not depend on what else was asked for
when they were computed. On a processor each example is computed alone, to the last bit.
"""


class FixedPart(nn.Module):
    """Images in [0, 1] to features ``[N, ...]``; it is shared and never changes.

    The network maps floats ``[N, C, H, W]``, in evaluation mode. The key is a hash of all that
    the features depend on beside the examples.
    """

    def __init__(self, network: nn.Module, key: str) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(requires_grad=False)
        self.key = key
        self._moved: dict[str, FixedPart] = {"cpu": self}
        self._shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
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

    def feature_bytes(self, images: Tensor | Images) -> int:
        """Return how many bytes the features of one example take."""
        return 4 * math.prod(self._shape_of(images))

    def _shape_of(self, images: Tensor | Images) -> tuple[int, ...]:
        """Return the shape of the features of one example."""
        shape = tuple(images.shape[1:])
        if shape not in self._shapes:
            stored = images if isinstance(images, Tensor) else images.stored
            blank = as_inputs(torch.zeros(1, *shape, dtype=stored.dtype))
            self._shapes[shape] = tuple(self(blank).shape[1:])
        return self._shapes[shape]

    def features(self, images: Tensor | Images, *, device: str, precision: str) -> Tensor:
        """Return the features, float32 ``[N, ...]`` on the CPU, of images or texts ``[N, ...]``.

        Those of examples seen before, in this process or another, are read from the cache.
        """

        def compute(missing: Tensor) -> Tensor:
            return self.on(device).compute(missing, device=device, precision=precision)

        shape = self._shape_of(images)
        return _store(self.key, device, precision, cache_root()).get(images, shape, compute)

    def compute(self, images: Tensor, *, device: str, precision: str) -> Tensor:
        """Compute features as :meth:`features` returns them.

        On a processor the examples are divided among the threads that PyTorch may use in this one.
        """
        kind = device.partition(":")[0]
        size = _AT_ONCE[kind]
        layout = torch.channels_last if images.ndim == 4 else torch.contiguous_format

        def compute(batch: Tensor) -> Tensor:
            check_stopped()
            filled = as_inputs(batch).to(device)
            if len(batch) < size:
                filled = torch.cat([filled, filled.new_zeros(size - len(batch), *batch.shape[1:])])
            enabled = precision == "bf16"
            with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=enabled):
                features: Tensor = self(filled.contiguous(memory_format=layout))
            return features[: len(batch)].float().cpu()

        # The pool's threads compute with one intra-op thread each: the bits do not depend on it.
        threads = torch.get_num_threads() if kind == "cpu" else 1
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return torch.cat(list(pool.map(compute, torch.split(images, size))))


_store = lru_cache(maxsize=16)(FeatureStore)
