"""Blends of a batch with itself in another order: mixup, and function matching on such blends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedkd.distillation.weightings import pool
from fedkd.study import Consolidation
from fedkd.training import Compute


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


class FunctionMatching:
    """Mixup on which the teachers predict anew: Beyer et al. 2106.05237.

    What teachers say between two images is not the line between what they say of either, and the
    student learns their function there. A step costs a prediction of every teacher more.

    Args:
        models: the M teachers, on the device of ``compute``.
        settings: temperature and pooling.
        generator: of the blends.
        compute: device and precision.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        settings: Consolidation,
        generator: torch.Generator,
        compute: Compute,
    ) -> None:
        self._models = [model.eval() for model in models]
        self._settings = settings
        self._blend = Mixup(generator)
        self._compute = compute

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Blend images and the teachers' weights ``[B, M]``, which give way to targets ``[B, K]``.

        Labels, one-hot, come third where there are any.
        """
        images, weights, *labels = self._blend(tensors)
        with torch.no_grad(), self._compute.autocast():
            logits = torch.stack([model(images).float() for model in self._models])
        settings = self._settings
        target = pool(
            logits,
            weights.T,
            temperature=settings.temperature,
            pooling=settings.pooling,
            trim=settings.trim,
        )
        return [images, target, *labels]
