"""Filters learnt from patches of images without labels, and what images look like through them.

Coates & Ng, "Learning Feature Representations with K-means" (2012): whitened patches, spherical
k-means, soft thresholds, pooling; then square roots, which keep few strong responses from hiding
the many weak ones (Perronnin et al., "Improving the Fisher Kernel", 2010). Distances between such
features tell classes apart better than those between pixels, and no model of the silos is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedkd.data.images import as_float

FILTERS = 100
POOLED_SIDE = 3
_SAMPLED = 100_000
_ROUNDS = 15
_THRESHOLD = 0.25
_NORMALISING = 0.01
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

    def see(self, images: Tensor) -> Tensor:
        """Map uint8 images ``[N, C, H, W]`` to float32 features ``[N, 2 * K * 9]``."""
        return torch.cat([self._see(as_float(batch)) for batch in torch.split(images, _AT_ONCE)])

    @torch.no_grad()
    def _see(self, images: Tensor) -> Tensor:
        size = self.kernels[0].numel()
        mean = self._window_mean(images)
        variance = (self._window_mean(images**2) - mean**2).clamp_min(0) * size / (size - 1)
        # Linear, so that no patch need be cut out: each is normalised after the convolution. In
        # place, as the maps are most of the work: memory, not arithmetic, is what they cost.
        response = functional.conv2d(images, self.kernels)
        response -= mean * self.kernels.sum((1, 2, 3))[:, None, None]
        response /= (variance + _NORMALISING).sqrt()
        response += self.offset[:, None, None]
        opposite = (-response).sub_(_THRESHOLD).relu_()
        response.sub_(_THRESHOLD).relu_()
        pooling = _pooling(response.shape[2], response.shape[3])
        pooled = [maps.flatten(2) @ pooling for maps in (response, opposite)]
        features: Tensor = torch.cat(pooled, dim=1).flatten(1).sqrt_()
        return features

    @property
    def reach(self) -> float:
        """No image has features of a greater norm: no patch has one above sqrt(C * p * p - 1)."""
        size = self.kernels[0].numel()
        most = self.kernels.flatten(1).norm(dim=1) * math.sqrt(size - 1) + self.offset.abs()
        return math.sqrt(2 * POOLED_SIDE**2 * float(most.double().sum()))

    def _window_mean(self, images: Tensor) -> Tensor:
        pooled = functional.avg_pool2d(images, self.kernels.shape[-1], stride=1)
        return pooled.mean(1, keepdim=True)


def _pooling(height: int, width: int) -> Tensor:
    """Return the matrix ``[height * width, 9]`` of adaptive average pooling, the faster as such."""
    down, right = (
        functional.adaptive_avg_pool1d(torch.eye(side), POOLED_SIDE) for side in (height, width)
    )
    return torch.kron(down.contiguous(), right.contiguous())


def learn_filters(images: Tensor, count: int = FILTERS) -> FilterBank:
    """Learn filters from uint8 images ``[N, C, H, W]``: the same images give the same filters.

    Of all their patches, of a quarter of the image's side but 3 to 6 pixels, at most 100,000 are
    drawn, by a fixed seed, as the first filters are.
    """
    generator = torch.Generator().manual_seed(0)
    channels, side = images.shape[1], max(3, min(6, images.shape[-1] // 4))
    patches = _draw_patches(images, side, generator)
    patches = patches - patches.mean(1, keepdim=True)
    patches = patches / (patches.var(1, keepdim=True) + _NORMALISING).sqrt()
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
    whitening = vectors @ torch.diag((values.clamp_min(0) + _WHITENING).rsqrt()) @ vectors.T
    filters = _spherical_k_means((patches - mean) @ whitening, count, generator) @ whitening
    return FilterBank(
        filters.reshape(-1, channels, side, side).contiguous(), (-filters @ mean).contiguous()
    )


def _draw_patches(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Cut out patches ``[n, C * side * side]``, as many of every image, at random places."""
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
