"""Random layers and initialisers that draw from a given generator.

PyTorch's Dropout and initialisers draw from one global generator, which silos that train in
parallel threads would share: curves would then depend on the number of workers.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

_GLOBAL_GENERATOR = threading.Lock()
_GPUS = ("cuda", "mps")

_DRAWS_NOTHING = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    *(nn.Linear, nn.Flatten, nn.Identity, nn.GroupNorm, nn.LayerNorm),
    *(nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Hardsigmoid, nn.Hardswish),
)

_PLAIN_MODULES = (
    "fedkd.models.",
    "torch.nn.modules.container",
    "torchvision.models.resnet",
    "torchvision.models.regnet",
    "torchvision.models.shufflenetv2",
    "torchvision.ops.misc",
)
"""Beginnings of the names of Python modules whose layers draw nothing by themselves, and hold no
state beside their parameters and buffers."""


class DrawFrom(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's is untyped
    """While active in a thread, random operations draw from ``generator`` and nothing else.

    The mode is local to its thread. Operations with a ``generator`` argument get it; the few
    without (``torch.rand`` and the like) run under a lock on a global generator seeded from it
    and put back afterwards.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether PyTorch should hide the mode from its compiler, for which it imports it.

        Nothing is compiled under this mode, and importing the compiler takes longer than all else
        that a study from the cache does.
        """
        return False

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self._generator = generator
        self._elsewhere: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        arguments = [argument.name for argument in func._schema.arguments]
        if "generator" not in arguments:
            return self._with_global_generator(func, args, kwargs)
        position = arguments.index("generator")
        given = kwargs.get("generator", args[position] if position < len(args) else None)
        if given is None:
            args = args[:position]
            kwargs["generator"] = self._generator_on(_device_of(args, kwargs))
        return func(*args, **kwargs)

    def _generator_on(self, device: torch.device) -> torch.Generator:
        """Return the generator, or on a GPU one of its own that is seeded from it once."""
        if device.type not in _GPUS:
            return self._generator
        if device not in self._elsewhere:
            self._elsewhere[device] = torch.Generator(device).manual_seed(self._draw_seed())
        return self._elsewhere[device]

    def _draw_seed(self) -> int:
        return int(torch.empty((), dtype=torch.int64).random_(generator=self._generator))

    def _with_global_generator(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        seed, device = self._draw_seed(), _device_of(args, kwargs)
        devices = [device] if device.type == "cuda" else []
        with _GLOBAL_GENERATOR, torch.random.fork_rng(devices):
            torch.default_generator.manual_seed(seed)
            for each in devices:
                torch.cuda.default_generators[each.index or 0].manual_seed(seed)
            return func(*args, **kwargs)


def _device_of(args: Any, kwargs: dict[str, Any]) -> torch.device:
    """Return the device on which an operation computes."""
    if kwargs.get("device") is not None:
        return torch.device(kwargs["device"])
    tensors = (value for value in args if isinstance(value, torch.Tensor))
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def draws_at_random(model: nn.Module) -> bool:
    """Whether a forward pass may draw random numbers.

    The mode costs some microseconds an operation, so plain models go without. Only layers known
    to draw nothing count as plain; for any other leaf, or any module written by others, whose
    ``forward`` may call ``functional.dropout``, the answer is yes.
    """
    for module in model.modules():
        children = next(module.children(), None) is not None
        known = type(module).__module__.startswith(_PLAIN_MODULES)
        if not (known if children else known or type(module) in _plain_types()):
            return True
    return False


@lru_cache(maxsize=1)
def _plain_types() -> set[type]:
    """The exact classes: a subclass may draw."""
    types: set[type] = set()
    for plain in _DRAWS_NOTHING:
        types |= {
            plain,
            *(sub for sub in _subclasses(plain) if sub.__module__.startswith("torch.")),
        }
    return types


def _subclasses(cls: type) -> set[type]:
    direct: set[type] = set(cls.__subclasses__())
    return direct.union(*(_subclasses(sub) for sub in direct))
