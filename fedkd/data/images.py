"""Labelled images in memory, their hash, and conversions of size and channels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import interpolate

from fedkd.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in ITU-R BT.601's luma."""

_RESIZED_AT_ONCE = 256
"""Images converted to floats at a time, which bounds the memory that resizing takes."""


_FEW_VALUES = 10
_NARROW_RANGE = 32
"""Pixels of at most so many distinct values, or of a smaller range, carry hardly a picture."""

_SAMPLED = 1000


@dataclass(frozen=True, eq=False)
class Images:
    """Images and their labels, in one order.

    Attributes:
        images: uint8 ``[N, C, H, W]``.
        labels: int64 ``[N]``; -1 where a label is withheld.

    Raises:
        ValueError: a tensor has another type or shape.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images must be uint8 [N, C, H, W], not {self.images.dtype} "
                f"{list(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels of {len(self.images)} images must be int64 [N], not {self.labels.dtype} "
                f"{list(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: np.ndarray | torch.Tensor | Sequence[int]) -> Images:
        """Return the images at ``indices`` ``[M]``, in that order, copied."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return Images(self.images[chosen], self.labels[chosen])


def content_hash(images: torch.Tensor) -> str:
    """Return the SHA-256 of a transfer set's images, in hexadecimal.

    Hashed are, one after the other without a separator, in UTF-8 the name of the type and the
    shape as Python writes a tuple (for 300 greyscale images of 8 x 8 pixels
    ``uint8(300, 1, 8, 8)``), and the raw bytes of the pixels in C order: images, channels, rows,
    columns. Labels are not part of it.

    Args:
        images: uint8 ``[N, C, H, W]``, in any memory layout, on any device.

    Raises:
        ValueError: the images are not uint8.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"a transfer set must be uint8 images, not {images.dtype}")
    digest = hashlib.sha256(f"uint8{tuple(images.shape)}".encode())
    digest.update(images.contiguous().cpu().numpy().data)
    return digest.hexdigest()


def as_float(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 images ``[N, C, H, W]`` as float32 of the same shape, in [0, 1]."""
    return images.to(torch.float32, copy=True).div_(255)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Bring the shorter side of images to ``size`` pixels and crop the longer one at its centre.

    The crop comes first, which frames the same square and keeps the memory of long, thin images
    in bounds. Bilinear with antialiasing, rounded to the nearest value.

    Args:
        images: uint8 ``[N, C, H, W]``.
        size: height and width of the result, in pixels.

    Returns:
        uint8 ``[N, C, size, size]``.
    """
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[..., top : top + side, left : left + side]
    if side == size:
        return square.contiguous()
    resized = images.new_empty((*images.shape[:2], size, size))
    for start in range(0, len(images), _RESIZED_AT_ONCE):
        chunk = square[start : start + _RESIZED_AT_ONCE].to(torch.float32)
        scaled = interpolate(chunk, (size, size), mode="bilinear", antialias=True)
        resized[start : start + _RESIZED_AT_ONCE] = scaled.round().clamp(0, 255).to(torch.uint8)
    return resized


def to_channels(images: torch.Tensor, channels: int) -> torch.Tensor:
    """Turn greyscale into colour by repetition, or colour into greyscale by ITU-R BT.601's luma.

    Args:
        images: uint8 ``[N, C, H, W]``.
        channels: C of the result.

    Returns:
        uint8 ``[N, channels, H, W]``.

    Raises:
        UserError: there is no such conversion, as between two and three channels.
    """
    given = images.shape[1]
    if given == channels:
        return images
    if given == 1:
        return images.repeat(1, channels, 1, 1)
    if (given, channels) != (3, 1):
        raise UserError(
            f"images of {given} channels cannot be turned into images of {channels}; only "
            "greyscale and RGB can be turned into one another"
        )
    luma = torch.zeros_like(images[:, :1], dtype=torch.float32)
    for channel, weight in enumerate(_LUMA):
        luma += weight * images[:, channel : channel + 1]
    return luma.round().clamp(0, 255).to(torch.uint8)


def describe_few_values(images: torch.Tensor) -> str | None:
    """Return a sentence if pixels have very few distinct values or a small range, else None.

    Mostly a conversion is the reason: values from 0 to 1 cut to whole numbers, or class numbers
    and digits of 4 bits in place of grey levels.

    Args:
        images: uint8 ``[N, C, H, W]``, none of the sizes 0.
    """
    step = max(1, len(images) // _SAMPLED)
    if not _has_few(_histogram(images[::step])):
        return None
    counts = _histogram(images)
    if not _has_few(counts):
        return None
    values = counts.nonzero()[:, 0]
    return (
        f"its pixels have only {len(values)} distinct values, from {int(values[0])} to "
        f"{int(values[-1])}, where 0 is black and 255 is white; check how they were scaled"
    )


def _histogram(images: torch.Tensor) -> torch.Tensor:
    """Count the values of pixels, int64 ``[256]``."""
    counts = torch.zeros(256, dtype=torch.int64)
    for chunk in torch.split(images, _RESIZED_AT_ONCE):
        counts += torch.bincount(chunk.reshape(-1), minlength=256)
    return counts


def _has_few(counts: torch.Tensor) -> bool:
    values = counts.nonzero()[:, 0]
    return len(values) <= _FEW_VALUES or int(values[-1] - values[0]) < _NARROW_RANGE
