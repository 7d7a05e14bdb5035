"""Metrics of how scores rank examples: AUROC and average precision, one class against the rest.

The definitions are those of scikit-learn: ``roc_auc_score(multi_class="ovr", average="macro")`` and
``average_precision_score(average="macro")``. Examples of one score share a rank. scikit-learn takes
a hundred times as long for a small test set, and a curve has a value of both for every round.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ROWS_AT_ONCE = 8192


def rank_metrics(logits: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Return ``auroc`` and ``average_precision`` of logits ``[N, C]`` on labels ``[N]``.

    With two classes, of the second one; with more, the mean over the classes, each against all
    others, scored by its probability. None where a class has no example, or a logit is not finite.
    """
    num_classes = logits.shape[1]
    counts = torch.bincount(labels, minlength=num_classes)
    if num_classes < 2 or not bool((counts > 0).all()) or not bool(torch.isfinite(logits).all()):
        return {"auroc": None, "average_precision": None}
    own = labels.numpy()
    pairs = [_rank(scores, scores[own == label]) for label, scores in _scores(logits)]
    auroc, precision = np.mean(pairs, axis=0).tolist()
    return {"auroc": auroc, "average_precision": precision}


def _scores(logits: Tensor) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield each class that counts as positive, with scores ``[N]`` that rank as its probability.

    One class is in memory at a time: of a thousand classes all would be gigabytes.
    """
    if logits.shape[1] == 2:
        # Log-odds, which do not round to those of certainty.
        yield 1, (logits[:, 1].double() - logits[:, 0].double()).numpy()
        return
    total = torch.cat([rows.double().logsumexp(1) for rows in torch.split(logits, _ROWS_AT_ONCE)])
    for label in range(logits.shape[1]):
        yield label, (logits[:, label].double() - total).numpy()


def _rank(scores: NDArray[np.float64], positive: NDArray[np.float64]) -> tuple[float, float]:
    """Return AUROC and average precision of one class.

    There are examples of other classes too.
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
