"""Curves of a report: nothing is invented between rounds, and thinning loses no peak."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd.report.curves import Curve, band, thin, tidy_rows


@pytest.fixture
def curves(make_summary: Any) -> list[Curve]:
    summary = make_summary({"fedavg": [[0.1]], "fedkd": [[0.2, 0.4, 0.6], [0.4, 0.8]]})
    return [Curve.of(run) for run in summary["runs"] if run["arm"] == "fedkd"]


def test_costs_are_sums_and_a_start_from_models_is_charged(curves: list[Curve]) -> None:
    assert curves[0].exchanges == (1, 2, 3)
    assert curves[0].megabytes == (2, 4, 6)
    rows = list(tidy_rows([curves[0].run]))
    assert [row["seconds_so_far"] for row in rows] == [0.5, 1.0, 1.5]
    assert [row["seconds"] for row in rows] == [0.5, 0.5, 0.5]


def test_a_band_ends_with_the_first_run_to_end(curves: list[Curve]) -> None:
    found = band(curves, "exchanges")
    assert found is not None
    assert found.costs == [1, 2]
    assert found.mean == pytest.approx([0.3, 0.6])
    assert (found.low, found.high) == ([0.2, 0.4], [0.4, 0.8])


def test_between_rounds_the_earlier_accuracy_holds(make_summary: Any) -> None:
    summary = make_summary({"fedavg": [[0.1, 0.5], [0.3, 0.7]]})
    first, second = summary["runs"]
    second["curve"][0]["bytes_up"] = 2_000_000
    found = band([Curve.of(first), Curve.of(second)], "megabytes")
    assert found is not None
    assert (found.costs, found.low, found.high) == ([3, 4], [0.1, 0.3], [0.3, 0.5])


def test_reached_and_censored_points(make_summary: Any) -> None:
    run = make_summary({"fedavg": [[0.1, 0.5, 0.7]]}, (0.5, 0.9))["runs"][0]
    assert Curve.of(run).reached() == [1]
    assert Curve.of(run).censored


@given(st.lists(st.floats(0, 1), min_size=1, max_size=400), st.integers(2, 50), st.data())
def test_thinning_keeps_ends_extremes_and_what_must_stay(
    values: list[float], limit: int, data: Any
) -> None:
    keep = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=3))
    chosen = thin(values, limit, keep)
    assert chosen == sorted(set(chosen))
    assert {0, len(values) - 1, *keep} <= set(chosen)
    assert len(chosen) <= limit + 2 + len(keep)
    assert {min(values), max(values)} <= {values[index] for index in chosen}
