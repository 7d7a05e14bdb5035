"""Gaussians whose one covariance all silos estimate together, from sums over their images.

Fisher's discriminant needs no image, only numbers, means and second moments, and those of a
federation are sums of its silos'. However the images are shared out, all silos together know
what one place would: the analytic learning of He et al. 2405.16240 and Fani et al. 2406.01116,
here with a class of its own for every silo, so that it also tells whose data an image is like.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd.data.images import Images
from fedkd.distillation.density.basis import AT_ONCE, NOTHING_KNOWN, Basis
from fedkd.distillation.density.estimators import LEAST_SHRINKAGE, LEAST_SILO_IMAGES


@dataclass(frozen=True)
class Moments:
    """What a silo tells of its images in a basis of d dimensions, for K classes.

    Attributes:
        counts: images of each class that the moments are of, int64 ``[K]``.
        means: of each class, fp32 ``[K, d]``; zeros for a class of none.
        second: mean of x x^T over those images, fp32 ``[d, d]``.
    """

    counts: Tensor
    means: Tensor
    second: Tensor

    @property
    def within(self) -> Tensor:
        """Mean over the images of (x - mu)(x - mu)^T, mu the image's class mean, ``[d, d]``."""
        share = self.counts.double() / self.counts.sum()
        means = self.means.double()
        return self.second.double() - (means * share[:, None]).T @ means


def moments_of(
    data: Images, basis: Basis, *, num_classes: int, least: int = LEAST_SILO_IMAGES
) -> Moments | None:
    """Return the moments of a silo's images, or None if there is too little to tell.

    Classes of fewer than ``least`` images are left out: a mean of one image is that image.
    """
    counts = torch.bincount(data.labels, minlength=num_classes)
    counts = torch.where(counts >= least, counts, 0)
    kept = counts[data.labels] > 0
    if not bool(kept.any()):
        return None
    dims = len(basis.components)
    sums = torch.zeros(num_classes, dims, dtype=torch.float64)
    second = torch.zeros(dims, dims, dtype=torch.float64)
    for images, labels in zip(
        torch.split(data.images[kept], AT_ONCE),
        torch.split(data.labels[kept], AT_ONCE),
        strict=True,
    ):
        points = basis.project(images)
        sums.index_add_(0, labels, points)
        second += points.T @ points
    means = sums / counts.clamp_min(1)[:, None]
    return Moments(counts, means.float(), (second / counts.sum()).float())


@dataclass(frozen=True)
class Discriminant:
    """N(x; mu_mk, Sigma) of every silo m and class k.

    Attributes:
        factor: Cholesky factor of Sigma, float64 ``[d, d]``.
        means: float64 ``[G, d]`` of the G pairs of silo and class that have images.
        groups: which silo and class those are, int64 ``[G, 2]``.
        log_prior: log of the class's share of its silo's images, ``[G]``.
        shape: M silos and K classes.
    """

    factor: Tensor
    means: Tensor
    groups: Tensor
    log_prior: Tensor
    shape: tuple[int, int]

    def log_densities(self, points: Tensor) -> list[Tensor | None]:
        """Return each silo's joint log p(x_n, k) in nats, float64 ``[N, K]``.

        Classes that the silo has none of have ``NOTHING_KNOWN``; None stands for a silo that
        told nothing.

        Args:
            points: float64 ``[N, d]`` in the basis of the moments.
        """
        silos, classes = self.shape
        dims = len(self.factor)
        solved = torch.linalg.solve_triangular(self.factor, points.T, upper=False)
        centres = torch.linalg.solve_triangular(self.factor, self.means.T, upper=False)
        log_det = 2 * float(self.factor.diagonal().log().sum())
        distances = (solved**2).sum(0)[:, None] + (centres**2).sum(0) - 2 * solved.T @ centres
        found = self.log_prior - 0.5 * (distances + log_det + dims * math.log(2 * math.pi))
        joint = torch.full((silos, classes, len(points)), NOTHING_KNOWN, dtype=torch.float64)
        joint[self.groups[:, 0], self.groups[:, 1]] = found.T
        told = set(self.groups[:, 0].tolist())
        return [joint[m].T.contiguous() if m in told else None for m in range(silos)]


def common_factor(told: Sequence[Moments]) -> Tensor:
    """Return the Cholesky factor of the covariance that at least one silo's moments give.

    Sigma = (1-l) S + l I with S the covariance within pairs of silo and class, l = max(0.1,
    d / (d + n - G)) for n images and G pairs, as a silo's own Gaussians have it.
    """
    dims = told[0].means.shape[1]
    scatter = torch.zeros(dims, dims, dtype=torch.float64)
    images = groups = 0
    for moments in told:
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


def pool_moments(told: Sequence[Moments | None]) -> Discriminant | None:
    """Return every silo's Gaussians about their common covariance; None if nobody told any."""
    known = [(m, moments) for m, moments in enumerate(told) if moments is not None]
    if not known:
        return None
    groups, means, priors = [], [], []
    for m, moments in known:
        size = int(moments.counts.sum())
        for k in torch.nonzero(moments.counts).flatten().tolist():
            groups.append((m, k))
            means.append(moments.means[k].double())
            priors.append(math.log(int(moments.counts[k]) / size))
    return Discriminant(
        common_factor([moments for _, moments in known]),
        torch.stack(means),
        torch.tensor(groups),
        torch.tensor(priors, dtype=torch.float64),
        (len(told), len(known[0][1].counts)),
    )


def merge_moments(told: Sequence[Moments | None]) -> Moments | None:
    """Return the moments of all silos' images together; None if nobody told any."""
    known = [moments for moments in told if moments is not None]
    if not known:
        return None
    counts = torch.stack([moments.counts for moments in known])
    means = torch.stack([moments.means.double() for moments in known])
    second = torch.stack([moments.second.double() for moments in known])
    images = counts.sum(1).double()
    of_class = counts.sum(0)
    merged = (counts[:, :, None] * means).sum(0) / of_class.clamp_min(1)[:, None]
    within = (images[:, None, None] * second).sum(0) / images.sum()
    return Moments(of_class, merged.float(), within.float())


def each_left_out(told: Sequence[Moments]) -> Iterator[Moments]:
    """Yield for each of at least two silos the moments of all others' images together.

    From the sums of all, less its own: no more work for a hundred silos than a hundred times that
    for one.
    """
    counts = torch.zeros_like(told[0].counts)
    sums = torch.zeros_like(told[0].means, dtype=torch.float64)
    second = torch.zeros_like(told[0].second, dtype=torch.float64)
    for moments in told:
        counts += moments.counts
        sums += _of_class(moments)
        second += _of_all(moments)
    for moments in told:
        left = counts - moments.counts
        means = (sums - _of_class(moments)) / left.clamp_min(1)[:, None]
        means[left == 0] = 0  # and not what rounding has left
        rest = (second - _of_all(moments)) / left.sum()
        yield Moments(left, means.float(), rest.float())


def _of_class(moments: Moments) -> Tensor:
    """Return the sum of each class's images, float64 ``[K, d]``."""
    return moments.counts[:, None] * moments.means.double()


def _of_all(moments: Moments) -> Tensor:
    """Return the sum of x x^T over all images, float64 ``[d, d]``."""
    return moments.counts.sum() * moments.second.double()
