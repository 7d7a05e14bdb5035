"""Distillation losses, in log space and fp32, averaged over the batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def kd_loss(
    logits: Tensor,
    target: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 1.0,
    weight: float = 1.0,
) -> Tensor:
    """Vanilla distillation, L = (1-a) CE(z, y) + a T^2 KL(target || softmax(z / T)).

    Hinton et al. 1503.02531, equations 1 to 4; the factor T^2 keeps gradients of one size.

    Args:
        logits: the student's z ``[B, C]``.
        target: the teachers' probabilities at temperature T ``[B, C]``.
        labels: y ``[B]``; without labels the loss is the KL term alone (a = 1).
        temperature: T.
        weight: a, of the teachers against the labels.
    """
    log_student = functional.log_softmax(logits.float() / temperature, dim=1)
    # xlogy is 0 at 0, where log would give NaN and its gradient too.
    negentropy = torch.special.xlogy(target, target).sum(1)
    divergence: Tensor = (negentropy - (target * log_student).sum(1)).mean() * temperature**2
    if labels is None:
        return divergence
    fit = functional.cross_entropy(logits.float(), labels)
    mixed: Tensor = (1 - weight) * fit + weight * divergence
    return mixed
