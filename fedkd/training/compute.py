"""Device, precision and thread count of numeric work."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from fedkd.errors import UserError


@dataclass(frozen=True)
class Compute:
    """Where and how numbers are computed.

    Attributes:
        device: ``cpu``, ``cuda[:n]`` or ``mps``.
        precision: ``fp32``, or ``bf16`` for autocast.
        threads: intra-op threads with which a silo trains.
    """

    device: str = "cpu"
    precision: str = "fp32"
    threads: int = 1

    def check(self) -> None:
        """Check that this machine has the device."""
        kind, _, index = self.device.partition(":")
        if kind == "mps" and not torch.backends.mps.is_available():
            raise UserError(
                "engine.device: mps is not available: PyTorch finds no GPU of Apple on this "
                "machine; use auto or cpu"
            )
        if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"engine.device: {self.device} is not available: PyTorch finds "
                f"{torch.cuda.device_count()} GPUs on this machine; use cpu"
            )

    def by_turns(self, index: int) -> Compute:
        """Return what the index-th of several silos takes: all GPUs of ``cuda`` are shared."""
        count = torch.cuda.device_count() if self.device == "cuda" else 1
        return replace(self, device=f"cuda:{index % count}") if count > 1 else self

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which forward passes run."""
        if self.precision != "bf16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.partition(":")[0], torch.bfloat16)


def find_device(name: str) -> str:
    """Return a device by name; ``auto`` is ``cuda`` or ``mps`` if there is one, else ``cpu``."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@contextlib.contextmanager
def intra_op_threads(count: int) -> Iterator[None]:
    """Run a numeric phase of this thread with ``count`` intra-op threads.

    One and two threads give different bits, so every phase sets the number explicitly.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        if count > 1:
            end_idle_threads()
        torch.set_num_threads(before)


def end_idle_threads() -> None:
    """End the intra-op threads that this thread keeps for its next operation.

    GNU's OpenMP keeps them with every thread that ever used some. Once they and all others
    outnumber the cores, those that wait for one another in an operation sleep rather than spin,
    and silos of several threads train more slowly.
    """
    pause = _find_pause()
    if pause is not None:
        pause(_PAUSE_SOFT)


_PAUSE_SOFT = 1
"""``omp_pause_soft`` of OpenMP 5.0: only threads are given up."""


@lru_cache(maxsize=1)
def _find_pause() -> Callable[[int], object] | None:
    """Return ``omp_pause_resource_all`` of PyTorch's OpenMP; None where it brings no GNU's."""
    for path in sorted(Path(torch.__file__).parent.glob("lib/libgomp*")):
        with contextlib.suppress(OSError, AttributeError):
            function: Callable[[int], object] = ctypes.CDLL(str(path)).omp_pause_resource_all
            return function
    return None


def is_channels_last(model: nn.Module) -> bool:
    """Whether the model's convolutions are in channels-last layout; images should be then, too."""
    return any(
        weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
        for weight in model.parameters()
        if weight.dim() == 4
    )


def smallest_batch(size: int, batch_size: int) -> int:
    """Return the size of the smallest batch of :func:`batch_bounds`."""
    return min((end - start for start, end in batch_bounds(size, batch_size)), default=0)


def batch_bounds(size: int, batch_size: int) -> list[tuple[int, int]]:
    """Split ``size`` samples into batches; a single last sample joins the batch before it.

    Batch normalisation cannot train on one sample, and dropping it would lose data.
    """
    starts = list(range(0, size, batch_size))
    if len(starts) > 1 and size - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], size], strict=True))
