"""The interval of a saving over seeds, and its coverage as simulation measures it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
LEAST_SEEDS = 3
"""Two seeds leave one degree of freedom, so that an interval would say nothing."""
COVERAGE = {3: 94.6, 4: 94.7, 5: 94.6, 6: 94.5, 7: 94.5, 8: 94.5, 9: 94.6, 10: 94.5}
"""Per cent of intervals that contain the true saving, by number of seeds; 10 stands for more.

Means over the simulated studies of ``tests/core/test_interval.py``, which measures them again:
counts of 12 to 35 exchanges with coefficients of variation of 0.1 to 0.35 against arms with a
constant, a third or nine tenths of that, independent or correlated over seeds, as in the records
of ``experiments/paper``.
"""


def coverage_of(num_seeds: int) -> float | None:
    """Return the measured coverage of an interval, in per cent; None below three seeds."""
    return None if num_seeds < LEAST_SEEDS else COVERAGE[min(num_seeds, max(COVERAGE))]


def saving_interval(
    arm: ArrayLike, baseline: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the 95 % interval of 100 (1 - sum of the arm / sum of the baseline).

    It is paired over seeds. The logarithm of the ratio of sums r is close to normal, and its
    standard error follows from the first order in both sums: with d_s = a_s / mean(a) -
    b_s / mean(b), it is sd(d) / sqrt(S). The ends are r exp(-t se) and r exp(t se) with the t
    quantile of S - 1 degrees of freedom. A bootstrap of percentiles is too narrow for so few
    seeds: it covers 83 % at five.

    Args:
        arm: exchanges ``[..., S]`` of S seeds, at least two.
        baseline: of the same seeds; at least one is positive.

    Returns:
        The lower and the upper end in per cent, ``[...]``. Where seeds do not differ, both are the
        saving itself.
    """
    from scipy.stats import t  # it takes longer to import than a small study to compare

    spent, of_baseline = np.asarray(arm, float), np.asarray(baseline, float)
    num_seeds = spent.shape[-1]
    total = spent.sum(-1, keepdims=True)
    ratio = total / of_baseline.sum(-1, keepdims=True)
    # An arm that is everywhere at the target before any exchange has spent nothing, and saves all.
    shares = np.divide(spent, total, out=np.zeros_like(spent), where=total > 0)
    deviations = num_seeds * (shares - of_baseline / of_baseline.sum(-1, keepdims=True))
    error = deviations.std(-1, ddof=1) / np.sqrt(num_seeds)
    factor = np.exp(t.ppf((1 + LEVEL) / 2, num_seeds - 1) * error)
    return 100 * (1 - ratio[..., 0] * factor), 100 * (1 - ratio[..., 0] / factor)
