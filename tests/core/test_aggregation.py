"""Robust means by hand, and what no rule may do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedkd.models.state import State, average_states
from fedkd.training.aggregation import aggregate, reduce

RULES = ["median", "trimmed-mean"]


def states(*values: list[float]) -> list[State]:
    return [{"w": torch.tensor(value), "n": torch.tensor(int(value[0]))} for value in values]


def test_the_median_of_odd_and_even_numbers() -> None:
    odd = states([1.0, 9.0], [5.0, -3.0], [3.0, 4.0])
    found = aggregate(odd, [1, 100, 1], rule="median", trim=0.2)
    assert found["w"].tolist() == [3.0, 4.0]
    assert (int(found["n"]), found["n"].dtype) == (1, torch.int64), "the first state's"
    even = aggregate([*odd, *states([7.0, 5.0])], [1] * 4, rule="median", trim=0.2)
    assert even["w"].tolist() == [4.0, 4.5]


def test_the_trimmed_mean_leaves_out_the_floor_of_its_share_at_either_end() -> None:
    five = states(*[[v] for v in (10.0, 1.0, 2.0, 6.0, -50.0)])
    weights = [1000.0, 1, 1, 1, 1]
    assert aggregate(five, weights, rule="trimmed-mean", trim=0.2)["w"].tolist() == [3.0]
    assert aggregate(five, weights, rule="trimmed-mean", trim=0.49)["w"].tolist() == [2.0]
    unweighted = float(np.float32(-31 / 5))
    assert aggregate(five, weights, rule="trimmed-mean", trim=0.19)["w"].tolist() == [unweighted]


def test_the_mean_is_that_of_fedavg() -> None:
    three = states([1.0, 9.0], [5.0, -3.0], [3.0, 4.0])
    found = aggregate(three, [1, 2, 3], rule="mean", trim=0.2)
    expected = average_states(three, [1, 2, 3])
    assert all(found[key].equal(expected[key]) for key in expected)


@pytest.mark.parametrize("rule", ["mean", *RULES])
def test_equal_models_are_kept_to_the_bit(rule: str) -> None:
    state = {"w": torch.randn(3, 4), "b": torch.tensor([True, False]), "s": torch.tensor(0.1)}
    found = aggregate([state] * 7, [3.0] * 7, rule=rule, trim=0.2)
    assert all(found[key].equal(state[key]) for key in state)
    assert all(found[key].dtype == state[key].dtype for key in state)


rows = st.integers(1, 9).flatmap(
    lambda n: st.lists(
        st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), min_size=n, max_size=n
    )
)


@given(rows, st.sampled_from(RULES), st.floats(0.01, 0.49), st.randoms())
def test_no_rule_depends_on_the_order_or_leaves_the_range(
    values: list[list[float]], rule: str, trim: float, chance: object
) -> None:
    stacked = torch.tensor(values, dtype=torch.float64)
    found = reduce(stacked, rule, trim)
    mixed = values[:]
    chance.shuffle(mixed)  # type: ignore[attr-defined]  # a random.Random
    assert reduce(torch.tensor(mixed, dtype=torch.float64), rule, trim).equal(found)
    slack = 1e-9 * (1 + stacked.abs().max(0).values)
    assert bool((found >= stacked.min(0).values - slack).all())
    assert bool((found <= stacked.max(0).values + slack).all())


@given(st.integers(1, 20), st.integers(0, 2**31 - 1), st.floats(-1e30, 1e30))
def test_a_minority_moves_a_median_no_further_than_the_honest_range(
    honest: int, seed: int, lie: float
) -> None:
    truth = torch.randn(honest, 4, generator=torch.Generator().manual_seed(seed)).double()
    bad = torch.full((max(0, (honest - 1) // 2), 4), lie, dtype=torch.float64)
    found = reduce(torch.cat([truth, bad]), "median", 0.0)
    assert bool((found >= truth.min(0).values).all() and (found <= truth.max(0).values).all())
