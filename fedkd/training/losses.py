"""Losses of labels and of distillation, in log space and fp32, averaged over the batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from fedkd.config.optimizer import OptimizerKeys

LabelLoss = Callable[[Tensor, Tensor], Tensor]
"""Maps logits ``[B, C]`` and labels, ``[B]`` or probabilities ``[B, C]``, to a scalar."""


def cross_entropy_of(
    settings: OptimizerKeys, labels: Tensor, num_classes: int, device: str
) -> LabelLoss:
    """Return the cross-entropy with the label smoothing and class weights of the settings.

    Args:
        settings: of a section on training.
        labels: all labels that are trained on, ``[N]``, or probabilities ``[N, C]``.
        num_classes: C.
        device: of the logits.
    """
    weight = None
    if settings.class_weights == "balanced":
        weight = balanced_weights(labels, num_classes).to(device)
    return partial(
        functional.cross_entropy, weight=weight, label_smoothing=settings.label_smoothing
    )


def balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Return N / (K n_c) for each class, fp32 ``[C]``, with n_c labels of K classes that occur.

    King & Zeng (2001), as ``class_weight="balanced"`` of scikit-learn. A class that does not occur
    has weight 0.
    """
    if labels.is_floating_point():
        counts = labels.double().sum(0)
    else:
        counts = torch.bincount(labels, minlength=num_classes).double()
    weights = counts.sum() / ((counts > 0).sum() * counts)
    return torch.where(counts > 0, weights, 0.0).float()


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
    cross_entropy: LabelLoss = functional.cross_entropy,
) -> Tensor:
    """Vanilla distillation, L = (1-a) CE(z, y) + a T^2 KL(target || softmax(z / T)).

    Hinton et al. 1503.02531, equations 1 to 4; T^2 keeps the scale of gradients independent of T.

    Args:
        logits: the student's z ``[B, C]``.
        target: the teachers' probabilities at temperature T ``[B, C]``.
        labels: y ``[B]``; without labels the loss is the KL term alone (a = 1).
        temperature: T.
        weight: a, the weight of the teachers.
        cross_entropy: CE; see :func:`cross_entropy_of`.
    """
    divergence = kl_divergence(logits, target, temperature=temperature) * temperature**2
    if labels is None:
        return divergence
    return (1 - weight) * cross_entropy(logits.float(), labels) + weight * divergence
