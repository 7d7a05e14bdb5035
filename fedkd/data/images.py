"""Labelled examples in memory, their hash, and conversions of the size and channels of images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import interpolate

from fedkd.errors import UserError

Kind = Literal["image", "table", "text", "tensor"]
"""What an example is: pixels ``[C, H, W]``, columns ``[F]``, token ids ``[L]``, or any floats."""

_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in ITU-R BT.601's luma."""

_RESIZED_AT_ONCE = 256
"""Images converted to floats at a time, which bounds the memory that resizing takes."""


_FEW_VALUES = 10
_NARROW_RANGE = 32
"""Pixels of at most so many distinct values, or of a smaller range, carry hardly a picture."""

_SAMPLED = 1000


COPIED_BYTES = 256 << 20
"""Largest set of images of which a part is copied: it is faster to read than a view."""

_HASHED_AT_ONCE = 64 << 20
"""Bytes of a view that are in memory at a time while it is hashed."""


def kind_of(inputs: torch.Tensor) -> Kind:
    """Return what examples are, by type and number of dimensions.

    uint8 ``[N, C, H, W]`` are images, float32 ``[N, F]`` is a table (float64 before its columns are
    standardized), int64 ``[N, L]`` are texts, float32 of more dimensions are tensors.

    Raises:
        ValueError: they are none of these.
    """
    if inputs.dtype == torch.uint8 and inputs.ndim == 4:
        return "image"
    if inputs.dtype in (torch.float32, torch.float64) and inputs.ndim == 2:
        return "table"
    if inputs.dtype == torch.int64 and inputs.ndim == 2:
        return "text"
    if inputs.dtype == torch.float32 and inputs.ndim > 2:
        return "tensor"
    raise ValueError(
        "examples must be images (uint8 [N, C, H, W]), a table (float32 [N, F]), texts (int64 "
        f"[N, L]) or tensors (float32), not {inputs.dtype} {list(inputs.shape)}"
    )


@dataclass(frozen=True, eq=False)
class Images:
    """Examples, mostly images, and their labels: whole tensors, or some rows of a large one.

    Attributes:
        stored: of a kind that :func:`kind_of` knows, ``[M, ...]``, in memory or mapped to a file.
        labels: int64 ``[N]``; -1 where a label is withheld.
        rows: int64 ``[N]``, positions in ``stored``; None where the examples are all of it.

    Raises:
        ValueError: a tensor has another type or shape.
    """

    stored: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor | None = None

    def __post_init__(self) -> None:
        kind_of(self.stored)
        expected = self.stored.shape[:1] if self.rows is None else self.rows.shape
        if self.labels.dtype != torch.int64 or self.labels.shape != expected:
            raise ValueError(
                f"labels of {expected[0]} examples must be int64 [N], not {self.labels.dtype} "
                f"{list(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def kind(self) -> Kind:
        """What an example is."""
        return kind_of(self.stored)

    @property
    def images(self) -> torch.Tensor:
        """All examples ``[N, ...]``; those of a view are copied at each call."""
        return self.stored if self.rows is None else self.stored[self.rows]

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, C, H, W)`` of images, ``(N, ...)`` of other examples."""
        return len(self), *self.stored.shape[1:]

    def pick(self, chosen: torch.Tensor | slice) -> torch.Tensor:
        """Return the examples at positions ``[B]``, ``[B, ...]``."""
        return self.stored[chosen] if self.rows is None else self.stored[self.rows[chosen]]

    def take(self, indices: np.ndarray | torch.Tensor | Sequence[int]) -> Images:
        """Return the examples at ``indices`` ``[M]``, in that order: copied, or as a view."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        if self.stored.nbytes <= COPIED_BYTES:
            return Images(self.pick(chosen), self.labels[chosen])
        rows = chosen if self.rows is None else self.rows[chosen]
        return Images(self.stored, self.labels[chosen], rows)

    def blocks(self, size: int) -> Iterator[torch.Tensor]:
        """Yield the examples in order, ``[B, ...]``, at most ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.pick(slice(start, start + size))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of type (but for images), shape, values and labels, in hexadecimal."""
        dtype = "" if self.kind == "image" else _name_of(self.stored.dtype)
        digest = hashlib.sha256(f"{dtype}{self.shape}".encode())
        _hash_pixels(digest, self)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()


def content_hash(images: torch.Tensor | Images) -> str:
    """Return the SHA-256 of a transfer set's examples ``[N, ...]``, in hexadecimal.

    Hashed are, one after the other without a separator, in UTF-8 the name of the type and the shape
    as Python writes a tuple (for 300 greyscale images of 8 x 8 pixels ``uint8(300, 1, 8, 8)``, for
    a table of 20 columns ``float32(300, 20)``), and the raw bytes of the values in C order: images,
    channels, rows, columns. Labels are not part of it.

    Raises:
        ValueError: the examples are of no kind that :func:`kind_of` knows.
    """
    stored = images if isinstance(images, torch.Tensor) else images.stored
    kind_of(stored)
    digest = hashlib.sha256(f"{_name_of(stored.dtype)}{tuple(images.shape)}".encode())
    _hash_pixels(digest, images)
    return digest.hexdigest()


def image_hashes(images: Images) -> Iterator[bytes]:
    """Yield a hash of the pixels of every image, in order: equal for equal images of one shape."""
    for block in images.blocks(_RESIZED_AT_ONCE):
        for image in block.contiguous().numpy():
            yield hashlib.blake2b(image.data, digest_size=16).digest()


def _hash_pixels(digest: hashlib._Hash, images: torch.Tensor | Images) -> None:
    """Hash values in C order; of a view a part at a time."""
    if isinstance(images, Images) and images.rows is not None:
        size = max(1, _HASHED_AT_ONCE // max(1, images.stored[:1].nbytes))
        for block in images.blocks(size):
            digest.update(block.contiguous().cpu().numpy().data)
        return
    whole = images.stored if isinstance(images, Images) else images
    digest.update(whole.contiguous().cpu().numpy().data)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def as_inputs(examples: torch.Tensor) -> torch.Tensor:
    """Return examples ``[N, ...]`` as models take them: pixels in [0, 1], all else as it is."""
    return as_float(examples) if examples.dtype == torch.uint8 else examples


def as_float(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 images ``[N, C, H, W]`` as float32 of the same shape, in [0, 1]."""
    return images.to(torch.float32, copy=True).div_(255)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Bring the shorter side of uint8 images ``[N, C, H, W]`` to ``size`` and crop the longer.

    The crop, at the centre, comes first, which frames the same square and keeps the memory of long,
    thin images in bounds. Bilinear with antialiasing, rounded to the nearest value.
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

    Images are uint8 ``[N, C, H, W]``, before and after.

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

    Mostly a conversion is the reason: values from 0 to 1 cut to whole numbers, or class numbers and
    digits of 4 bits in place of grey levels. Images are uint8 ``[N, C, H, W]``, at least one.
    """
    step = max(1, len(images) // _SAMPLED)
    if not _has_few(count_values(images[::step])):
        return None
    counts = count_values(images)
    if not _has_few(counts):
        return None
    values = counts.nonzero()[:, 0]
    return (
        f"its pixels have only {len(values)} distinct values, from {int(values[0])} to "
        f"{int(values[-1])}, where 0 is black and 255 is white; check how they were scaled"
    )


def count_values(images: torch.Tensor) -> torch.Tensor:
    """Return how many pixels have each value, int64 ``[256]``."""
    counts = torch.zeros(256, dtype=torch.int64)
    for chunk in torch.split(images, _RESIZED_AT_ONCE):
        counts += torch.bincount(chunk.reshape(-1), minlength=256)
    return counts


def _has_few(counts: torch.Tensor) -> bool:
    values = counts.nonzero()[:, 0]
    return len(values) <= _FEW_VALUES or int(values[-1] - values[0]) < _NARROW_RANGE
