"""Densities of a silo's examples in a basis: class-conditional Gaussian, or nearest neighbour."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedkd.data.images import Images
from fedkd.distillation.density.basis import NOTHING_KNOWN, Basis
from fedkd.distillation.density.points import clip_points

LEAST_SILO_IMAGES = 5

LEAST_SHRINKAGE = 0.1

LEAST_DISTANCE = 1e-3
"""Lower bound on a neighbour's distance; a transfer example that is in the silo has distance 0."""


def log_densities(
    data: Images,
    transfer: Tensor,
    basis: Basis,
    *,
    kind: str,
    neighbours: int,
    num_classes: int,
    clipped: bool = False,
) -> Tensor | None:
    """Return joint log-densities log p(x_n, y=k), float64 ``[N, C]``, or None for a tiny silo.

    Their log-sum-exp over classes is log p(x_n) of transfer example n. Classes without examples in
    the silo have ``NOTHING_KNOWN``. The kind is ``gaussian``, or ``knn`` with its number of
    neighbours; if ``clipped``, the influence of the silo's own examples is bounded.
    """
    if len(data) < LEAST_SILO_IMAGES:
        return None
    own, points = basis.project(data.images), basis.project(transfer)
    if clipped:
        own = clip_points(own)
    if kind == "gaussian":
        return gaussian_log_density(own, data.labels, points, num_classes=num_classes)
    return knn_log_density(own, data.labels, points, num_classes=num_classes, k=neighbours)


def round_as_sent(joint: Tensor, *, per_class: bool) -> Tensor:
    """Return joint log-densities ``[N, C]``, or marginals ``[N]``, as silos send them: fp32."""
    density = joint if per_class else joint.logsumexp(1)
    return density.clamp_min(NOTHING_KNOWN).float()


def gaussian_log_density(
    own: Tensor, labels: Tensor, points: Tensor, *, num_classes: int
) -> Tensor:
    """Class-conditional Gaussians with one shrunk covariance, joint ``[N, C]`` in nats.

    p(x, k) = pi_k N(x; mu_k, (1-l) S + l I), S the pooled within-class covariance, l = max(0.1,
    d / (d + n - K)) for n distinct points and K classes with examples.
    """
    dims = own.shape[1]
    present = torch.unique(labels)
    distinct = len(torch.unique(own, dim=0))
    centred = own.clone()
    joint = torch.full((len(points), num_classes), NOTHING_KNOWN, dtype=torch.float64)
    means = {int(k): own[labels == k].mean(0) for k in present}
    for k, mean in means.items():
        centred[labels == k] -= mean
    within = centred.T @ centred / max(len(own) - len(present), 1)
    shrinkage = max(LEAST_SHRINKAGE, dims / (dims + max(distinct - len(present), 0)))
    identity = torch.eye(dims, dtype=torch.float64)
    factor = torch.linalg.cholesky((1 - shrinkage) * within + shrinkage * identity)
    log_det = 2 * float(factor.diagonal().log().sum())
    for k, mean in means.items():
        solved = torch.linalg.solve_triangular(factor, (points - mean).T, upper=False)
        log_prior = math.log(int((labels == k).sum()) / len(own))
        joint[:, k] = log_prior - 0.5 * (
            (solved**2).sum(0) + log_det + dims * math.log(2 * math.pi)
        )
    return joint


def knn_log_density(
    own: Tensor, labels: Tensor, points: Tensor, *, num_classes: int, k: int
) -> Tensor:
    """Nearest-neighbour density, joint ``[N, C]`` in nats up to a constant common to all silos.

    log p(x) = -d log r_k(x) - log n, r_k the distance to the k-th nearest own point; split among
    classes in proportion to the same estimate within each class.
    """
    dims, size = own.shape[1], len(own)
    distances = torch.cdist(points, own).clamp_min(LEAST_DISTANCE)
    k_all = min(k, size)
    radius = distances.kthvalue(k_all, dim=1).values
    total = -dims * radius.log() - math.log(size) + math.log(k_all)
    joint = torch.full((len(points), num_classes), NOTHING_KNOWN, dtype=torch.float64)
    for label in torch.unique(labels):
        within = distances[:, labels == label]
        k_class = min(k, within.shape[1])
        radius = within.kthvalue(k_class, dim=1).values
        joint[:, int(label)] = -dims * radius.log() + math.log(k_class)
    return joint - joint.logsumexp(1, keepdim=True) + total[:, None]


def background_log_density(points: Tensor) -> Tensor:
    """Log N(x; 0, I) for points ``[N, d]``, float64 ``[N]`` in nats."""
    return -0.5 * ((points**2).sum(1) + points.shape[1] * math.log(2 * math.pi))


def density_bound(kind: str, dims: int) -> float:
    """Return the highest log-density that an honest silo can have, in nats.

    For ``gaussian`` -(d/2) log(2 pi l) at the smallest shrinkage; for ``knn`` the value at the
    smallest distance, with one point.
    """
    if kind == "gaussian":
        return -0.5 * dims * math.log(2 * math.pi * LEAST_SHRINKAGE)
    return -dims * math.log(LEAST_DISTANCE)
