"""What a run cost and what an arm saved: every case of reached and unreached, by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedkd.errors import FedKDError
from fedkd.results.comparison import compare_arms
from fedkd.results.interval import coverage_of
from fedkd.results.record import (
    Point,
    Quarantined,
    RunRecord,
    append_point,
    read_points,
    write_state,
)

TARGET = 0.8


def run(
    arm: str,
    seed: int,
    reached: int | None,
    *,
    before: int = 0,
    budget: int = 20,
    cached: bool = False,
    targets: tuple[float, ...] = (TARGET,),
) -> RunRecord:
    """Return a run that reaches the target in a round, 10 bytes and 2 s a round."""
    last = budget if reached is None else reached
    curve = tuple(
        Point(number, TARGET if number == reached else 0.5, 1.0, 3, 7, 2.0, 2, 0)
        for number in range(last + 1)
    )
    return RunRecord(
        arm, seed, "inline", curve, "targets", before, budget, targets=targets, cached=cached
    )


def rows(
    *runs: RunRecord,
    baselines: tuple[str, ...] = ("base",),
    failed: tuple[tuple[str, int], ...] = (),
) -> list[dict[str, Any]]:
    return compare_arms(runs, baselines=list(baselines), targets=[TARGET], failed=failed)


def row(
    arm: list[int | None], base: list[int | None], *, before: int = 1, budget: int = 20
) -> dict[str, Any]:
    """Compare an arm with a baseline, given the rounds in which their seeds reach the target."""
    runs = [run("base", s, r, budget=budget) for s, r in enumerate(base)]
    runs += [run("kd", s, r, before=before, budget=budget) for s, r in enumerate(arm)]
    (only,) = rows(*runs)
    return only


TABLE = {
    # rounds of the arm, of the baseline -> exchanges, saved, bound, range
    "all reached": ([3, 4], [10, 10], (9, 20), 55.0, "exact", [50.0, 60.0]),
    "baseline unreached": ([3, 4], [10, None], (9, 30), 70.0, "at_least", [60.0, 75.0]),
    "arm unreached": ([3, None], [10, 15], (25, 25), 0.0, "at_most", [-40.0, 60.0]),
    "both unreached": ([None, 3], [10, None], (25, 30), 16.6667, "undefined", [-110.0, 80.0]),
    "none reached": ([None], [None], (21, 20), -5.0, "undefined", [-5.0, -5.0]),
    "at the start": ([0, 0], [10, 10], (2, 20), 90.0, "exact", [90.0, 90.0]),
    "baseline at its start": ([0], [0], (1, 0), None, "exact", None),
    "one seed at zero": ([1, 1], [0, 4], (4, 4), 0.0, "exact", None),
}


@pytest.mark.parametrize("name", TABLE)
def test_sums_bounds_and_ranges(name: str) -> None:
    arm, base, exchanges, saved, bound, spread = TABLE[name]
    found = row(arm, base)
    assert (found["exchanges"]["arm"], found["exchanges"]["baseline"]) == exchanges
    assert found["exchanges_saved_pct"] == saved
    assert found["bound"] == bound
    assert found["range"] == spread
    assert found["num_seeds"] == len(arm)
    assert found["reached"] == {
        "arm": sum(r is not None for r in arm),
        "baseline": sum(r is not None for r in base),
    }


def test_a_row_has_the_keys_of_the_contract() -> None:
    assert list(row([3], [10])) == [
        "arm",
        "baseline",
        "target",
        "num_seeds",
        "failed",
        "reached",
        "uncharged",
        "exchanges",
        "exchanges_saved_pct",
        "ceiling_pct",
        "bound",
        "range",
        "range_kind",
        "coverage",
        "bytes_saved_pct",
        "seconds_saved_pct",
    ]
    assert json.loads(json.dumps(row([3], [10]), allow_nan=False)) == row([3], [10])


@pytest.mark.parametrize(("before", "expected"), [(0, 100.0), (1, 87.5), (2, 75.0)])
def test_the_ceiling_is_what_reaching_the_target_at_the_start_saves(
    before: int, expected: float
) -> None:
    assert row([5, 3], [8, 8], before=before)["ceiling_pct"] == expected


def test_the_ceiling_counts_an_unreached_baseline_with_its_budget() -> None:
    assert row([5], [None], budget=40)["ceiling_pct"] == 97.5
    assert row([0], [0])["ceiling_pct"] is None


def test_bytes_and_seconds_to_target() -> None:
    # Curves begin with round 0: reaching in round r costs r + 1 points of 10 bytes and 2 s.
    found = row([3, 4], [9, 9])
    assert found["bytes_saved_pct"] == found["seconds_saved_pct"] == 55.0


def test_unreached_runs_count_with_all_that_they_spent() -> None:
    found = row([4], [None], budget=24)
    assert found["bytes_saved_pct"] == found["seconds_saved_pct"] == 80.0


@pytest.mark.parametrize("which", ["base", "kd"])
def test_a_cached_run_has_no_seconds(which: str) -> None:
    base, arm = run("base", 0, 9), run("kd", 0, 4, before=1)
    base, arm = (replace(r, cached=r.arm == which) for r in (base, arm))
    (found,) = rows(base, arm)
    assert found["seconds_saved_pct"] is None
    assert found["bytes_saved_pct"] == 50.0
    assert found["exchanges_saved_pct"] == pytest.approx(44.4444)


def test_two_seeds_give_extremes_and_three_an_interval() -> None:
    arm, base = [0, 1, 2, 4, 9], [10, 10, 10, 10, 10]
    two = row(arm[:2], base[:2])
    assert (two["range"], two["range_kind"], two["coverage"]) == ([80.0, 90.0], "extremes", None)
    for seeds in (3, 5):
        found = row(arm[:seeds], base[:seeds])
        low, high = found["range"]
        assert low < found["exchanges_saved_pct"] < high < 100
        assert (found["range_kind"], found["coverage"]) == ("interval", coverage_of(seeds))
    assert row([3] * 5, base)["range"] == [60.0, 60.0]


@pytest.mark.parametrize(("side", "bad"), [("arm", "kd"), ("baseline", "base")])
def test_a_failed_run_leaves_no_saving_of_the_seeds_that_did_not_fail(side: str, bad: str) -> None:
    """One seed of three at 97.5 % is not a saving of 97.5 %."""
    runs = [run("base", 0, 40, budget=40), run("kd", 0, 0, before=1)]
    (alone,) = rows(*runs)
    assert (alone["exchanges_saved_pct"], alone["bound"]) == (97.5, "exact")
    (found,) = rows(*runs, failed=((bad, 1), (bad, 2), ("other", 0)))
    assert found["bound"] == "undefined"
    assert found["failed"] == {"arm": 0, "baseline": 0, side: 2}


def test_every_arm_is_compared_with_every_baseline_on_shared_seeds() -> None:
    runs = [run("base", 0, 10), run("base", 1, 10), run("avg", 1, 4, before=1), run("kd", 1, 1)]
    runs += [run("kd", 2, 1)]
    found = rows(*runs, baselines=("base", "avg", "absent"))
    assert [(r["arm"], r["baseline"], r["num_seeds"]) for r in found] == [
        ("base", "avg", 1),
        ("avg", "base", 1),
        ("kd", "base", 1),
        ("kd", "avg", 1),
    ]
    assert rows(run("base", 0, 1), run("kd", 5, 1)) == []


def test_relative_targets_are_read_from_each_run() -> None:
    """The study's target is 0.9 of the best; a seed's own accuracy stands for it."""
    runs = [replace(run("base", s, 10), targets=(t,)) for s, t in ((0, 0.8), (1, 0.5))]
    runs += [replace(run("kd", s, 5), targets=(t,)) for s, t in ((0, 0.8), (1, 0.5))]
    (found,) = compare_arms(runs, baselines=["base"], targets=[0.9])
    assert found["target"] == 0.9
    assert found["exchanges"] == {"arm": 5, "baseline": 10}


def test_a_target_is_reached_exactly_at_it() -> None:
    record = run("kd", 0, 2, before=1)
    assert record.reached(TARGET) == 2
    assert record.reached(TARGET + 1e-12) is None
    assert record.cost(TARGET) == {"round": 2, "exchanges": 3, "bytes": 30, "seconds": 6.0}
    assert record.cost(0.5) == {"round": 0, "exchanges": 1, "bytes": 10, "seconds": 2.0}


def test_an_unreached_target_cost_nothing_that_is_known() -> None:
    assert run("kd", 0, None).cost(TARGET) == {
        "round": None,
        "exchanges": None,
        "bytes": None,
        "seconds": None,
    }
    assert run("kd", 0, None, before=2, budget=20).budget == 22


def write(folder: Path, record: RunRecord) -> None:
    for point in record.curve:
        append_point(folder, point)
    write_state(folder, record)


def test_a_record_comes_back_from_disk(tmp_path: Path) -> None:
    record = replace(
        run("kd", 3, 2, before=1, targets=(0.8, 0.9)),
        quarantined=(Quarantined("silo-1", 2, "it did not answer in time"),),
        notes={"fallback": "equal"},
    )
    write(tmp_path, record)
    assert RunRecord.read(tmp_path) == record


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, run("kd", 0, 3))
    path = tmp_path / "rounds.jsonl"
    path.write_text(path.read_text()[:-5])
    assert [p.round for p in read_points(tmp_path)] == [0, 1, 2]
    assert read_points(tmp_path / "absent") == ()


@pytest.mark.parametrize(
    "damage",
    [
        "no state",
        "no rounds",
        "a round twice",
        "a key too many",
        "last line cut",
    ],
)
def test_a_damaged_record_is_refused(damage: str, tmp_path: Path) -> None:
    write(tmp_path, run("kd", 0, 3))
    rounds, state = tmp_path / "rounds.jsonl", tmp_path / "state.json"
    if damage == "no state":
        state.unlink()
    elif damage == "no rounds":
        rounds.unlink()
    elif damage == "last line cut":
        rounds.write_text(rounds.read_text()[:-5])
    elif damage == "a round twice":
        rounds.write_text(rounds.read_text() + rounds.read_text())
    else:
        state.write_text(json.dumps({**json.loads(state.read_text()), "odd": 1}))
    with pytest.raises(FedKDError):
        RunRecord.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *(("rounds.jsonl", {"accuracy": value}) for value in ("high", 17, None, [])),
        *(("rounds.jsonl", {"bytes_up": value}) for value in ("many", 0.5, None)),
        ("rounds.jsonl", {"odd": 1}),
        *(("state.json", {"notes": value}) for value in ([], "none", 3, None)),
        *(("state.json", {"quarantined": value}) for value in ([7], {}, [{"silo": "silo-0"}])),
        *(("state.json", {"targets": value}) for value in (["high"], 0.5)),
        *(("state.json", {key: []}) for key in ("arm", "seed", "stopped", "num_points")),
        ("state.json", {"stopped": "somehow"}),
    ],
)
def test_values_of_another_type_are_refused_in_a_sentence(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path, run("kd", 0, 3))
    path = tmp_path / name
    first, *others = path.read_text().splitlines() if name != "state.json" else [path.read_text()]
    path.write_text("\n".join([json.dumps({**json.loads(first), **changes}), *others, ""]))
    with pytest.raises(FedKDError, match=r"^[^\n]*$"):
        RunRecord.read(tmp_path)
