"""What silos told of their images, turned into how likely each image is under each silo's data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd.config import Consolidation
from fedkd.distillation.augmentation import MixedInputs
from fedkd.distillation.density.basis import AT_ONCE, Basis
from fedkd.distillation.density.estimators import background_log_density
from fedkd.distillation.density.moments import pool_moments
from fedkd.distillation.teachers import Teachers


@dataclass(frozen=True)
class Densities:
    """Of M silos on N images, in nats.

    Attributes:
        each: log p_m(x_n), ``[N]``, or joint with the class, ``[N, K]``; None where a silo told
            nothing. Float64.
        background: log N(x_n; 0, I), float64 ``[N]``.
    """

    each: tuple[Tensor | None, ...]
    background: Tensor

    @property
    def known(self) -> list[int]:
        """Which silos told something."""
        return [m for m, density in enumerate(self.each) if density is not None]

    def marginal(self) -> Tensor:
        """Return log p_m(x_n), ``[M, N]``; NaN where a silo told nothing."""
        nothing = torch.full_like(self.background, float("nan"))
        return torch.stack([nothing if d is None else _marginal(d) for d in self.each])

    def joint(self) -> Tensor:
        """Return log p_m(x_n, k) of those that told something, ``[M', N, K]``."""
        return torch.stack([density for density in self.each if density is not None])


def find_densities(
    teachers: Teachers,
    settings: Consolidation,
    basis: Basis,
    images: Tensor,
    mixed_inputs: MixedInputs | None = None,
) -> Densities:
    """Return the densities of the transfer images, or of blends of them.

    Pooled ones are computed for any image. Others silos told of the transfer images alone: of a
    blend of two the log-density is taken to lie between.

    Args:
        teachers: what the silos told.
        settings: of the consolidation.
        basis: in which they did.
        images: the transfer images, uint8 ``[N, C, H, W]``.
        mixed_inputs: of these images.
    """
    if settings.uses_moments:
        return _pooled(teachers, basis, images if mixed_inputs is None else mixed_inputs.images)
    told = [teacher.log_density for teacher in teachers.members]
    background = background_log_density(basis.project(images))
    if mixed_inputs is not None:
        told = [None if density is None else mixed_inputs.interpolate(density) for density in told]
        background = mixed_inputs.interpolate(background)
    return Densities(tuple(told), background)


def _pooled(teachers: Teachers, basis: Basis, images: Tensor) -> Densities:
    discriminant = pool_moments([teacher.moments for teacher in teachers.members])
    found: list[list[Tensor | None]] = []
    backgrounds = []
    for batch in torch.split(images, AT_ONCE):
        points = basis.project(batch)
        backgrounds.append(background_log_density(points))
        if discriminant is not None:
            found.append(discriminant.log_densities(points))
    each = [
        torch.cat([part for part in parts if part is not None]) if parts[0] is not None else None
        for parts in zip(*found, strict=True)
    ] or [None] * len(teachers)
    return Densities(tuple(each), torch.cat(backgrounds))


def _marginal(density: Tensor) -> Tensor:
    return density if density.dim() == 1 else density.logsumexp(1)
