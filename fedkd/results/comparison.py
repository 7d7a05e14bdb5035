"""Savings of an arm against a baseline over seeds; unreached runs count with their budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedkd.results.record import RunRecord

BOOTSTRAP_SEEDS = 5
BOOTSTRAP_DRAWS = 10_000


def compare_arms(
    runs: Sequence[RunRecord],
    *,
    baselines: Sequence[str],
    targets: Sequence[float],
) -> list[dict[str, Any]]:
    """Compare every arm with every baseline at every target.

    Args:
        runs: all runs of the study; an arm is compared on the seeds that it shares with the
            baseline.
        baselines: names of arms, in the order of the study.
        targets: as in the study file. A run's own ``targets`` are the corresponding accuracies, in
            the same order; relative targets differ between seeds.

    Returns:
        Rows of ``summary.json``'s ``comparison``.
    """
    by_arm: dict[str, dict[int, RunRecord]] = {}
    for run in runs:
        by_arm.setdefault(run.arm, {})[run.seed] = run
    rows = []
    for arm, runs_of_arm in by_arm.items():
        for baseline in baselines:
            if baseline == arm or baseline not in by_arm:
                continue
            seeds = [seed for seed in runs_of_arm if seed in by_arm[baseline]]
            pairs = [(runs_of_arm[seed], by_arm[baseline][seed]) for seed in seeds]
            rows += [
                {"arm": arm, "baseline": baseline, "target": target, **_row(pairs, index)}
                for index, target in enumerate(targets)
                if pairs
            ]
    return rows


def _row(pairs: Sequence[tuple[RunRecord, RunRecord]], index: int) -> dict[str, Any]:
    exchanges = np.array([[_exchanges(run, index) for run in pair] for pair in pairs], float)
    reached = [[run.reached(run.targets[index]) is not None for run in pair] for pair in pairs]
    arm_reached, baseline_reached = (sum(column) for column in zip(*reached, strict=True))
    missed = (arm_reached < len(pairs), baseline_reached < len(pairs))
    ceiling_exchanges = sum(arm.exchanges_before_round_1 for arm, _ in pairs)
    all_timed = not any(run.cached for pair in pairs for run in pair)
    total = exchanges.sum(0)
    return {
        "num_seeds": len(pairs),
        "reached": {"arm": arm_reached, "baseline": baseline_reached},
        "exchanges": {"arm": int(total[0]), "baseline": int(total[1])},
        "exchanges_saved_pct": _saved(*total),
        "ceiling_pct": _saved(ceiling_exchanges, total[1]),
        "bound": {
            (False, False): "exact",
            (False, True): "at_least",
            (True, False): "at_most",
            (True, True): "undefined",
        }[missed],
        "range": _range(exchanges),
        "bytes_saved_pct": _saved(*_totals(pairs, index, "bytes")),
        "seconds_saved_pct": _saved(*_totals(pairs, index, "seconds")) if all_timed else None,
    }


def _exchanges(run: RunRecord, index: int) -> int:
    """Exchanges to the target; an unreached run counts with its whole budget."""
    spent = run.cost(run.targets[index])["exchanges"]
    return run.budget if spent is None else int(spent)


def _totals(
    pairs: Sequence[tuple[RunRecord, RunRecord]], index: int, figure: str
) -> tuple[float, float]:
    """Sum bytes or seconds to the target; an unreached run counts with its total."""
    totals = [0.0, 0.0]
    for pair in pairs:
        for side, run in enumerate(pair):
            spent = run.cost(run.targets[index])[figure]
            if spent is None:
                figures = {
                    "bytes": lambda p: p.bytes_up + p.bytes_down,
                    "seconds": lambda p: p.seconds,
                }
                spent = sum(figures[figure](point) for point in run.curve)
            totals[side] += float(spent)
    return totals[0], totals[1]


def _saved(arm: float, baseline: float) -> float | None:
    """Return 100 (1 - arm / baseline), or None if the baseline's cost is zero."""
    return round(100 * (1 - float(arm) / float(baseline)), 4) if baseline > 0 else None


def _range(exchanges: np.ndarray[Any, Any]) -> list[float] | None:
    """Return the range over seeds of the saving, in per cent.

    Below five seeds this is minimum and maximum; from five on a 95 % interval by the paired
    bootstrap over seeds (10,000 draws, fixed seed).
    """
    if not (exchanges[:, 1] > 0).all():
        return None
    if len(exchanges) < BOOTSTRAP_SEEDS:
        each = 100 * (1 - exchanges[:, 0] / exchanges[:, 1])
        return [round(float(each.min()), 4), round(float(each.max()), 4)]
    from scipy.stats import bootstrap  # it takes longer to import than a small study to compare

    interval = bootstrap(
        (exchanges[:, 0], exchanges[:, 1]),
        lambda arm, baseline, axis: 100 * (1 - arm.sum(axis) / baseline.sum(axis)),
        paired=True,
        n_resamples=BOOTSTRAP_DRAWS,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return [round(float(interval.low), 4), round(float(interval.high), 4)]
