"""The density of each transfer example under each silo's data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd.config import Consolidation
from fedkd.distillation.augmentation import MixedInputs
from fedkd.distillation.density.basis import PROJECTION_BATCH, Basis
from fedkd.distillation.density.estimators import background_log_density
from fedkd.distillation.density.moments import pool_moments
from fedkd.distillation.teachers import Teachers


@dataclass(frozen=True)
class Densities:
    """Log-densities of N examples under the data of M silos, in nats.

    Attributes:
        each: log p_m(x_n), float64 ``[N]``, or joint with the class, ``[N, K]``; None for a silo
            without densities.
        background: log N(x_n; 0, I), float64 ``[N]``.
    """

    each: tuple[Tensor | None, ...]
    background: Tensor

    @property
    def silos(self) -> list[int]:
        """Indices of the silos with densities."""
        return [m for m, density in enumerate(self.each) if density is not None]

    def marginal(self) -> Tensor:
        """Return log p_m(x_n), ``[M, N]``; NaN for a silo without densities."""
        unknown = torch.full_like(self.background, float("nan"))
        return torch.stack([unknown if d is None else _marginal(d) for d in self.each])

    def joint(self) -> Tensor:
        """Return log p_m(x_n, k) of the silos with densities, ``[M', N, K]``."""
        return torch.stack([density for density in self.each if density is not None])


def compute_densities(
    teachers: Teachers,
    settings: Consolidation,
    basis: Basis,
    images: Tensor,
    mixed_inputs: MixedInputs | None = None,
) -> Densities:
    """Return the densities of transfer examples ``[N, ...]``, or of mixed inputs made from them.

    Pooled densities can be computed for any example. Other densities are known for the transfer
    examples alone; the log-density of a mixed input is interpolated.
    """
    if settings.uses_moments:
        return _pooled(teachers, basis, images if mixed_inputs is None else mixed_inputs.images)
    densities = [teacher.log_density for teacher in teachers.members]
    background = background_log_density(basis.project(images))
    if mixed_inputs is not None:
        densities = [
            None if density is None else mixed_inputs.interpolate(density) for density in densities
        ]
        background = mixed_inputs.interpolate(background)
    return Densities(tuple(densities), background)


def _pooled(teachers: Teachers, basis: Basis, images: Tensor) -> Densities:
    discriminant = pool_moments([teacher.moments for teacher in teachers.members])
    parts_of_batches: list[list[Tensor | None]] = []
    backgrounds = []
    for batch in torch.split(images, PROJECTION_BATCH):
        points = basis.project(batch)
        backgrounds.append(background_log_density(points))
        if discriminant is not None:
            parts_of_batches.append(discriminant.log_densities(points))
    each = [
        torch.cat([part for part in parts_of_silo if part is not None])
        if parts_of_silo[0] is not None
        else None
        for parts_of_silo in zip(*parts_of_batches, strict=True)
    ] or [None] * len(teachers)
    return Densities(tuple(each), torch.cat(backgrounds))


def _marginal(density: Tensor) -> Tensor:
    return density if density.dim() == 1 else density.logsumexp(1)
