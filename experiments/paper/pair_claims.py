"""Claims about pairs: when tuning matters, and which teachers are good."""

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
    rows = []
    for variant in records.variants(STUDY):
        record = records.record(STUDY, variant)
        for values in record["rows"]:
            row = dict(zip(record["columns"], values, strict=True))
            if row["method"] == method and row["delta"] is not None:
                rows.append({"partition": variant[0], **row})
    return rows


def when_tuning_matters(records: Records) -> Finding:
    """Does tuning matter less if the teacher is close to the student?"""
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
        f"{'Holds' if holds else 'Does not hold'}: {100 * gains[0]:+.2f} points in the third of the "
        f"smallest gaps, {100 * gains[-1]:+.2f} in that of the largest.",
    )


def good_teacher(records: Records) -> Finding:
    """What makes a good teacher."""
    rows = []
    ranks: dict[str, dict[str, float | None]] = {}
    for method in METHODS:
        measured = _rows(records, method)
        deltas = [row["delta"] for row in measured]
        # Compared with the control: training of the same student on the labels alone.
        ranks[method] = {
            trait: spearman([row[trait] for row in measured], deltas) for trait in TRAITS
        }
        rows.append(
            (
                method,
                str(len(measured)),
                f"{100 * mean(deltas):+.1f}",
                f"{100 * mean([row['gain'] for row in measured]):.1f}",
                f"{100 * mean([row['forgetting'] for row in measured]):.1f}",
                *("undefined" if r is None else f"{r:+.2f}" for r in ranks[method].values()),
            )
        )
    tuned, control = ranks["kd-tuned"]["complementary"], ranks["fine-tune"]["complementary"]
    low, high = _interval(records, "complementary", "kd-tuned", "fine-tune")
    return Finding(
        "What makes a good teacher",
        "A teacher's complementary knowledge predicts the student's gain. Same pairs; rank correlations "
        "of a student's change with each trait. fine-tune uses no teacher: its correlations come from "
        "the student alone, since a weak student has most to gain. Holds if the correlation with complementary "
        "knowledge is significantly higher under tuned distillation than under fine-tune, by the 95 % bootstrap interval "
        "of the difference over pairs (1,000 draws). One seed.",
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
        f"{'Holds' if low > 0 else 'Not significant' if high > 0 else 'Does not hold'}: "
        + (
            f"{tuned:+.2f} under tuned distillation, {control:+.2f} without a teacher; the interval of the difference is {low:+.2f} to {high:+.2f}."
            if tuned is not None and control is not None
            else "a correlation is undefined."
        ),
    )


def _interval(records: Records, trait: str, first: str, second: str) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the difference between two methods' correlations."""
    by_pair = [
        {(r["partition"], r["seed"], r["teacher"], r["student"]): r for r in _rows(records, method)}
        for method in (first, second)
    ]
    shared = sorted(by_pair[0].keys() & by_pair[1].keys())
    generator = np.random.default_rng(0)
    differences = []
    for _ in range(1000):
        drawn = [shared[i] for i in generator.integers(len(shared), size=len(shared))]
        ranks = [
            spearman([of[key][trait] for key in drawn], [of[key]["delta"] for key in drawn])
            for of in by_pair
        ]
        if ranks[0] is not None and ranks[1] is not None:
            differences.append(ranks[0] - ranks[1])
    low, high = np.quantile(differences, (0.025, 0.975))
    return float(low), float(high)
