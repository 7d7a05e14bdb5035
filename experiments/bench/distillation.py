"""Distillation: a grid of 25 points with ten teachers, against a loop that recomputes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from experiments.bench.contenders import RIVALS, fedkd
from experiments.bench.federated import Say
from experiments.bench.goals import Goal, Spread
from experiments.bench.process import measure
from experiments.bench.workload import ARM, GRID, write_teachers
from fedkd.config.study_file import load_study
from fedkd.tuning.space import Space

TOLERANCE = 0.01
"""Maximum difference of a point's validation accuracies: 30 of 3,000 images."""


def run(folder: Path, *, turns: int, say: Say) -> list[dict[str, Any]]:
    """Search the grid with both programs once per turn; the teachers are trained before."""
    cache, teachers = folder / "cache", folder / "teachers.npz"
    own = load_study(GRID).arms[ARM].consolidation
    if own is None:
        raise ValueError(f"{GRID}: {ARM} does not consolidate")
    write_teachers(teachers, cache, Space(own, labelled=True, weightings=[]).grid_points())
    rows = []
    for turn in range(turns):
        place = folder / f"turn-{turn}"
        ours = fedkd(
            *("tune", GRID, "--search", "grid", "--arm", ARM, "--json"),
            folder=place / "fedkd",
            cache=cache,
        )
        result = place / "naive" / "result.json"
        naive = measure(
            [sys.executable, RIVALS / "naive_grid.py", teachers, result], folder=result.parent
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
    """Return every point with both accuracies."""
    known = {
        (trial["settings"]["temperature"], trial["settings"]["weight"]): trial["value"]
        for trial in ours["trials"]
    }
    return [{**point, "fedkd": known[point["temperature"], point["weight"]]} for point in naive]


def difference(row: dict[str, Any]) -> float:
    """Return the maximum difference of accuracies over a turn's points."""
    return max(abs(float(point["accuracy"] - point["fedkd"])) for point in row["points"])


def goals(rows: list[dict[str, Any]]) -> list[Goal]:
    """Return the goals of this part."""
    speedups = [row["naive"]["seconds"] / row["fedkd"]["seconds"] for row in rows]
    differences = [difference(row) for row in rows]
    return [
        Goal(
            "a grid of 25 points, speed-up over recomputing the teachers for each batch",
            5.0,
            at_least=True,
            measured=Spread.of(speedups) if speedups else None,
        ),
        Goal(
            "accuracies of the grid's points, maximum difference between the two",
            TOLERANCE,
            measured=Spread.of([max(differences)]) if differences else None,
        ),
    ]
