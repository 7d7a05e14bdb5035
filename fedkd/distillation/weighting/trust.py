"""Robustness against a few bad teachers: trust in each, and a cap on weights.

Under label skew most teachers are wrong on most examples, and the only correct one may be in the
minority. Trust therefore counts contradictions only by teachers whose data covers the same
examples. Densities give that coverage; without them bad and honest teachers look alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

PASSES = 20
PRIOR_SHARE = 0.1
"""Prior agreement, as a fraction of a teacher's equal share of the examples."""
TRUST_POWER = 4.0
"""Exponent of a teacher's trust when it is compared with others."""
MARGIN = 3.0
"""In nats: covered examples are e^3 times likelier under the silo's density than under N(0, I)."""
MIN_TRUST, MAX_EXCLUDED = 0.6, 0.1
"""Teachers with less trust are excluded, at most this share of all teachers."""
# All constants were chosen on digits, seeds 10 to 13, on which no claim is evaluated.


def agreement(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the share of examples on which each teacher predicts the ensemble's class, ``[M]``.

    Classes are ``[M, N]`` of the teachers and ``[N]`` of the ensemble.
    """
    return (predicted == target).double().mean(1)


def coverage(log_density: Tensor, log_background: Tensor, weights: Tensor) -> Tensor:
    """Return how well each teacher's data covers each example, float64 ``[M, N]`` in [0, 1].

    The product of two factors. Absolute: is the example likelier under the silo's data, by log
    p_m(x_n) ``[M, N]``, than under the background, by log N(x_n; 0, I) ``[N]``? Relative: the
    square root of the teacher's weight over the largest weight. Weights alone are not enough: on an
    example that no silo covers they only rank guesses. The coverage of a row of NaN is 0.
    """
    absolute = torch.sigmoid(log_density - log_background - MARGIN)
    relative = (weights / weights.amax(0)).sqrt()
    return torch.nan_to_num(absolute, nan=0.0) * relative


def trust(predicted: Tensor, covered: Tensor) -> Tensor:
    """Return the trust in each teacher, float64 ``[M]`` in (0, 1], by predicted classes ``[M, N]``.

    A teacher's trust is its agreement with the other teachers that cover the same examples (see
    :func:`coverage`), weighted by their own trust. A prior agreement gives trust to a teacher that
    overlaps with no other. The trust is iterated as in Dawid and Skene (1979), so that a bad
    teacher does not lower the trust of those that it contradicts.
    """
    teachers, samples = predicted.shape
    prior = PRIOR_SHARE * samples / teachers
    overlap = covered * (covered.sum(0) - covered).clamp(0, 1)
    trusts = torch.ones(teachers, dtype=torch.float64)
    for _ in range(PASSES):
        trusted = trusts[:, None] ** TRUST_POWER * covered
        same = trusted.new_zeros(int(predicted.max()) + 1, samples).scatter_add_(
            0, predicted, trusted
        )
        same = (same.gather(0, predicted) - trusted).clamp_min(0)
        others = (trusted.sum(0) - trusted).clamp_min(torch.finfo(torch.float64).tiny)
        agreed = overlap * (same / others).clamp_max(1)
        trusts = (agreed.sum(1) + prior) / (overlap.sum(1) + prior)
    return trusts


def cap(weights: Tensor, most: float) -> Tensor:
    """Scale weights until no teacher's mean weight exceeds ``most``, or 1/M if that is larger.

    Each teacher is scaled by one factor on all examples; the excess goes to the others in
    proportion to their weights, so that their ratios are unchanged. A factor is a shift of a
    log-density: a teacher with the same large density everywhere is reduced to ``most`` on all.

    Args:
        weights: float64 ``[M, N]`` or ``[M, N, K]``, summing to one over teachers.
        most: in (0, 1].
    """
    teachers = len(weights)
    most = max(most, 1 / teachers)
    logs = weights.clamp_min(torch.finfo(torch.float64).tiny).log()
    shift = torch.zeros(teachers, dtype=torch.float64)
    for _ in range(1000):
        shaped = shift.reshape(-1, *[1] * (weights.dim() - 1))
        weights = torch.softmax(logs + shaped, dim=0)
        means = weights.flatten(1).mean(1)
        over = means > most * (1 + 1e-9)
        if not bool(over.any()):
            break
        shift = shift - torch.where(over, (means / most).log(), 0.0)
    return weights
