"""Correlation of two lists of figures, linear and by rank."""

from __future__ import annotations

from collections.abc import Sequence

DIGITS = 6
"""Decimals that records keep."""


def pearson(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Pearson's correlation; None below three points or where one side is constant."""
    from scipy.stats import pearsonr

    if not _is_defined(first, second):
        return None
    return round(float(pearsonr(first, second).statistic), DIGITS)


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, equals sharing their mean rank; None as above."""
    from scipy.stats import spearmanr

    if not _is_defined(first, second):
        return None
    return round(float(spearmanr(first, second).statistic), DIGITS)


def _is_defined(first: Sequence[float], second: Sequence[float]) -> bool:
    return len(first) >= 3 and len(set(first)) > 1 and len(set(second)) > 1
