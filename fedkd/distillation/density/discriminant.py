"""A student that the silos' moments give in closed form: Fisher's discriminant behind filters.

The server learns filters from the transfer images, silos tell moments of what these see, and the
linear layer that separates the classes best follows from their sums: the student of one place,
however the images are shared out (He et al. 2405.16240; Fani et al. 2406.01116).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedkd.distillation.density.basis import Basis, PatchBasis
from fedkd.distillation.density.moments import Moments, common_factor, merge_moments
from fedkd.errors import FedKDError
from fedkd.models.build import Shape, build_model
from fedkd.models.state import State
from fedkd.registry import PATCH_FEATURES


def lda_head_student(
    told: Sequence[Moments | None], basis: Basis | None, shape: Shape, *, scale: float
) -> State:
    """Return weights of ``patch-features`` whose logits are the discriminant's over ``scale``.

    With S the covariance within classes and of all silos, mu_k and pi_k the mean and the share of
    class k: z_k(x) = (mu_k^T S^-1 x - mu_k^T S^-1 mu_k / 2 + log pi_k) / scale. Of a class that no
    silo told of it is the others' mean less log(2 n) / scale for n images: never the largest.

    Args:
        told: moments in the basis, of each silo; None where it is too small to tell any.
        basis: whitened components of what 200 filters see.
        shape: what models are built for.
        scale: divides logits: a Gaussian is too sure of itself.

    Raises:
        FedKDError: there is no basis, or no silo told moments.
    """
    if not isinstance(basis, PatchBasis):
        raise FedKDError(
            "student: lda-head sees through filters learnt from transfer images, of which 20 "
            "distinct ones are needed"
        )
    merged = merge_moments(told)
    if merged is None:
        raise FedKDError(
            "student: lda-head follows from moments of the silos' images, and every silo is "
            "too small to tell any"
        )
    weight, bias = linear_layer(merged)
    return _write(basis, shape, weight / scale, bias / scale)


def linear_layer(merged: Moments) -> tuple[Tensor, Tensor]:
    """Return weight ``[K, d]`` and bias ``[K]`` of the discriminant at scale 1, float64."""
    means = merged.means.double()
    weight = torch.cholesky_solve(means.T, common_factor([merged])).T
    share = merged.counts.double() / merged.counts.sum()
    bias = share.log() - 0.5 * (weight * means).sum(1)
    known = merged.counts > 0
    weight[~known] = weight[known].mean(0)
    bias[~known] = bias[known].mean() - math.log(2 * int(merged.counts.sum()))
    return weight, bias


def _write(basis: PatchBasis, shape: Shape, weight: Tensor, bias: Tensor) -> State:
    """Write a linear layer that sees the basis' points as one that sees the filters' features."""
    of_features = weight @ basis.components.double()
    return build_model(PATCH_FEATURES, shape, seed=0).state_dict() | {
        "0.kernels": basis.filters.kernels,
        "0.offset": basis.filters.offset,
        "1.weight": of_features.float(),
        "1.bias": (bias - of_features @ basis.mean.double()).float(),
    }
