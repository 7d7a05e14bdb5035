"""Filters learnt from patches of images without labels, and what images look like through them.

Coates & Ng, "Learning Feature Representations with K-means" (2012): whitened patches, spherical
k-means, soft thresholds, pooling. Distances between such features tell classes apart better than
those between pixels, and no model of the silos is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedkd.data.images import as_float
from fedkd.models.patch_features import NORMALISING, POOLED_SIDE, patch_side, see

FILTERS = 100
_SAMPLED = 100_000
_ROUNDS = 15
_WHITENING = 0.1
_AT_ONCE = 16
"""Images: their maps then stay in the processor's caches."""


@dataclass(frozen=True)
class FilterBank:
    """K filters of p x p pixels, applied to patches of zero mean and unit variance.

    Attributes:
        kernels: float32 ``[K, C, p, p]``.
        offset: float32 ``[K]``, added to what they give.
    """

    kernels: Tensor
    offset: Tensor

    def __post_init__(self) -> None:
        """Refuse what is no filter bank: it may come over the network."""
        square = self.kernels.dim() == 4 and self.kernels.shape[2] == self.kernels.shape[3]
        if not square or self.offset.shape != self.kernels.shape[:1]:
            raise ValueError(
                f"filters {list(self.kernels.shape)} with an offset {list(self.offset.shape)} "
                "are none: [K, C, p, p] and [K] are expected"
            )

    @torch.no_grad()
    def see(self, images: Tensor) -> Tensor:
        """Map uint8 images ``[N, C, H, W]`` to float32 features ``[N, 2 * K * 9]``."""
        return torch.cat(
            [
                see(as_float(batch), self.kernels, self.offset)
                for batch in torch.split(images, _AT_ONCE)
            ]
        )

    @property
    def reach(self) -> float:
        """No image has features of a greater norm: no patch has one above sqrt(C * p * p - 1)."""
        size = self.kernels[0].numel()
        most = self.kernels.flatten(1).norm(dim=1) * math.sqrt(size - 1) + self.offset.abs()
        return math.sqrt(2 * POOLED_SIDE**2 * float(most.double().sum()))


def learn_filters(images: Tensor, count: int = FILTERS) -> FilterBank:
    """Learn filters from uint8 images ``[N, C, H, W]``: the same images give the same filters.

    Of all their patches at most 100,000 are drawn, by a fixed seed, as the first filters are.
    """
    generator = torch.Generator().manual_seed(0)
    channels, side = images.shape[1], patch_side(images.shape[-1])
    patches = _draw_patches(images, side, generator)
    patches = patches - patches.mean(1, keepdim=True)
    patches = patches / (patches.var(1, keepdim=True) + NORMALISING).sqrt()
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
    whitening = vectors @ torch.diag((values.clamp_min(0) + _WHITENING).rsqrt()) @ vectors.T
    filters = _spherical_k_means((patches - mean) @ whitening, count, generator) @ whitening
    return FilterBank(
        filters.reshape(-1, channels, side, side).contiguous(), (-filters @ mean).contiguous()
    )


def _draw_patches(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Split out patches ``[n, C * side * side]``, as many of every image, at random places."""
    height, width = images.shape[2:]
    rows, columns = height - side + 1, width - side + 1
    each = min(rows * columns, math.ceil(_SAMPLED / len(images)))
    found = []
    for image in as_float(images):
        places = torch.randperm(rows * columns, generator=generator)[:each]
        windows = image.unfold(1, side, 1).unfold(2, side, 1).permute(1, 2, 0, 3, 4)
        found.append(windows[places // columns, places % columns].reshape(each, -1))
    return torch.cat(found)


def _spherical_k_means(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return K unit vectors ``[K, D]``; a point belongs to that of largest dot product, in size."""
    found = functional.normalize(torch.randn(count, points.shape[1], generator=generator))
    for _ in range(_ROUNDS):
        products = points @ found.T
        nearest = products.abs().argmax(1, keepdim=True)
        # Added to the vectors of the round before, as the authors do, so that none is ever empty.
        codes = torch.zeros_like(products).scatter_(1, nearest, products.gather(1, nearest))
        found = functional.normalize(codes.T @ points + found)
    return found
