"""Accuracy lost to one bad teacher of ten, and to robust options with honest teachers.

``python -m experiments.robustness.models --write`` stores the figures in ``models.json``, where
they replace those of the same partition, weighting and seed, and prints the table of
``docs/robustness.md``. The bad silo is the largest of its seed, with the largest influence.
``--validation`` uses validation instead of test images, for choosing settings.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from experiments.robustness.case import ATTACKS, PARTITIONS, TRAINING, RobustnessCase
from fedkd.config import Consolidation
from fedkd.distillation.teachers import Teacher
from fedkd.util.files import write_json

RECORD = Path(__file__).with_suffix(".json")
WEIGHTINGS = ("equal", "confidence", "familiarity")
RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "median": {"pooling": "median"},
    "cap": {"max_weight": 0.2},
    "trust": {"trust": "agreement"},
    "cap and trust": {"max_weight": 0.2, "trust": "agreement"},
}
"""``trust`` needs weighting ``familiarity``."""


def measure(case: RobustnessCase, weighting: str, *, on: str) -> dict[str, Any]:
    """Return accuracies in per cent: without the bad silo, honest, and under every attack.

    Args:
        case: the teachers.
        weighting: the weighting of the teachers.
        on: ``test`` or ``validation``.
    """
    split = case.federation.split
    data = split.validation if on == "validation" else split.test
    if data is None:
        raise ValueError("the federation has no test images")
    plain = Consolidation(weighting=weighting)

    def points(settings: Consolidation, members: Sequence[Teacher]) -> float:
        return round(100 * case.student(settings, members, data), 2)

    accuracies: dict[str, Any] = {"left out": points(plain, case.without())}
    for rule, changes in RULES.items():
        if "trust" in changes and weighting != "familiarity":
            continue
        settings = Consolidation.model_validate({"weighting": weighting, **changes})
        accuracies[rule] = {"honest": points(settings, case.honest)}
        for attack in ATTACKS:
            if attack == "loud constant class" and not settings.uses_densities:
                continue
            accuracies[rule][attack] = points(settings, case.under(attack))
    return accuracies


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean losses over seeds, in points.

    Losses with honest teachers are relative to ``plain``; losses under attack are relative to
    training without the bad silo.
    """
    table = []
    for partition in PARTITIONS:
        for weighting in WEIGHTINGS:
            runs = [
                row["found"]
                for row in rows
                if (row["partition"], row["weighting"]) == (partition, weighting)
            ]
            for rule in (rule for rule in RULES if runs and rule in runs[0]):
                lost = {"honest": mean(r["plain"]["honest"] - r[rule]["honest"] for r in runs)}
                for attack in ATTACKS:
                    if attack in runs[0][rule]:
                        lost[attack] = mean(r["left out"] - r[rule][attack] for r in runs)
                table.append(
                    {
                        "partition": partition,
                        "weighting": weighting,
                        "rule": rule,
                        "lost": {key: round(value, 1) for key, value in lost.items()},
                        "reached": lost["honest"] <= 1
                        and all(value <= 2 for key, value in lost.items() if key != "honest"),
                    }
                )
    return table


def render(table: Sequence[dict[str, Any]]) -> str:
    """Return the table in Markdown."""
    head = ["partition", "weighting", "rule", "honest", *ATTACKS, "reached"]
    lines = [f"| {' | '.join(head)} |", "|---|---|---|" + "---:|" * (1 + len(ATTACKS)) + "---|"]
    for row in table:
        figures = [f"{row['lost'][key]:+.1f}" if key in row["lost"] else "" for key in head[3:-1]]
        cells = [f"`{row['partition']}`", f"`{row['weighting']}`", row["rule"], *figures]
        lines.append(f"| {' | '.join([*cells, 'yes' if row['reached'] else ''])} |")
    return "\n".join(lines)


def _with_others(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows, and those of the record that were not measured again."""

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[name] for name in ("partition", "weighting", "seed"))

    before = json.loads(RECORD.read_text())["runs"] if RECORD.is_file() else []
    merged = {key(row): row for row in [*before, *rows]}
    return [row for _, row in sorted(merged.items())]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--partitions", default=",".join(PARTITIONS))
    parser.add_argument("--weightings", default=",".join(WEIGHTINGS))
    parser.add_argument("--training", default=TRAINING, help="settings of the silos' pre-training")
    parser.add_argument("--validation", action="store_true", help="evaluate on validation images")
    parser.add_argument("--write", action="store_true", help=f"store the figures in {RECORD.name}")
    arguments = parser.parse_args()
    if arguments.write and (arguments.validation or arguments.training != TRAINING):
        parser.error("the record is of test images and of fully trained models")
    rows = []
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for seed in map(int, arguments.seeds.split(",")):
            for partition in arguments.partitions.split(","):
                case = RobustnessCase(partition, seed, pool, arguments.training)
                for weighting in arguments.weightings.split(","):
                    accuracies = measure(
                        case, weighting, on="validation" if arguments.validation else "test"
                    )
                    where = {"partition": partition, "seed": seed, "weighting": weighting}
                    rows.append({**where, "found": accuracies})
                    sys.stderr.write(f"{json.dumps(rows[-1])}\n")
    if arguments.write:
        rows = _with_others(rows)
        write_json(RECORD, {"runs": rows, "lost": summarise(rows)})
    sys.stdout.write(render(summarise(rows)) + "\n")


if __name__ == "__main__":
    main()
