"""The basis in which silos compute densities of transfer examples without sharing their data.

The server fits the basis: whitened principal components of the transfer images' pixels, of filter
responses, or of features of a model that all silos have. Each silo fits a density to its own
examples in that basis and sends its logarithm at every transfer example.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from fedkd.config import Consolidation
from fedkd.distillation.density.filters import FILTERS, FilterBank, learn_filters
from fedkd.distillation.density.points import clip, pool
from fedkd.errors import UserError
from fedkd.models.build import Shape, build_fixed_part
from fedkd.models.fixed import FixedPart
from fedkd.registry import LEAST_TRANSFER_IMAGES
from fedkd.training.compute import Compute
from fedkd.training.features import penultimate_features

LEAST_EIGENVALUE = 1e-3
"""Smallest eigenvalue of a component, as a fraction of the largest."""
ROUNDING = 1e-6
"""The same for a fine basis; smaller eigenvalues are rounding errors."""
LARGEST_SIDE = 32
_LIMIT = 2.0
"""Largest norm of features of a backbone or of inputs, in largest norms of the transfer set."""
PROJECTION_BATCH = 1024
"""Examples projected at a time, to bound memory."""


@dataclass(frozen=True)
class Basis(ABC):
    """Whitened principal components of features of the transfer examples.

    Attributes:
        mean: float32 ``[D]``.
        components: float32 ``[d, D]``, rows divided by their standard deviation.
    """

    mean: Tensor
    components: Tensor

    def project(self, images: Tensor) -> Tensor:
        """Map examples ``[N, ...]`` to float64 ``[N, d]``."""
        return (self.features(images) - self.mean.double()) @ self.components.double().T

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Return the features, float64 ``[N, D]``, of examples ``[N, ...]``."""

    @property
    def max_norm(self) -> float:
        """Upper bound on the norm of a projected example."""
        stretch = float(torch.linalg.matrix_norm(self.components.double(), 2))
        return stretch * (self.max_feature_norm + float(self.mean.double().norm()))

    @property
    def max_feature_norm(self) -> float:
        """Upper bound on the norm of an example's features."""
        return math.inf


@dataclass(frozen=True)
class PixelBasis(Basis):
    """Pixels, area-pooled to ``side`` x ``side``."""

    side: int

    def features(self, images: Tensor) -> Tensor:
        """Return the pooled pixels."""
        return pool(images, self.side)

    @property
    def max_feature_norm(self) -> float:
        """The norm of an all-white image."""
        return math.sqrt(len(self.mean))


@dataclass(frozen=True)
class LimitedBasis(Basis):
    """Features that have no bound of their own.

    Attributes:
        limit: features of a larger norm are scaled down to it, so that class sums are bounded.
    """

    limit: float

    @property
    def max_feature_norm(self) -> float:
        """The limit."""
        return self.limit


@dataclass(frozen=True)
class InputBasis(LimitedBasis):
    """Inputs as they are, such as the standardized columns of a table."""

    def features(self, images: Tensor) -> Tensor:
        """Return the inputs, float64 ``[N, D]``."""
        return clip(images.flatten(1).double(), self.limit)


@dataclass(frozen=True)
class PatchBasis(Basis):
    """Responses of filters that are learnt from patches of the transfer images."""

    filters: FilterBank

    def features(self, images: Tensor) -> Tensor:
        """Return the filters' pooled responses."""
        return self.filters.features(images).double()

    @property
    def max_feature_norm(self) -> float:
        """The largest norm of pooled filter responses."""
        return self.filters.max_norm


@dataclass(frozen=True)
class FeatureBasis(Basis):
    """Penultimate features of ``model``, which is the same for server and silos.

    The teachers' own features cannot be used: densities in different spaces are not comparable.
    """

    model: nn.Module
    compute: Compute

    def features(self, images: Tensor) -> Tensor:
        """Return the features."""
        return penultimate_features(self.model, images, compute=self.compute).double()


@dataclass(frozen=True)
class BackboneBasis(LimitedBasis):
    """Features of the part of a pre-trained network that nobody trains, which all silos have."""

    fixed: FixedPart
    compute: Compute

    def features(self, images: Tensor) -> Tensor:
        """Return the features; those of examples that were seen before come from the cache."""
        found = self.fixed.features(
            images, device=self.compute.device, precision=self.compute.precision
        ).double()
        return clip(found, self.limit)


def make_basis(
    images: Tensor, *, dims: int, kind: str = "pixels", filters: int = FILTERS, fine: bool = False
) -> Basis | None:
    """Fit a basis to transfer examples ``[N, ...]``, or None for fewer than 20.

    d = min(dims, N - 1, number of eigenvalues above 0.001 of the largest). In each component the
    entry of largest magnitude is positive, so that signs do not depend on the solver.

    Args:
        images: the transfer examples.
        dims: maximum number of dimensions.
        kind: ``pixels``, ``patches`` or, for examples other than images, ``inputs``.
        filters: number of filters for ``patches``.
        fine: keep nearly all eigenvalues, but at most N / 2 dimensions; for a covariance that is
            pooled over silos.
    """
    if len(images) < LEAST_TRANSFER_IMAGES:
        return None
    if kind == "patches":
        bank = learn_filters(images, filters)
        fitted = _fit(bank.features(images).double(), dims, fine=fine)
        return None if fitted is None else PatchBasis(*fitted, bank)
    if kind == "inputs":
        points = images.flatten(1).double()
        fitted = _fit(points, dims, fine=fine)
        limit = _LIMIT * float(points.norm(dim=1).max())
        return None if fitted is None else InputBasis(*fitted, limit)
    side = min(images.shape[-1], LARGEST_SIDE)
    fitted = _fit(pool(images, side), dims, fine=fine)
    return None if fitted is None else PixelBasis(*fitted, side)


def fit_basis(
    images: Tensor, settings: Consolidation, shape: Shape, compute: Compute
) -> Basis | None:
    """Fit the basis of pixels, patches, a backbone or inputs that a consolidation asks for.

    See :func:`make_basis` and :func:`make_backbone_basis`.
    """
    kind, filters = settings.familiarity.basis, settings.familiarity.filters
    dims, fine = settings.familiarity.effective_dims, settings.uses_moments
    if kind == "backbone":
        return make_backbone_basis(images, shape, dims=dims, compute=compute, fine=fine)
    return make_basis(images, dims=dims, kind=kind, filters=filters, fine=fine)


def make_backbone_basis(
    images: Tensor, shape: Shape, *, dims: int, compute: Compute, fine: bool = False
) -> BackboneBasis | None:
    """Fit a basis to the features of examples ``[N, ...]`` as :func:`make_basis` does.

    The limit is twice the largest norm among the examples, which honest examples hardly exceed.

    Raises:
        UserError: the study names no pre-trained weights.
    """
    fixed = build_fixed_part(shape)
    if fixed is None:
        raise UserError(
            "familiarity.basis: backbone is features of pre-trained weights; set model.weights"
        )
    if len(images) < LEAST_TRANSFER_IMAGES:
        return None
    features = fixed.features(images, device=compute.device, precision=compute.precision).double()
    limit = _LIMIT * float(features.norm(dim=1).max())
    fitted = _fit(features, dims, fine=fine) if math.isfinite(limit) else None
    return None if fitted is None else BackboneBasis(*fitted, limit, fixed, compute)


def make_feature_basis(
    images: Tensor, model: nn.Module, *, dims: int, compute: Compute
) -> FeatureBasis | None:
    """Fit a basis to the examples' features in ``model`` as :func:`make_basis` does to pixels.

    Returns None also if the features are constant or not finite.

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


# The log-density of a class without examples: finite, so that checks for NaN and Inf pass.
NOTHING_KNOWN: Final = -1e9
