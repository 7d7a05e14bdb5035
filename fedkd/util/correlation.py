"""Correlation of two lists of figures, linear and by rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DIGITS = 6


def pearson(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the linear correlation; None under three points or where one side is constant."""
    if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return round(float(np.corrcoef(first, second)[0, 1]), DIGITS)


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the rank correlation, equals sharing their mean rank; None as in :func:`pearson`."""
    return pearson(ranks(first), ranks(second))


def ranks(values: Sequence[float]) -> list[float]:
    """Return ranks from 1; equals share the mean of theirs."""
    if not values:
        return []
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    return [float(rank) for rank in mean_rank[inverse]]
