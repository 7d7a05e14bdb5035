"""Gaussians with one covariance, pooled over silos from the moments of their examples.

Linear discriminant analysis needs class counts, class means and second moments only, and those of a
federation are sums over its silos. The result does not depend on the partition: analytic learning,
He et al. 2405.16240 and Fani et al. 2406.01116. Here every pair of silo and class has a Gaussian of
its own, so that it also gives each silo's density.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd.data.images import Images
from fedkd.distillation.density.basis import NOTHING_KNOWN, PROJECTION_BATCH, Basis
from fedkd.distillation.density.estimators import LEAST_SHRINKAGE, LEAST_SILO_IMAGES
from fedkd.distillation.density.points import clip_points


@dataclass(frozen=True)
class Moments:
    """Moments of a silo's examples in a basis of d dimensions, for K classes.

    Attributes:
        counts: number of examples of each class, int64 ``[K]``.
        means: of each class, fp32 ``[K, d]``; zeros for a class without examples.
        second: mean of x x^T over these examples, fp32 ``[d, d]``.
    """

    counts: Tensor
    means: Tensor
    second: Tensor

    @property
    def within(self) -> Tensor:
        """Mean over the examples of (x - mu)(x - mu)^T, mu the example's class mean, ``[d, d]``."""
        share = self.counts.double() / self.counts.sum()
        means = self.means.double()
        return self.second.double() - (means * share[:, None]).T @ means


def moments_of(
    data: Images,
    basis: Basis,
    *,
    num_classes: int,
    least: int = LEAST_SILO_IMAGES,
    clipped: bool = False,
) -> Moments | None:
    """Return the moments of a silo's examples, or None if no class has enough examples.

    Classes of fewer than ``least`` examples are left out, because a mean over one example is that
    example. With ``clipped`` the influence of every example is bounded.
    """
    counts = torch.bincount(data.labels, minlength=num_classes)
    counts = torch.where(counts >= least, counts, 0)
    kept = counts[data.labels] > 0
    if not bool(kept.any()):
        return None
    dims = len(basis.components)
    sums = torch.zeros(num_classes, dims, dtype=torch.float64)
    second = torch.zeros(dims, dims, dtype=torch.float64)
    for rows in torch.split(kept.nonzero()[:, 0], PROJECTION_BATCH):
        points = basis.project(data.pick(rows))
        points = clip_points(points) if clipped else points
        sums.index_add_(0, data.labels[rows], points)
        second += points.T @ points
    means = sums / counts.clamp_min(1)[:, None]
    return Moments(counts, means.float(), (second / counts.sum()).float())


@dataclass(frozen=True)
class Discriminant:
    """N(x; mu_mk, Sigma) of every silo m and class k.

    Attributes:
        factor: Cholesky factor of Sigma, float64 ``[d, d]``.
        means: float64 ``[G, d]`` of the G pairs of silo and class that have examples.
        groups: silo and class of each pair, int64 ``[G, 2]``.
        log_prior: log of the class's share of its silo's examples, ``[G]``.
        shape: M silos and K classes.
    """

    factor: Tensor
    means: Tensor
    groups: Tensor
    log_prior: Tensor
    shape: tuple[int, int]

    def log_densities(self, points: Tensor) -> list[Tensor | None]:
        """Return each silo's joint log p(x_n, k) in nats, float64 ``[N, K]``.

        Classes without examples in the silo have ``NOTHING_KNOWN``; None is for a silo
        without moments. Points are float64 ``[N, d]`` in the basis of the moments.
        """
        silos, classes = self.shape
        dims = len(self.factor)
        solved = torch.linalg.solve_triangular(self.factor, points.T, upper=False)
        centres = torch.linalg.solve_triangular(self.factor, self.means.T, upper=False)
        log_det = 2 * float(self.factor.diagonal().log().sum())
        distances = (solved**2).sum(0)[:, None] + (centres**2).sum(0) - 2 * solved.T @ centres
        joint_of_groups = self.log_prior - 0.5 * (
            distances + log_det + dims * math.log(2 * math.pi)
        )
        joint = torch.full((silos, classes, len(points)), NOTHING_KNOWN, dtype=torch.float64)
        joint[self.groups[:, 0], self.groups[:, 1]] = joint_of_groups.T
        silos_with_moments = set(self.groups[:, 0].tolist())
        return [joint[m].T.contiguous() if m in silos_with_moments else None for m in range(silos)]


def common_factor(silo_moments: Sequence[Moments]) -> Tensor:
    """Return the Cholesky factor of the covariance pooled over at least one silo.

    Sigma = (1-l) S + l I with S the covariance within pairs of silo and class, l = max(0.1,
    d / (d + n - G)) for n examples and G pairs, as in a silo's own Gaussians.
    """
    dims = silo_moments[0].means.shape[1]
    scatter = torch.zeros(dims, dims, dtype=torch.float64)
    images = groups = 0
    for moments in silo_moments:
        size = int(moments.counts.sum())
        images += size
        groups += int((moments.counts > 0).sum())
        scatter += size * moments.within
    spare = max(images - groups, 0)
    shrinkage = max(LEAST_SHRINKAGE, dims / (dims + spare))
    covariance = (1 - shrinkage) * scatter / max(spare, 1)
    covariance.diagonal().add_(shrinkage)
    factor: Tensor = torch.linalg.cholesky(covariance)
    return factor


def pool_moments(silo_moments: Sequence[Moments | None]) -> Discriminant | None:
    """Return every silo's Gaussians with their common covariance; None without any moments."""
    with_moments = [(m, moments) for m, moments in enumerate(silo_moments) if moments is not None]
    if not with_moments:
        return None
    groups, means, priors = [], [], []
    for m, moments in with_moments:
        size = int(moments.counts.sum())
        for k in torch.nonzero(moments.counts).flatten().tolist():
            groups.append((m, k))
            means.append(moments.means[k].double())
            priors.append(math.log(int(moments.counts[k]) / size))
    return Discriminant(
        common_factor([moments for _, moments in with_moments]),
        torch.stack(means),
        torch.tensor(groups),
        torch.tensor(priors, dtype=torch.float64),
        (len(silo_moments), len(with_moments[0][1].counts)),
    )


def merge_moments(silo_moments: Sequence[Moments | None]) -> Moments | None:
    """Return the moments of all silos' examples together; None without any moments."""
    present = [moments for moments in silo_moments if moments is not None]
    if not present:
        return None
    counts = torch.stack([moments.counts for moments in present])
    means = torch.stack([moments.means.double() for moments in present])
    second = torch.stack([moments.second.double() for moments in present])
    images = counts.sum(1).double()
    of_class = counts.sum(0)
    merged = (counts[:, :, None] * means).sum(0) / of_class.clamp_min(1)[:, None]
    within = (images[:, None, None] * second).sum(0) / images.sum()
    return Moments(of_class, merged.float(), within.float())


def leave_one_out(silo_moments: Sequence[Moments]) -> Iterator[Moments]:
    """Yield for each of at least two silos the moments of all other silos' examples together.

    Each is the total minus the silo's own sums, so that the work is linear in the number of silos.
    """
    counts = torch.zeros_like(silo_moments[0].counts)
    sums = torch.zeros_like(silo_moments[0].means, dtype=torch.float64)
    second = torch.zeros_like(silo_moments[0].second, dtype=torch.float64)
    for moments in silo_moments:
        counts += moments.counts
        sums += _class_sums(moments)
        second += _second_sum(moments)
    for moments in silo_moments:
        left = counts - moments.counts
        means = (sums - _class_sums(moments)) / left.clamp_min(1)[:, None]
        means[left == 0] = 0  # without rounding errors
        rest = (second - _second_sum(moments)) / left.sum()
        yield Moments(left, means.float(), rest.float())


def _class_sums(moments: Moments) -> Tensor:
    """Return the sum of each class's examples, float64 ``[K, d]``."""
    return moments.counts[:, None] * moments.means.double()


def _second_sum(moments: Moments) -> Tensor:
    """Return the sum of x x^T over all examples, float64 ``[d, d]``."""
    return moments.counts.sum() * moments.second.double()
