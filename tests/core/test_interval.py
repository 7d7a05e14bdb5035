"""The interval of a saving: by hand, and how often it contains the true saving in simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from fedkd.results.interval import COVERAGE, LEAST_SEEDS, coverage_of, saving_interval

REPETITIONS = 4000
# Mean of the baseline's exchanges; coefficient of variation over seeds of the baseline; the arm's
# mean as a share of the baseline's (0: always one exchange) and its coefficient of variation;
# correlation over seeds of the logarithms. Ranges are those of experiments/paper/results.
STUDIES = [
    study
    for study in itertools.product(
        (12, 20, 35), (0.1, 0.2, 0.35), ((0, 0), (0.3, 0.3), (0.9, 0.3)), (0, 0.6)
    )
    if study[2][0] or not study[3]
]


def draw(
    study: tuple[float, float, tuple[float, float], float], shape: tuple[int, ...], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw exchanges of an arm and a baseline: log-normal, rounded, at least one."""
    mean, variation, (share, arm_variation), correlation = study
    own, other = np.random.default_rng(seed).standard_normal((2, *shape))

    def counts(expected: float, of: float, normal: NDArray[np.float64]) -> NDArray[np.float64]:
        sigma = math.sqrt(math.log1p(of**2))
        return np.maximum(1, np.rint(expected * np.exp(sigma * normal - sigma**2 / 2)))

    joint = correlation * own + math.sqrt(1 - correlation**2) * other
    arm = counts(share * mean, arm_variation, joint) if share else np.ones(shape)
    return arm, counts(mean, variation, own)


@pytest.fixture(scope="module")
def true_savings() -> list[float]:
    """Return 100 (1 - E[arm] / E[baseline]) of every simulated study."""
    savings = []
    for index, study in enumerate(STUDIES):
        arm, baseline = draw(study, (200_000,), seed=index)
        savings.append(100 * float(1 - arm.mean() / baseline.mean()))
    return savings


def measure(num_seeds: int, true_savings: list[float]) -> float:
    """Return the per cent of intervals that contain the true saving, over all studies."""
    hits = []
    for index, (study, truth) in enumerate(zip(STUDIES, true_savings, strict=True)):
        arm, baseline = draw(study, (REPETITIONS, num_seeds), seed=1000 * num_seeds + index)
        low, high = saving_interval(arm, baseline)
        hits.append(float(((low <= truth) & (truth <= high)).mean()))
    assert min(hits) > 0.9  # in no single study it is far too narrow
    return 100 * sum(hits) / len(hits)


@pytest.mark.parametrize("num_seeds", COVERAGE)
def test_the_coverage_that_is_printed_is_what_simulation_measures(
    num_seeds: int, true_savings: list[float]
) -> None:
    measured = measure(num_seeds, true_savings)
    assert 93 <= measured <= 97
    assert coverage_of(num_seeds) == pytest.approx(measured, abs=0.1)


def test_by_hand() -> None:
    """Ratio 1/2; d = (1/10 - 1/5) times 3, ...: 0, 0.15, -0.15; t of two degrees is 4.3027."""
    low, high = saving_interval([10, 11.5, 8.5], [20, 20, 20])
    error = 0.15 / math.sqrt(3)
    assert float(low) == pytest.approx(100 * (1 - 0.5 * math.exp(4.302653 * error)))
    assert float(high) == pytest.approx(100 * (1 - 0.5 * math.exp(-4.302653 * error)))


def test_it_is_paired() -> None:
    """Where every seed saves the same share, seeds that differ make it no wider."""
    low, high = saving_interval([1, 2, 5, 10, 15], [2, 4, 10, 20, 30])
    assert (float(low), float(high)) == pytest.approx((50, 50))
    low, high = saving_interval([15, 10, 5, 2, 1], [2, 4, 10, 20, 30])
    assert float(high - low) > 100


def test_an_arm_that_spends_nothing_saves_all() -> None:
    low, high = saving_interval([[0, 0, 0], [0, 0, 3]], [[9, 12, 10], [9, 12, 10]])
    assert (low[0], high[0]) == (100, 100)
    assert low[1] < 100 * (1 - 3 / 31) < high[1] < 100


def test_below_three_seeds_there_is_none() -> None:
    assert coverage_of(LEAST_SEEDS - 1) is None
    assert coverage_of(50) == COVERAGE[max(COVERAGE)]
