"""Gaussians whose one covariance all silos estimate together, from sums over their images.

Fisher's discriminant needs no image, only numbers, means and second moments, and those of a
federation are sums of its silos'. However the images are shared out, all silos together know
what one place would: the analytic learning of He et al. 2405.16240 and Fani et al. 2406.01116,
here with a class of its own for every silo, so that it also tells whose data an image is like.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd.data.images import Images
from fedkd.distillation.familiarity import LEAST_SHRINKAGE, LEAST_SILO_IMAGES, Basis
from fedkd.wire import NOTHING_KNOWN

_AT_ONCE = 1024
"""Images projected at a time: all of a large silo's would not fit into memory."""


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
        torch.split(data.images[kept], _AT_ONCE),
        torch.split(data.labels[kept], _AT_ONCE),
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


def pool_moments(told: Sequence[Moments | None]) -> Discriminant | None:
    """Estimate the common covariance from all silos' moments; None if nobody told any.

    Sigma = (1-l) S + l I with S the covariance within pairs of silo and class, l = max(0.1,
    d / (d + n - G)) for n images and G pairs, as a silo's own Gaussians have it.
    """
    known = [(m, moments) for m, moments in enumerate(told) if moments is not None]
    if not known:
        return None
    classes, dims = known[0][1].means.shape
    scatter = torch.zeros(dims, dims, dtype=torch.float64)
    groups, means, priors = [], [], []
    total = 0
    for m, moments in known:
        size = int(moments.counts.sum())
        total += size
        scatter += size * moments.within
        for k in torch.nonzero(moments.counts).flatten().tolist():
            groups.append((m, k))
            means.append(moments.means[k].double())
            priors.append(math.log(int(moments.counts[k]) / size))
    spare = max(total - len(groups), 0)
    shrinkage = max(LEAST_SHRINKAGE, dims / (dims + spare))
    covariance = (1 - shrinkage) * scatter / max(spare, 1)
    covariance.diagonal().add_(shrinkage)
    return Discriminant(
        torch.linalg.cholesky(covariance),
        torch.stack(means),
        torch.tensor(groups),
        torch.tensor(priors, dtype=torch.float64),
        (len(told), classes),
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
