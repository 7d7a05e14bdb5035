"""What teachers said of image sets: each predicts a set once, for all who ask again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from fedkd.errors import UserError
from fedkd.models.build import Shape, arch_fingerprint
from fedkd.models.state import State, is_finite, load_state, save_state, state_hash
from fedkd.training.compute import Compute
from fedkd.util.cache import cache_key
from fedkd.util.cache_entries import has_entry, new_entry

PREDICTIONS = "predictions"
_LOGITS, _FILE = "logits", "logits.safetensors"


class Predictions:
    """Logits by image set and teacher, in memory and, where there is a cache, on disk.

    Threads may share it: each prediction is made by one of them while the others wait.

    Args:
        cache: root of the cache, shared by arms, seeds and studies, or None for memory alone.
        files: those that a user's architecture reads (``model.files``).
    """

    def __init__(self, cache: Path | None = None, files: Sequence[str] = ()) -> None:
        self._cache = cache
        self._files = files
        self._known: dict[tuple[str, str], Tensor] = {}
        self._lock = threading.RLock()

    def kept_in(self, cache: Path | None, files: Sequence[str] = ()) -> Predictions:
        """Return the same predictions; whatever is made from now on is kept in a cache as well.

        Only where no time is taken: what is read from the cache takes none of the seconds that
        a run reports.
        """
        other = Predictions(cache, files)
        other._known, other._lock = self._known, self._lock
        return other

    def get(self, images: str, teacher: str, make: Callable[[], Tensor]) -> Tensor:
        """Return a teacher's logits ``[N, K]`` on the image set of that hash, made if unknown."""
        with self._lock:
            key = (images, teacher)
            if key not in self._known:
                self._known[key] = make()
            return self._known[key]

    def of_model(
        self,
        state: State,
        arch: str,
        shape: Shape,
        images: Tensor,
        images_hash: str,
        compute: Compute,
        make: Callable[[], Tensor],
    ) -> Tensor:
        """Return a model's logits ``[N, K]``, read from the cache or made and kept there.

        Args:
            state: the model's weights.
            arch: its architecture.
            shape: what it is built for.
            images: uint8 ``[N, C, H, W]``.
            images_hash: their :func:`fedkd.data.images.content_hash`.
            compute: device and precision.
            make: predicts.
        """
        if self._cache is None:
            return make()
        key = cache_key(
            {
                "kind": "predictions",
                "state": state_hash(state),
                "arch": arch_fingerprint(arch, self._files),
                "shape": asdict(shape),
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
        # What is not finite diverged; it is refused elsewhere, and not worth keeping.
        if is_finite({_LOGITS: logits}):
            with new_entry(entry) as folder:
                save_state(folder / _FILE, {_LOGITS: logits})
        return logits
