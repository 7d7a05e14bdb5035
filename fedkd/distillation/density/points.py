"""Points of a basis: bounds on their norms, and pooled pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from fedkd.data.images import as_float

REACH = 4.0
"""Largest norm of a deployed silo's example in a whitened basis, in square roots of dimensions."""


def clip_points(points: Tensor) -> Tensor:
    """Scale whitened points ``[N, d]`` down to a norm of at most ``REACH * sqrt(d)``.

    The mean squared norm of the transfer examples is d. So no single example moves a sum by more.
    """
    return clip(points, REACH * math.sqrt(points.shape[1]))


def clip(points: Tensor, most: float) -> Tensor:
    """Scale points ``[N, d]`` down to a norm of at most ``most``."""
    scale: Tensor = most / torch.linalg.vector_norm(points, dim=1, keepdim=True).clamp_min(most)
    return points * scale


POOLED_AT_ONCE = 256
"""Examples that are floats at a time while they are pooled, each by itself."""


def pool(images: Tensor, side: int) -> Tensor:
    """Area-pool to ``side`` and flatten, float64 ``[N, C * side * side]``."""
    pooled = [
        functional.adaptive_avg_pool2d(as_float(some), side)
        for some in torch.split(images, POOLED_AT_ONCE)
    ]
    return torch.cat(pooled).flatten(1).double()
