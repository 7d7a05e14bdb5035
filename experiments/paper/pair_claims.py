"""Claims about pairs: when tuning matters, and what makes a good teacher."""

# ruff: noqa: E501 -- the page is prose

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.paper.figures import Records, mean
from experiments.paper.findings import Finding
from experiments.paper.pairs import STUDY
from fedkd.util.correlation import spearman

METHODS = ("kd", "kd-tuned", "dml", "dp-kd", "fine-tune")
TRAITS = ("gap", "complementary", "label_distance")


def _rows(records: Records, method: str) -> list[dict[str, Any]]:
    found = []
    for variant in records.variants(STUDY):
        record = records.record(STUDY, variant)
        for values in record["rows"]:
            row = dict(zip(record["columns"], values, strict=True))
            if row["method"] == method and row["delta"] is not None:
                found.append({"partition": variant[0], **row})
    return found


def when_tuning_matters(records: Records) -> Finding:
    """When tuning stops mattering: the teacher is close to the student."""
    plain, tuned = (
        {(r["partition"], r["seed"], r["teacher"], r["student"]): r for r in _rows(records, method)}
        for method in ("kd", "kd-tuned")
    )
    pairs = sorted(
        (abs(plain[key]["gap"]), tuned[key]["delta"] - plain[key]["delta"])
        for key in plain.keys() & tuned.keys()
    )
    third = len(pairs) // 3
    parts = [pairs[:third], pairs[third:-third], pairs[-third:]]
    gains = [mean([advantage for _, advantage in part]) for part in parts]
    rows = [
        (
            f"{100 * part[0][0]:.1f} to {100 * part[-1][0]:.1f}",
            str(len(part)),
            f"{100 * gain:+.2f}",
            f"{100 * mean([float(advantage > 0) for _, advantage in part]):.0f} %",
        )
        for part, gain in zip(parts, gains, strict=True)
    ]
    holds = gains[0] < gains[-1]
    return Finding(
        "When tuning stops mattering",
        "Tuning temperature and weight matters less the closer the teacher is to the student. All ordered "
        "pairs of six silos on five partitions, labelled transfer set, by thirds of the gap between teacher and "
        "student (points of accuracy, either way). Holds if tuning brings less in the third of the "
        "smallest gaps than in that of the largest.",
        ("gap, points", "pairs", "tuned - default, points", "tuned is better"),
        rows,
        f"{'Holds' if holds else 'Does not hold'}: {100 * gains[0]:+.2f} points where the models are "
        f"closest, {100 * gains[-1]:+.2f} where they are farthest apart.",
    )


def good_teacher(records: Records) -> Finding:
    """What makes a good teacher."""
    rows = []
    ranks: dict[str, dict[str, float | None]] = {}
    for method in METHODS:
        found = _rows(records, method)
        deltas = [row["delta"] for row in found]
        # Against the control: what the labels alone would have given the same student.
        ranks[method] = {trait: spearman([row[trait] for row in found], deltas) for trait in TRAITS}
        rows.append(
            (
                method,
                str(len(found)),
                f"{100 * mean(deltas):+.1f}",
                f"{100 * mean([row['gain'] for row in found]):.1f}",
                f"{100 * mean([row['forgetting'] for row in found]):.1f}",
                *("undefined" if r is None else f"{r:+.2f}" for r in ranks[method].values()),
            )
        )
    own, control = ranks["kd-tuned"]["complementary"], ranks["fine-tune"]["complementary"]
    low, high = _interval(records, "complementary", "kd-tuned", "fine-tune")
    return Finding(
        "What makes a good teacher",
        "A teacher's complementary knowledge predicts what the student learns. Same pairs; rank correlations "
        "of a student's change with each trait. fine-tune hears no teacher: what correlates there comes from "
        "the student alone, as a weak student has most to gain. Holds if the correlation with complementary "
        "knowledge is higher under tuned distillation than under fine-tune, beyond chance: the 95 % interval of the "
        "difference over pairs drawn again, 1,000 times. One seed.",
        (
            "method",
            "pairs",
            "change",
            "gain",
            "forgetting",
            "gap",
            "complementary",
            "label distance",
        ),
        rows,
        f"{'Holds' if low > 0 else 'Not beyond chance' if high > 0 else 'Does not hold'}: "
        + (
            f"{own:+.2f} under tuned distillation, {control:+.2f} with no teacher, a difference of {low:+.2f} to {high:+.2f}."
            if own is not None and control is not None
            else "a correlation is undefined."
        ),
    )


def _interval(records: Records, trait: str, one: str, other: str) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the difference between two methods' correlations."""
    by_pair = [
        {(r["partition"], r["seed"], r["teacher"], r["student"]): r for r in _rows(records, method)}
        for method in (one, other)
    ]
    shared = sorted(by_pair[0].keys() & by_pair[1].keys())
    generator = np.random.default_rng(0)
    found = []
    for _ in range(1000):
        drawn = [shared[i] for i in generator.integers(len(shared), size=len(shared))]
        ranks = [
            spearman([of[key][trait] for key in drawn], [of[key]["delta"] for key in drawn])
            for of in by_pair
        ]
        if ranks[0] is not None and ranks[1] is not None:
            found.append(ranks[0] - ranks[1])
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)
