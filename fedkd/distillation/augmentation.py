"""MixedInputs of transfer images, which teachers judge as they do the images themselves.

What teachers say between two images is not the line between what they say of either, and a
student that sees many blends learns their function: function matching, Beyer et al. 2106.05237.
There teachers predict anew at every step; here so many blends are drawn once, so that teachers
predict once, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

SHIFT = 14
"""Images move by at most this part of their side, a pixel in 14, before they are blended."""


@dataclass(frozen=True)
class MixedInputs:
    """B blends of N images.

    Attributes:
        images: uint8 ``[B, C, H, W]``.
        first: which image is blended, int64 ``[B]``.
        second: with which.
        share: of the first in the blend, float64 ``[B]`` in [0, 1].
    """

    images: Tensor
    first: Tensor
    second: Tensor
    share: Tensor

    def interpolate(self, values: Tensor) -> Tensor:
        """Map what is known of the images, ``[N, ...]``, to the blends, in their shares."""
        share = self.share.to(values.dtype).view(-1, *[1] * (values.dim() - 1))
        return torch.lerp(values[self.second], values[self.first], share)


def blend(images: Tensor, count: int, generator: torch.Generator) -> MixedInputs:
    """Blend every one of N uint8 images ``[N, C, H, W]`` with another, ``count`` times.

    Both have moved a little before. By turns the whole images are mixed (mixup, Zhang et al.
    1710.09412), or a rectangle of the first gives way to the second (CutMix, Yun et al.
    1905.04899); shares are uniform on [0, 1].
    """
    found = [_blend_once(images, generator, cut=turn % 2 == 1) for turn in range(count)]
    pictures, seconds, shares = zip(*found, strict=True)
    return MixedInputs(
        torch.cat(pictures),
        torch.arange(len(images)).repeat(count),
        torch.cat(seconds),
        torch.cat(shares).double(),
    )


def move(images: Tensor, count: int, generator: torch.Generator) -> MixedInputs:
    """Return N uint8 images ``[N, C, H, W]``, each moved ``count`` times and blended with none."""
    rows = torch.arange(len(images)).repeat(count)
    moved = torch.cat([_move(images, generator) for _ in range(count)])
    return MixedInputs(moved, rows, rows, torch.ones(len(rows), dtype=torch.float64))


def _blend_once(
    images: Tensor, generator: torch.Generator, *, cut: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return blends ``[N, C, H, W]``, with which image, and the shares of the first."""
    moved = _move(images, generator)
    order = torch.randperm(len(images), generator=generator)
    share = torch.rand(len(images), generator=generator)
    if not cut:
        weight = share[:, None, None, None]
        mixed = weight * moved.float() + (1 - weight) * moved[order].float()
        return mixed.round().to(torch.uint8), order, share
    hidden = _rectangles(1 - share, images.shape[2], images.shape[3], generator)
    share = 1 - hidden.float().mean((1, 2))
    return torch.where(hidden[:, None], moved[order], moved), order, share


def _move(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by whole pixels, its border repeated."""
    height, width = images.shape[2:]
    by = height // SHIFT, width // SHIFT
    if by == (0, 0):
        return images
    padded = functional.pad(images.float(), (by[1], by[1], by[0], by[0]), mode="replicate")
    down = torch.randint(0, 2 * by[0] + 1, (len(images),), generator=generator)
    right = torch.randint(0, 2 * by[1] + 1, (len(images),), generator=generator)
    rows = down[:, None] + torch.arange(height)
    columns = right[:, None] + torch.arange(width)
    each = torch.arange(len(images))[:, None, None]
    # Indices around a slice put the channels last.
    moved: Tensor = padded[each, :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).to(torch.uint8).contiguous()


def _rectangles(part: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return masks ``[N, H, W]`` of rectangles that cover about ``part`` of an image each."""
    middle = torch.rand(2, len(part), generator=generator)
    inside: list[Tensor] = []
    for place, length in zip(middle, (height, width), strict=True):
        half = part.sqrt() * length / 2
        centre = place * length
        pixels = torch.arange(length) + 0.5
        inside.append((pixels - centre[:, None]).abs() < half[:, None])
    rows, columns = inside
    return rows[:, :, None] & columns[:, None, :]
