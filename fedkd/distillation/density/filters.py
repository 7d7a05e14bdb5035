"""Filters learnt from unlabelled image patches, and the features they give.

Coates & Ng, "Learning Feature Representations with K-means" (2012): whitened patches, spherical
k-means, soft thresholds, pooling. Distances between such features separate classes better than
distances between pixels, and no model of the silos is needed.
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
"""Images per batch, so that their maps stay in the processor's caches."""


@dataclass(frozen=True)
class FilterBank:
    """K filters of p x p pixels, applied to patches of zero mean and unit variance.

    Attributes:
        kernels: float32 ``[K, C, p, p]``.
        offset: float32 ``[K]``, added to the responses.
    """

    kernels: Tensor
    offset: Tensor

    def __post_init__(self) -> None:
        """Check the shapes; filters may come over the network."""
        square = self.kernels.dim() == 4 and self.kernels.shape[2] == self.kernels.shape[3]
        if not square or self.offset.shape != self.kernels.shape[:1]:
            raise ValueError(
                f"filters {list(self.kernels.shape)} with an offset {list(self.offset.shape)} are "
                "not valid: [K, C, p, p] and [K] are expected"
            )

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Map uint8 images ``[N, C, H, W]`` to float32 features ``[N, 2 * K * 9]``."""
        return torch.cat(
            [
                see(as_float(batch), self.kernels, self.offset)
                for batch in torch.split(images, _AT_ONCE)
            ]
        )

    @property
    def max_norm(self) -> float:
        """Upper bound on the norm of features; that of a patch is at most sqrt(C * p * p - 1)."""
        size = self.kernels[0].numel()
        most = self.kernels.flatten(1).norm(dim=1) * math.sqrt(size - 1) + self.offset.abs()
        return math.sqrt(2 * POOLED_SIDE**2 * float(most.double().sum()))


def learn_filters(images: Tensor, count: int = FILTERS) -> FilterBank:
    """Learn filters from uint8 images ``[N, C, H, W]``, deterministically.

    At most about 100,000 patches and the initial filters are drawn with a fixed seed.
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
    """Draw patches ``[n, C * side * side]`` at random places, the same number from every image."""
    height, width = images.shape[2:]
    rows, columns = height - side + 1, width - side + 1
    per_image = min(rows * columns, math.ceil(_SAMPLED / len(images)))
    patches = []
    for image in as_float(images):
        places = torch.randperm(rows * columns, generator=generator)[:per_image]
        windows = image.unfold(1, side, 1).unfold(2, side, 1).permute(1, 2, 0, 3, 4)
        patches.append(windows[places // columns, places % columns].reshape(per_image, -1))
    return torch.cat(patches)


def _spherical_k_means(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return K unit vectors ``[K, D]``; a point belongs to the largest absolute dot product."""
    centres = functional.normalize(torch.randn(count, points.shape[1], generator=generator))
    for _ in range(_ROUNDS):
        products = points @ centres.T
        nearest = products.abs().argmax(1, keepdim=True)
        # Added to the previous centres, as the authors do, so that no cluster is ever empty.
        codes = torch.zeros_like(products).scatter_(1, nearest, products.gather(1, nearest))
        centres = functional.normalize(codes.T @ points + centres)
    return centres
