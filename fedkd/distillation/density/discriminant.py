"""A student in closed form: linear discriminant analysis on features, from silo moments.

The features are responses of filters that the server learns from the transfer images, those of a
pre-trained network, or the inputs themselves. Silos share class moments of them, and the linear
layer follows from their sums. The result equals that of centralized data, however the images are
partitioned (He et al. 2405.16240; Fani et al. 2406.01116).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedkd.distillation.density.basis import BackboneBasis, Basis, InputBasis, PatchBasis
from fedkd.distillation.density.moments import Moments, common_factor, merge_moments
from fedkd.errors import FedKDError
from fedkd.models.build import Shape, build_model
from fedkd.models.partial import HEAD_KEYS
from fedkd.models.state import State
from fedkd.registry import LINEAR, PATCH_FEATURES


def lda_head_student(
    silo_moments: Sequence[Moments | None], basis: Basis | None, shape: Shape, *, scale: float
) -> State:
    """Return a student whose logits are the discriminant's over ``scale``.

    It is ``patch-features``, a pre-trained network with this head, or ``linear`` on inputs, by the
    basis. Gaussian posteriors are overconfident, hence the scale. A silo that is too small has no
    moments.

    With S the within-class covariance over all silos, mu_k and pi_k mean and share of class k:
    z_k(x) = (mu_k^T S^-1 x - mu_k^T S^-1 mu_k / 2 + log pi_k) / scale. The logit of a class without
    examples is the mean of the others less log(2 n) / scale for n examples: never the largest.

    Raises:
        FedKDError: there is no basis, or no silo has moments.
    """
    if not isinstance(basis, PatchBasis | BackboneBasis | InputBasis):
        raise FedKDError(
            "student: lda-head is a layer on features of the transfer examples, of which 20 "
            "distinct ones are needed"
        )
    merged = merge_moments(silo_moments)
    if merged is None:
        raise FedKDError(
            "student: lda-head is computed from moments of the silos' examples, and every silo is "
            "too small to share any"
        )
    weight, bias = linear_layer(merged)
    return _to_state(basis, shape, weight / scale, bias / scale)


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


def _to_state(
    basis: PatchBasis | BackboneBasis | InputBasis, shape: Shape, weight: Tensor, bias: Tensor
) -> State:
    """Return the state of the model: the layer on projected points becomes one on features."""
    of_features = weight @ basis.components.double()
    layer = (of_features.float(), (bias - of_features @ basis.mean.double()).float())
    if isinstance(basis, BackboneBasis):
        return dict(zip(HEAD_KEYS, layer, strict=True))
    if isinstance(basis, InputBasis):
        return dict(zip(build_model(LINEAR, shape, seed=0).state_dict(), layer, strict=True))
    return build_model(PATCH_FEATURES, shape, seed=0).state_dict() | {
        "0.kernels": basis.filters.kernels,
        "0.offset": basis.filters.offset,
        "1.weight": layer[0],
        "1.bias": layer[1],
    }
