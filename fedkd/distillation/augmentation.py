"""Mixed inputs: augmented transfer images on which the teachers predict, too; and mixup.

The teachers' predictions on a mixture of two images are not the mixture of their predictions. A
student that is trained on many mixtures matches their function: Beyer et al. 2106.05237. There the
teachers predict again at every step; here the mixtures are drawn once, and the teachers predict
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

SHIFT_FRACTION = 14
"""Images are shifted by at most 1/14 of their side before they are mixed."""


@dataclass(frozen=True)
class MixedInputs:
    """B mixtures of pairs of N images.

    Attributes:
        images: uint8 ``[B, C, H, W]``.
        first: index of the first image, int64 ``[B]``.
        second: index of the second image, int64 ``[B]``.
        share: of the first image in the mixture, float64 ``[B]`` in [0, 1].
    """

    images: Tensor
    first: Tensor
    second: Tensor
    share: Tensor

    def interpolate(self, values: Tensor) -> Tensor:
        """Interpolate values of the images ``[N, ...]`` to those of the mixtures ``[B, ...]``."""
        share = self.share.to(values.dtype).view(-1, *[1] * (values.dim() - 1))
        return torch.lerp(values[self.second], values[self.first], share)


def mix_images(images: Tensor, count: int, generator: torch.Generator) -> MixedInputs:
    """Mix every one of N uint8 images ``[N, C, H, W]`` with another one, ``count`` times.

    Both images are shifted randomly first. Two kinds alternate: mixup of the whole images (Zhang et
    al. 1710.09412), and CutMix, where a rectangle of the second replaces that of the first (Yun et
    al. 1905.04899). Shares are uniform on [0, 1].
    """
    mixtures = [_mix_once(images, generator, cut=index % 2 == 1) for index in range(count)]
    mixed, seconds, shares = zip(*mixtures, strict=True)
    return MixedInputs(
        torch.cat(mixed),
        torch.arange(len(images)).repeat(count),
        torch.cat(seconds),
        torch.cat(shares).double(),
    )


def shift_images(images: Tensor, count: int, generator: torch.Generator) -> MixedInputs:
    """Return N uint8 images ``[N, C, H, W]``, each shifted ``count`` times and not mixed."""
    rows = torch.arange(len(images)).repeat(count)
    shifted = torch.cat([_shift(images, generator) for _ in range(count)])
    return MixedInputs(shifted, rows, rows, torch.ones(len(rows), dtype=torch.float64))


def _mix_once(
    images: Tensor, generator: torch.Generator, *, cut: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mixtures ``[N, C, H, W]``, indices of the second images, and shares of the first."""
    shifted = _shift(images, generator)
    order = torch.randperm(len(images), generator=generator)
    share = torch.rand(len(images), generator=generator)
    if not cut:
        weight = share[:, None, None, None]
        mixed = weight * shifted.float() + (1 - weight) * shifted[order].float()
        return mixed.round().to(torch.uint8), order, share
    hidden = _rectangles(1 - share, images.shape[2], images.shape[3], generator)
    share = 1 - hidden.float().mean((1, 2))
    return torch.where(hidden[:, None], shifted[order], shifted), order, share


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by whole pixels; its border is replicated."""
    height, width = images.shape[2:]
    limit = height // SHIFT_FRACTION, width // SHIFT_FRACTION
    if limit == (0, 0):
        return images
    padded = functional.pad(
        images.float(), (limit[1], limit[1], limit[0], limit[0]), mode="replicate"
    )
    down = torch.randint(0, 2 * limit[0] + 1, (len(images),), generator=generator)
    right = torch.randint(0, 2 * limit[1] + 1, (len(images),), generator=generator)
    rows = down[:, None] + torch.arange(height)
    columns = right[:, None] + torch.arange(width)
    image_index = torch.arange(len(images))[:, None, None]
    # Advanced indices around a slice move the channels to the end.
    shifted: Tensor = padded[image_index, :, rows[:, :, None], columns[:, None, :]]
    return shifted.permute(0, 3, 1, 2).to(torch.uint8).contiguous()


def _rectangles(part: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return masks ``[N, H, W]`` of random rectangles; each covers about ``part`` of an image."""
    centres = torch.rand(2, len(part), generator=generator)
    inside: list[Tensor] = []
    for position, length in zip(centres, (height, width), strict=True):
        half = part.sqrt() * length / 2
        centre = position * length
        pixels = torch.arange(length) + 0.5
        inside.append((pixels - centre[:, None]).abs() < half[:, None])
    rows, columns = inside
    return rows[:, :, None] & columns[:, None, :]


class Mixup:
    """Zhang et al. 1710.09412 with alpha 1: the interpolation weight is uniform on [0, 1].

    The teachers predict on the transfer examples once; their targets are interpolated linearly.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return float tensors ``[B, ...]``, all interpolated by one weight and permutation."""
        share = float(torch.rand((), generator=self._generator))
        order = torch.randperm(len(tensors[0]), generator=self._generator)
        return [torch.lerp(t[order.to(t.device)], t, share) for t in tensors]
