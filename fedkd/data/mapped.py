"""Pixels in a file that is mapped into memory, so that a large source takes none of it."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

IMAGES_FILE = "images.npy"

_LOG = logging.getLogger(__name__)


@dataclass
class Area:
    """Where the pixels of one source are written.

    Attributes:
        folder: of the file.
        limit: most bytes of it.
        pixels: of :func:`new_pixels`, uint8 ``[N, C, H, W]``; None until it is called.
    """

    folder: Path
    limit: int
    pixels: torch.Tensor | None = None


_AREA: ContextVar[Area | None] = ContextVar("area", default=None)


@contextmanager
def mapped_in(folder: Path, limit: int) -> Iterator[Area]:
    """Let :func:`new_pixels` within the block write to a file in ``folder``.

    Images of more bytes than ``limit`` are in memory.
    """
    area = Area(folder, limit)
    token = _AREA.set(area)
    try:
        yield area
    finally:
        _AREA.reset(token)


def new_pixels(shape: tuple[int, ...]) -> torch.Tensor:
    """Return an uninitialised tensor for the pixels of a source, uint8 ``[N, C, H, W]``.

    It is mapped to a file within a block of :func:`mapped_in`, else in memory.
    """
    area = _AREA.get()
    if area is None or area.pixels is not None or math.prod(shape) > area.limit:
        return torch.empty(shape, dtype=torch.uint8)
    try:
        area.pixels = map_new(area.folder / IMAGES_FILE, shape)
    except OSError as error:
        _LOG.warning(
            "fedkd: %s cannot hold the decoded images (%s); they are decoded into memory, and "
            "again by the next command",
            area.folder.parent,
            error.strerror,
        )
        return torch.empty(shape, dtype=torch.uint8)
    return area.pixels


def map_new(path: Path, shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Make a file of numbers in NumPy's format and return it as a tensor, writable.

    Raises:
        OSError: there is no room for it.
    """
    numbers = torch.empty(0, dtype=dtype).numpy().dtype
    array = np.lib.format.open_memmap(path, mode="w+", dtype=numbers, shape=shape)
    if hasattr(os, "posix_fallocate") and (size := path.stat().st_size):
        with path.open("rb+") as file:
            # Otherwise a full disk would end the process at a write to memory.
            os.posix_fallocate(file.fileno(), 0, size)
    return torch.from_numpy(array)
