"""MixedInputs of a batch with itself in another order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Mixup:
    """Zhang et al. 1710.09412 with alpha 1: the share of either image is uniform on [0, 1].

    A transfer set is small, and between its images the teachers' targets are taken as linear:
    teachers predict once.

    Args:
        generator: of the shares and orders, one of each a batch.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Blend float tensors ``[B, ...]``, all by one share and one order."""
        share = float(torch.rand((), generator=self._generator))
        order = torch.randperm(len(tensors[0]), generator=self._generator)
        return [torch.lerp(t[order.to(t.device)], t, share) for t in tensors]
