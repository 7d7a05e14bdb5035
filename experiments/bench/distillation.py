"""Distillation: a grid of 25 points with ten teachers, against a loop that asks them anew."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from experiments.bench.contenders import RIVALS, fedkd
from experiments.bench.federated import Say
from experiments.bench.goals import Goal, Spread
from experiments.bench.process import watch
from experiments.bench.workload import ARM, GRID, write_classroom
from fedkd.config.study_file import load_study
from fedkd.tuning.space import Space

TOLERANCE = 0.01
"""Greatest difference of a point's validation accuracies that passes for equal: 30 of 3,000."""


def run(folder: Path, *, turns: int, say: Say) -> list[dict[str, Any]]:
    """Let both search the grid once a turn, as whole commands; the teachers are trained before."""
    cache, room = folder / "cache", folder / "classroom.npz"
    own = load_study(GRID).arms[ARM].consolidation
    if own is None:
        raise ValueError(f"{GRID}: {ARM} does not consolidate")
    write_classroom(room, cache, Space(own, labelled=True, weightings=[]).grid_points())
    rows = []
    for turn in range(turns):
        place = folder / f"turn-{turn}"
        ours = fedkd(
            *("tune", GRID, "--search", "grid", "--arm", ARM, "--json"),
            folder=place / "fedkd",
            cache=cache,
        )
        result = place / "naive" / "result.json"
        naive = watch(
            [sys.executable, RIVALS / "naive_grid.py", room, result], folder=result.parent
        )
        data = place / "fedkd" / "runs" / "bench-grid" / f"tune-{ARM}.json"
        rows.append(
            {
                "turn": turn,
                "fedkd": ours.to_dict(),
                "naive": naive.to_dict(),
                "points": _compare(json.loads(data.read_text()), json.loads(result.read_text())),
            }
        )
        say(
            f"turn {turn}  grid: fedkd {ours.seconds:.1f} s, recomputing {naive.seconds:.1f} s, "
            f"accuracies differ by {difference(rows[-1]):.4f} at most"
        )
    return rows


def _compare(ours: dict[str, Any], naive: list[dict[str, float]]) -> list[dict[str, float]]:
    """Put both accuracies of every point side by side."""
    known = {
        (trial["settings"]["temperature"], trial["settings"]["weight"]): trial["value"]
        for trial in ours["trials"]
    }
    return [{**point, "fedkd": known[point["temperature"], point["weight"]]} for point in naive]


def difference(row: dict[str, Any]) -> float:
    """Return the greatest difference of accuracies over a turn's points."""
    return max(abs(float(point["accuracy"] - point["fedkd"])) for point in row["points"])


def goals(rows: list[dict[str, Any]]) -> list[Goal]:
    """Return the goals of this part."""
    times = [row["naive"]["seconds"] / row["fedkd"]["seconds"] for row in rows]
    apart = [difference(row) for row in rows]
    return [
        Goal(
            "a grid of 25 points, times faster than recomputing the teachers each batch",
            5.0,
            at_least=True,
            measured=Spread.of(times) if times else None,
        ),
        Goal(
            "accuracies of the grid's points, greatest difference between the two",
            TOLERANCE,
            measured=Spread.of([max(apart)]) if apart else None,
        ),
    ]
