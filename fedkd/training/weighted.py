"""Metrics on examples that stand for more or fewer of their class."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedkd.registry import METRICS_FROM_SUMS
from fedkd.training.class_sums import ClassSums


def weighted_metric(metric: str, logits: Tensor, labels: Tensor, weights: Tensor) -> float | None:
    """Return a metric by its name in study files; scikit-learn's, with ``sample_weight``.

    Logits are ``[N, C]``; the weights ``[N]`` are the same for all examples of a class. AUROC and
    average precision are over the classes that occur, each against the others; of two classes in
    all, of the second.

    Returns:
        The value; None if there are no examples, a logit is not finite, or fewer than two classes
        occur where they are ranked.
    """
    if not len(labels) or not bool(torch.isfinite(logits).all()):
        return None
    predicted = logits.argmax(1)
    if metric == "accuracy":
        return float(weights[predicted == labels].sum() / weights.sum())
    if metric == "balanced-accuracy":  # a recall does not depend on the weight of its class
        return ClassSums.of(predicted, labels, logits.shape[1]).balanced_accuracy
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

    own, sample_weight = labels.numpy(), weights.numpy()
    if metric in METRICS_FROM_SUMS:
        return float(f1_score(own, predicted.numpy(), average="macro", sample_weight=sample_weight))
    classes = torch.unique(labels).tolist()
    if len(classes) < 2:
        return None
    score = roc_auc_score if metric == "auroc" else average_precision_score
    if logits.shape[1] == 2:
        difference = (logits[:, 1] - logits[:, 0]).numpy()
        return float(score(own, difference, sample_weight=sample_weight))
    shares = logits.double().softmax(1).numpy()
    return float(
        np.mean([score(own == k, shares[:, k], sample_weight=sample_weight) for k in classes])
    )
