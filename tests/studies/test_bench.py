"""The bench's own machinery: what it watches, compares, and writes down when something fails."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from experiments.bench import __main__ as bench_main
from experiments.bench import federated, many_silos, scale, threads
from experiments.bench.__main__ import all_goals
from experiments.bench.contenders import check_frozen, contenders
from experiments.bench.goals import Goal, Spread
from experiments.bench.process import MARK, CommandFailedError, measure
from experiments.bench.publish import publish
from fedkd.engines.processes import find_marked

WRITES_ROUNDS = """
import json, pathlib, sys, time
held = bytearray(80_000_000)
held[::4096] = b"x" * len(held[::4096])
with pathlib.Path(sys.argv[1]).open("w", buffering=1) as file:
    for number in range(4):
        file.write(json.dumps({"round": number, "accuracy": number / 10}) + "\\n")
        time.sleep(0.4)
"""
LEAVES_A_CHILD = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
"""


def test_a_command_is_watched_from_its_start_to_its_end(tmp_path: Path) -> None:
    log = tmp_path / "rounds.jsonl"
    measurement = measure(
        [sys.executable, "-c", WRITES_ROUNDS, log], folder=tmp_path / "run", rounds=lambda: log
    )
    assert measurement.accuracies == (0.0, 0.1, 0.2, 0.3)
    assert measurement.round_seconds is not None
    assert 0.3 < measurement.round_seconds <= measurement.seconds
    assert measurement.peak_bytes > 80_000_000
    assert measurement.cpu_seconds > 0


def test_whatever_a_command_started_is_ended_with_it(tmp_path: Path) -> None:
    measure([sys.executable, "-c", LEAVES_A_CHILD], folder=tmp_path)
    assert find_marked(tmp_path, MARK) == []


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit('no such data')", "no such data"),
        ("import time; time.sleep(600)", "more than 1 s"),
    ],
)
def test_a_failure_is_told_with_the_end_of_the_log(tmp_path: Path, code: str, said: str) -> None:
    begin = time.monotonic()
    with pytest.raises(CommandFailedError, match=said):
        measure([sys.executable, "-c", code], folder=tmp_path, timeout=1.0)
    assert time.monotonic() - begin < 300
    assert find_marked(tmp_path, MARK) == []


def row(turn: int, name: str, seconds: float, **changes: Any) -> dict[str, Any]:
    return {
        "turn": turn,
        "contender": name,
        "seconds": seconds,
        "round_seconds": seconds / 20,
        "peak_bytes": 10**9,
        "cpu_seconds": seconds,
        "accuracies": [0.1, *[0.8] * 20],
        **changes,
    }


ROWS = [
    row(0, "fedkd inline", 10),
    row(0, "bare loop", 20),
    row(1, "fedkd inline", 30),
    row(1, "bare loop", 40, accuracies=[0.1, *[0.81] * 20]),
    row(2, "fedkd inline", 10),
    {"turn": 2, "contender": "bare loop", "error": "it broke"},
]


OWN = [row(0, "fedkd inline", 30, round_bytes=2_000_000), row(0, "bare loop", 40)]


def test_goals_of_own_models_and_the_worst_of_all_workloads() -> None:
    goals = {goal.text: goal for goal in federated.own_goals({"own-cnn": OWN})}
    missed = goals["whole command, a user's 5 x 5 CNN, inline fp32 against bare loop"]
    assert (missed.measured, missed.met) == (Spread(0.75, 0.75, 0.75), False)
    assert sum(goal.measured is not None for goal in goals.values()) == 1
    rows = {"cnn": ROWS, "own-cnn": OWN}
    assert federated.worst(rows, "bare loop", "seconds") == ("own-cnn", Spread(0.75, 0.75, 0.75))
    assert federated.worst(rows, "best loop", "seconds") is None


def test_only_times_of_one_turn_are_compared() -> None:
    found = federated.ratios(ROWS, "fedkd inline", "bare loop", "seconds")
    assert found == Spread(0.5, 0.625, 0.75)
    assert federated.ratios(ROWS, "fedkd inline", "best loop", "seconds") is None


def test_accuracies_are_compared_with_the_bare_loop() -> None:
    found = federated.differences(ROWS)
    assert found["fedkd inline"] == pytest.approx(0.005)
    assert federated.all_equal(ROWS)
    worse = [*ROWS, row(3, "best loop", 1, accuracies=[0.1, *[0.7] * 20])]
    assert not federated.all_equal(worse)


@pytest.mark.parametrize(
    ("at_least", "median", "met"),
    [(False, 0.9, True), (False, 1.1, False), (True, 1.1, True), (True, 0.9, False)],
)
def test_a_goal_is_met_by_the_median(at_least: bool, median: float, met: bool) -> None:
    goal = Goal("something", 1.0, at_least=at_least, measured=Spread(0, median, 9))
    assert goal.met is met
    assert Goal("something", 1.0).met is None


def test_the_goal_for_bf16_stands_only_where_the_processor_is_made_for_it() -> None:
    rows = [*ROWS, row(0, "fedkd inline bf16", 5), row(1, "fedkd inline bf16", 15)]
    with_amx, without = (
        next(goal for goal in federated.goals(rows, has_amx=amx) if "bf16" in goal.text)
        for amx in (True, False)
    )
    assert with_amx.met is True
    assert without.met is None
    assert "no AMX" in without.note
    assert "0.5" in without.note


MACHINE = {
    "processor": "a processor",
    "cores": 2,
    "flags": ["avx2"],
    "memory_bytes": 2**34,
    "platform": "Linux",
    "python": "3.11",
    "packages": {"torch": "2"},
    "load_before": 0.1,
}


def test_the_page_is_written_although_contenders_failed(tmp_path: Path) -> None:
    first = {"date": "2026-01-01", "turns": 3, "machine": MACHINE}
    results: dict[str, Any] = {
        "num_rounds": 20,
        "measured": {
            "federated": {**first, "problems": ["turn 2, bare loop: it broke\nand more"]},
            "own-models: own-cnn": {**first, "date": "2026-01-02", "turns": 1, "problems": []},
        },
        "federated": ROWS,
        "own-models": {"own-cnn": OWN},
    }
    results["goals"] = [goal.to_dict() for goal in all_goals(results)]
    publish(tmp_path, results)
    text = (tmp_path / "README.md").read_text()
    assert "- federated: measured 2026-01-01 in 3 turns, on 2 cores of a processor" in text
    assert "- own-models: own-cnn: measured 2026-01-02 in 1 turn, on 2 cores" in text
    assert "0.625 (0.5 to 0.75)" in text
    assert "| bare loop | own-cnn | 0.75 |" in text
    assert "| fedkd inline | `fedkd compare --fresh`, one process | 1 | 1 | 1 | 2 | 0.800 |" in text
    assert "- federated: turn 2, bare loop: it broke\n" in text
    assert "not measured" in text
    assert (tmp_path / "rounds.svg").read_text().startswith("<?xml")
    publish(tmp_path, {**results, "federated": [], "goals": []})


def test_a_run_of_some_parts_keeps_the_figures_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_main.federated, "run", lambda *_, **__: ROWS)
    monkeypatch.setattr(bench_main.everyday, "run", lambda *_, **__: pytest.fail("not asked for"))

    def bench(*options: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["bench", "--out", str(tmp_path), *options])
        assert bench_main.main() == 1  # a contender failed
        return dict(json.loads((tmp_path / "results.json").read_text()))

    before = bench("--parts", "federated", "--turns", "2")
    after = bench("--parts", "own-models", "--models", "own-cnn,mlp", "--turns", "1")
    assert after["federated"] == before["federated"]
    assert list(after["own-models"]) == ["own-cnn", "mlp"]
    assert {name: each["turns"] for name, each in after["measured"].items()} == {
        "federated": 2,
        "own-models: own-cnn": 1,
        "own-models: mlp": 1,
    }
    assert len(after["goals"]) > len(before["goals"])
    with pytest.raises(SystemExit, match="20 rounds; use another --out"):
        bench("--rounds", "3")


def test_the_hand_written_loop_is_the_frozen_one() -> None:
    check_frozen()
    assert [each.name for each in contenders()] == [
        "fedkd inline",
        "fedkd inline bf16",
        "fedkd ray",
        "Flower on Ray",
        "bare loop",
        "best loop",
    ]


def test_goals_of_many_large_silos_and_of_threads() -> None:
    peaks = {"many": 11, "ten": 10, "ray-many": 14, "ray-ten": 7}
    goals = many_silos.goals({name: {"peak_bytes": peak} for name, peak in peaks.items()})
    assert [goal.met for goal in goals] == [True, None, False]
    assert [goal.met for goal in many_silos.goals({})] == [None] * 3
    (goal,) = threads.goals([{"1": 6.0, "2": 3.0}, {"1": 6.0, "2": 3.75}])
    assert (goal.measured, goal.met) == (Spread(1.6, 1.8, 2.0), True)


def test_growth_is_a_power_of_the_size() -> None:
    rows = [{"size": n, "seconds": 3.0 * n**2} for n in (1, 10, 100)]
    assert scale.power(rows, "seconds") == pytest.approx(2)
    assert scale.power(rows[:1], "seconds") is None
    assert scale.power([{"size": 1, "error": "x"}, *rows[:1]], "seconds") is None
    for sweep in scale.sweeps():
        assert len(sweep.sizes) == len(sweep.changes)
