"""What a constant prediction reaches by each metric, and whether a metric is defined on labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedkd.errors import UserError
from fedkd.registry import METRICS, METRICS_FROM_SUMS, metric_key


def constant_metrics(labels: Tensor, num_classes: int) -> dict[str, float | None]:
    """Return the best value of each metric, by its key, that one answer for all examples reaches.

    For accuracy and macro-F1 the answer is the largest class.

    Args:
        labels: of the examples ``[N]``.
        num_classes: C.

    Returns:
        Values in [0, 1]; None for a metric that is not defined on these labels.
    """
    values: dict[str, float | None] = dict.fromkeys(map(metric_key, METRICS))
    if not len(labels):
        return values
    counts, total = torch.bincount(labels, minlength=num_classes), len(labels)
    largest, present = int(counts.max()), int((counts > 0).sum())
    values["accuracy"] = largest / total
    values["balanced_accuracy"] = 1 / present
    values["macro_f1"] = 2 * largest / (total + largest) / present
    if present == num_classes > 1:
        values["auroc"] = 0.5
        values["average_precision"] = (
            int(counts[1]) / total if num_classes == 2 else 1 / num_classes
        )
    return values


def check_metric_is_defined(
    metric: str, labels: Tensor, num_classes: int, classes: Sequence[str], what: str
) -> None:
    """Refuse a metric that labels do not define.

    Args:
        metric: of the study.
        labels: of the examples on which it is measured ``[N]``.
        num_classes: C.
        classes: their names, or none.
        what: the examples, in words such as ``test examples``.

    Raises:
        UserError: it ranks each class against the rest, and a class is absent.
    """
    if metric == "accuracy" or metric in METRICS_FROM_SUMS:
        return
    counts = torch.bincount(labels, minlength=num_classes)
    absent = [k for k, count in enumerate(counts.tolist()) if not count]
    if absent:
        name = classes[absent[0]] if absent[0] < len(classes) else absent[0]
        raise UserError(
            f"metric: {metric} ranks the {what} of each class against the rest, but there are "
            f"none of class {name}; use balanced-accuracy or macro-f1, or other {what}"
        )
