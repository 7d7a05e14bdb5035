"""Gain and forgetting of a model: overall, by class, and on each silo's label mix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

DIGITS = 6
"""Decimals of recorded values."""


def flips(before: Tensor, after: Tensor, labels: Tensor, num_classes: int) -> dict[str, Any]:
    """Count positive and negative flips between two sets of predictions, as shares of N.

    Args:
        before: predicted classes ``[N]`` or logits ``[N, K]``.
        after: likewise.
        labels: true classes ``[N]``.
        num_classes: K.

    Returns:
        ``gain`` (wrong before, right after), ``forgetting`` (right before, wrong after), ``delta``
        (gain - forgetting, the change of accuracy), and ``per_class`` gain and forgetting as
        shares of the class's examples, None for a class without examples.
    """
    right_before, right_after = _right(before, labels), _right(after, labels)
    gained = (~right_before & right_after).double()
    lost = (right_before & ~right_after).double()
    return {
        "gain": _share(gained),
        "forgetting": _share(lost),
        "delta": _share(gained - lost),
        "per_class": {
            "gain": _by_class(gained, labels, num_classes),
            "forgetting": _by_class(lost, labels, num_classes),
        },
    }


def complementary_knowledge(student: Tensor, teacher: Tensor, labels: Tensor) -> float:
    """Return the share of the examples that the student gets wrong and the teacher right.

    Args:
        student: predicted classes ``[N]`` or logits ``[N, K]``.
        teacher: likewise.
        labels: true classes ``[N]``.
    """
    return _share((~_right(student, labels) & _right(teacher, labels)).double())


def pairwise_agreement(predicted: Tensor) -> float | None:
    """Return the share of examples on which two models agree, averaged over all pairs of models.

    Args:
        predicted: classes ``[M, N]`` that M models predict for N examples.

    Returns:
        A share in [0, 1]; None for a single model.
    """
    models = len(predicted)
    if models < 2:
        return None
    same = sum(
        float((predicted[m] == predicted[m + 1 :]).double().mean(1).sum())
        for m in range(models - 1)
    )
    return round(same / (models * (models - 1) / 2), DIGITS)


def accuracy_by_class(predicted: Tensor, labels: Tensor, num_classes: int) -> list[float | None]:
    """Return the accuracy on each class, None for a class without examples."""
    return _by_class(_right(predicted, labels).double(), labels, num_classes)


def accuracy_for_mix(
    predicted: Tensor, labels: Tensor, class_counts: Sequence[int]
) -> float | None:
    """Return the accuracy on the label mix of a silo.

    Args:
        predicted: predicted classes ``[N]`` or logits ``[N, K]``.
        labels: true classes ``[N]``.
        class_counts: the silo's examples of each class ``[K]``.

    Returns:
        The mean of the class accuracies weighted by the counts; None if ``labels`` contain none of
        the silo's classes.
    """
    accuracies = accuracy_by_class(predicted, labels, len(class_counts))
    pairs = [
        (a, n) for a, n in zip(accuracies, class_counts, strict=True) if a is not None and n > 0
    ]
    total = sum(n for _, n in pairs)
    return round(sum(a * n for a, n in pairs) / total, DIGITS) if total else None


def _right(predicted: Tensor, labels: Tensor) -> Tensor:
    classes = predicted.argmax(1) if predicted.dim() == 2 else predicted
    return classes == labels


def _share(hits: Tensor) -> float:
    return round(float(hits.mean()), DIGITS)


def _by_class(hits: Tensor, labels: Tensor, num_classes: int) -> list[float | None]:
    totals = torch.bincount(labels, minlength=num_classes).double()
    sums = torch.zeros(num_classes, dtype=torch.float64).index_add_(0, labels, hits)
    return [
        round(float(s / n), DIGITS) if n else None
        for s, n in zip(sums.tolist(), totals.tolist(), strict=True)
    ]
