"""How likely an image is under a silo's own data, without sharing that data.

Silos and server agree on a basis: the transfer images, or what filters or a model that all hold
see of them, whitened. Each silo fits a density to its own images in that basis and tells its
logarithm at every transfer image.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedkd.data.images import as_float
from fedkd.distillation.density.filters import FILTERS, FilterBank, learn_filters
from fedkd.registry import LEAST_TRANSFER_IMAGES
from fedkd.training.compute import Compute
from fedkd.training.features import penultimate_features

LEAST_EIGENVALUE = 1e-3
"""Of a component, as a part of the largest."""
ROUNDING = 1e-6
"""The same where the basis is fine: smaller ones are made by rounding alone."""
LARGEST_SIDE = 32
AT_ONCE = 1024
"""Images projected at a time where there may be many: all would not fit into memory."""


@dataclass(frozen=True)
class Basis(ABC):
    """Whitened principal components of what is seen of the transfer images.

    Attributes:
        mean: float32 ``[D]``.
        components: float32 ``[d, D]``, rows divided by their standard deviation.
    """

    mean: Tensor
    components: Tensor

    def project(self, images: Tensor) -> Tensor:
        """Map uint8 images ``[N, C, H, W]`` to float64 ``[N, d]``."""
        return (self.see(images) - self.mean.double()) @ self.components.double().T

    @abstractmethod
    def see(self, images: Tensor) -> Tensor:
        """Map uint8 images ``[N, C, H, W]`` to float64 ``[N, D]``, before whitening."""

    @property
    def reach(self) -> float:
        """No image is projected to a point of a greater norm."""
        stretch = float(torch.linalg.matrix_norm(self.components.double(), 2))
        return stretch * (self.seen_reach + float(self.mean.double().norm()))

    @property
    def seen_reach(self) -> float:
        """No image is seen as a vector of a greater norm."""
        return math.inf


@dataclass(frozen=True)
class PixelBasis(Basis):
    """Pixels of images that are area-pooled to ``side`` x ``side`` first."""

    side: int

    def see(self, images: Tensor) -> Tensor:
        """Return the pooled pixels."""
        return _pool(images, self.side)

    @property
    def seen_reach(self) -> float:
        """All pixels are white then."""
        return math.sqrt(len(self.mean))


@dataclass(frozen=True)
class PatchBasis(Basis):
    """What filters see that were learnt from patches of the transfer images."""

    filters: FilterBank

    def see(self, images: Tensor) -> Tensor:
        """Return the filters' pooled responses."""
        return self.filters.see(images).double()

    @property
    def seen_reach(self) -> float:
        """What the filters can give at most."""
        return self.filters.reach


@dataclass(frozen=True)
class FeatureBasis(Basis):
    """What goes into the last linear layer of ``model``, the same for server and silos.

    Teachers' own features would not do: densities in different spaces cannot be compared.
    """

    model: nn.Module
    compute: Compute

    def see(self, images: Tensor) -> Tensor:
        """Return the features."""
        return penultimate_features(self.model, images, compute=self.compute).double()


def make_basis(
    images: Tensor,
    *,
    dims: int,
    kind: str = "pixels",
    filters: int = FILTERS,
    fine: bool = False,
) -> Basis | None:
    """Fit a basis to uint8 transfer images ``[N, C, H, W]``, or None for fewer than 20.

    d = min(dims, N - 1, eigenvalues above 0.001 of the largest); of each component the entry
    of largest magnitude is positive, so that signs do not depend on the solver.

    Args:
        images: the transfer images.
        dims: most dimensions.
        kind: ``pixels`` or ``patches``.
        filters: of ``patches``.
        fine: keep nearly all eigenvalues, but no more than N / 2 dimensions: for silos that
            estimate their covariance together.
    """
    if len(images) < LEAST_TRANSFER_IMAGES:
        return None
    if kind == "patches":
        bank = learn_filters(images, filters)
        fitted = _fit(bank.see(images).double(), dims, fine=fine)
        return None if fitted is None else PatchBasis(*fitted, bank)
    side = min(images.shape[-1], LARGEST_SIDE)
    fitted = _fit(_pool(images, side), dims, fine=fine)
    return None if fitted is None else PixelBasis(*fitted, side)


def make_feature_basis(
    images: Tensor, model: nn.Module, *, dims: int, compute: Compute
) -> FeatureBasis | None:
    """Fit a basis to the images' features in ``model`` as :func:`make_basis` does to pixels.

    None also where the features are all alike or not finite.

    Raises:
        UserError: the model has no linear layer.
    """
    features = penultimate_features(model, images, compute=compute).double()
    if not torch.isfinite(features).all():
        return None
    fitted = _fit(features, dims)
    return None if fitted is None else FeatureBasis(*fitted, model, compute)


def _fit(points: Tensor, dims: int, *, fine: bool = False) -> tuple[Tensor, Tensor] | None:
    """Return mean ``[D]`` and whitened components ``[d, D]`` of float64 points ``[N, D]``."""
    if len(points) < LEAST_TRANSFER_IMAGES:
        return None
    mean = points.mean(0)
    _, singular, rows = torch.linalg.svd(points - mean, full_matrices=False)
    eigenvalues = singular**2 / (len(points) - 1)
    if float(eigenvalues[0]) <= 0:
        return None
    least = ROUNDING if fine else LEAST_EIGENVALUE
    kept = int((eigenvalues > least * eigenvalues[0]).sum())
    kept = min(dims, len(points) // 2 if fine else len(points) - 1, kept)
    rows = rows[:kept]
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    components = rows * largest.sign() / eigenvalues[:kept].sqrt()[:, None]
    return mean.float(), components.float()


def _pool(images: Tensor, side: int) -> Tensor:
    """Area-pool to ``side`` and flatten, float64 ``[N, C * side * side]``."""
    pooled = functional.adaptive_avg_pool2d(as_float(images), side)
    return pooled.flatten(1).double()


# A log-density for what a silo knows nothing of: finite, so that checks for NaN and Inf hold.
NOTHING_KNOWN: Final = -1e9
