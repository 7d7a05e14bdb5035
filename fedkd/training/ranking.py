"""Metrics of how well scores rank images: AUROC and average precision, one class against the rest.

The definitions are those of scikit-learn: ``roc_auc_score(multi_class="ovr", average="macro")`` and
``average_precision_score(average="macro")``. Images of one score share a rank. scikit-learn takes a
hundred times as long for a small test set, and a curve has a value of both for every round.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def rank_metrics(logits: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Return ``auroc`` and ``average_precision`` of logits ``[N, C]`` on labels ``[N]``.

    With two classes, of the second one; with more, the mean over the classes, each against all
    others, scored by its probability. None where a class has no image, or a logit is not finite.
    """
    num_classes = logits.shape[1]
    counts = torch.bincount(labels, minlength=num_classes)
    if num_classes < 2 or not bool((counts > 0).all()) or not bool(torch.isfinite(logits).all()):
        return {"auroc": None, "average_precision": None}
    logits = logits.double()
    if num_classes == 2:
        # The difference ranks as the probability does, without rounding to 1.
        scores, first = (logits[:, 1] - logits[:, 0])[None], 1
    else:
        scores, first = logits.softmax(1).T.contiguous(), 0
    own = labels.numpy()
    pairs = [_rank(row, row[own == label]) for label, row in enumerate(scores.numpy(), start=first)]
    auroc, precision = np.mean(pairs, axis=0).tolist()
    return {"auroc": auroc, "average_precision": precision}


def _rank(scores: NDArray[np.float64], positive: NDArray[np.float64]) -> tuple[float, float]:
    """Return AUROC and average precision of one class.

    Args:
        scores: of all images ``[N]``.
        positive: those of the class's own images ``[P]``; there are others too.
    """
    scores, positive = np.sort(scores), np.sort(positive)
    total, count = len(scores), len(positive)
    below = np.searchsorted(scores, positive)
    not_above = np.searchsorted(scores, positive, side="right")
    rank_sum = float((below + not_above + 1).sum()) / 2  # of ranks from 1; equal scores share one
    auroc = (rank_sum - count * (count + 1) / 2) / (count * (total - count))
    # Precision where the threshold is a positive's own score.
    right = count - np.searchsorted(positive, positive)
    return auroc, float((right / (total - below)).mean())
