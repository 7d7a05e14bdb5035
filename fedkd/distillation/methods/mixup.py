"""Mixup: interpolation of a batch with a permutation of itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
