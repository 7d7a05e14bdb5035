"""Distillation losses, in log space and fp32, averaged over the batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def kl_divergence(logits: Tensor, target: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Mean over the batch of KL(target || softmax(z / T)), in nats, at least 0.

    Near convergence the two sums that are subtracted agree to rounding, so that their difference
    may be -1e-7, which T^2 makes -1e-3 at T = 100. Such a value is returned as 0. The gradient is
    that of the unrounded formula: a clamp would stop training there.

    Args:
        logits: the student's z ``[B, C]``.
        target: probabilities at temperature T ``[B, C]``.
        temperature: T.
    """
    log_student = functional.log_softmax(logits.float() / temperature, dim=1)
    # xlogy(0, 0) is 0; 0 * log(0) would be NaN, and so would its gradient.
    negentropy = torch.special.xlogy(target, target).sum(1)
    divergence: Tensor = (negentropy - (target * log_student).sum(1)).mean()
    return divergence + (divergence.clamp_min(0) - divergence).detach()


def kd_loss(
    logits: Tensor,
    target: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 1.0,
    weight: float = 1.0,
) -> Tensor:
    """Vanilla distillation, L = (1-a) CE(z, y) + a T^2 KL(target || softmax(z / T)).

    Hinton et al. 1503.02531, equations 1 to 4; T^2 keeps the scale of gradients independent of T.

    Args:
        logits: the student's z ``[B, C]``.
        target: the teachers' probabilities at temperature T ``[B, C]``.
        labels: y ``[B]``; without labels the loss is the KL term alone (a = 1).
        temperature: T.
        weight: a, the weight of the teachers.
    """
    divergence = kl_divergence(logits, target, temperature=temperature) * temperature**2
    if labels is None:
        return divergence
    cross_entropy = functional.cross_entropy(logits.float(), labels)
    loss: Tensor = (1 - weight) * cross_entropy + weight * divergence
    return loss
