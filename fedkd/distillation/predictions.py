"""A cache of teachers' logits: each teacher predicts a set of examples once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from fedkd.data.images import Images
from fedkd.errors import UserError
from fedkd.models.build import Shape, arch_fingerprint
from fedkd.models.state import State, is_finite, load_state, save_state, state_hash
from fedkd.training.compute import Compute
from fedkd.util.cache import cache_key
from fedkd.util.cache_entries import has_entry, new_entry

PREDICTIONS = "predictions"
_LOGITS, _FILE = "logits", "logits.safetensors"


class Predictions:
    """Logits by set of examples and teacher, in memory and, with a cache, on disk.

    Threads may share it: one thread computes a prediction while the others wait.

    Args:
        cache: root of the disk cache, shared by arms, seeds and studies; None for memory alone.
        files: those that a user's architecture reads (``model.files``).
    """

    def __init__(self, cache: Path | None = None, files: Sequence[str] = ()) -> None:
        self._cache = cache
        self._files = files
        self._logits: dict[tuple[str, str], Tensor] = {}
        self._lock = threading.RLock()

    def cached_in(self, cache: Path | None, files: Sequence[str] = ()) -> Predictions:
        """Return the same predictions, with a disk cache for those computed from now on.

        Use it only outside measured time: a prediction from the cache takes no time, which would
        falsify the seconds of a run.
        """
        shared = Predictions(cache, files)
        shared._logits, shared._lock = self._logits, self._lock
        return shared

    def get(self, images: str, teacher: str, make: Callable[[], Tensor]) -> Tensor:
        """Return a teacher's logits ``[N, K]`` on the examples of this hash, computed once."""
        with self._lock:
            key = (images, teacher)
            if key not in self._logits:
                self._logits[key] = make()
            return self._logits[key]

    def of_model(
        self,
        state: State,
        arch: str,
        shape: Shape,
        images: Tensor | Images,
        images_hash: str,
        compute: Compute,
        make: Callable[[], Tensor],
    ) -> Tensor:
        """Return a model's logits ``[N, K]``, from the cache or made and stored there.

        ``images_hash`` is :func:`fedkd.data.images.content_hash` of the examples ``[N, ...]``.
        """
        if self._cache is None:
            return make()
        key = cache_key(
            {
                "kind": "predictions",
                "state": state_hash(state),
                "arch": arch_fingerprint(arch, self._files, shape.backbone),
                "shape": shape.sizes,
                "images": images_hash,
                "compute": asdict(compute),
            }
        )
        entry = self._cache / PREDICTIONS / key
        like = {_LOGITS: torch.empty(len(images), shape.num_classes)}
        if has_entry(entry):
            with contextlib.suppress(UserError):
                return load_state(entry / _FILE, like)[_LOGITS]
        logits = make()
        # Logits of a diverged model are refused elsewhere and not cached.
        if is_finite({_LOGITS: logits}):
            with new_entry(entry) as folder:
                save_state(folder / _FILE, {_LOGITS: logits})
        return logits
