"""Reuse of models: building one takes longer than a small silo takes to train it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from fedkd.models.build import Shape, build_model
from fedkd.models.spool import is_large
from fedkd.models.state import State
from fedkd.util.random_ops import draws_at_random


class ModelPool:
    """Holds models that are not in use.

    A model is reused only if its state dict is its whole state, so that loading one makes it equal
    to a new model. That holds for PyTorch's own modules that draw nothing at random, for some of
    torchvision's, and for the built-in architectures. A module class of the user's own may have
    further state, such as a counter or a cache, and is built anew every time.

    Args:
        keeps_large: whether large models are held, too. A deployed silo waits longer for one than
            it takes to build it.
    """

    def __init__(self, *, keeps_large: bool = True) -> None:
        self._keeps_large = keeps_large
        self._free: dict[tuple[str, Shape, str], list[nn.Module]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def borrow(self, arch: str, shape: Shape, state: State, device: str) -> Iterator[nn.Module]:
        """Return a context with a model of ``arch`` on ``device`` whose weights are ``state``.

        No other caller gets it before the block ends; what is to outlive the block must be copied.
        """
        key = (arch, shape, device)
        with self._lock:
            free = self._free.setdefault(key, [])
            model = free.pop() if free else None
        if model is None:
            model = build_model(arch, shape, seed=0).to(device)
        model.load_state_dict(state)
        del state
        yield model.train()
        if is_reusable(model) and (self._keeps_large or not is_large(model.state_dict())):
            model.zero_grad(set_to_none=True)
            with self._lock:
                free.append(model)


def is_reusable(model: nn.Module) -> bool:
    """Whether loading a state dict makes the model equal to a new one of that state."""
    saved = {*model.state_dict(), *getattr(model, "fixed_names", ())}
    return not draws_at_random(model) and all(name in saved for name, _ in model.named_buffers())
