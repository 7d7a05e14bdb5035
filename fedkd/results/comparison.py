"""Savings of an arm against a baseline over seeds.

A run that did not reach the target counts with its budget, which bounds the saving. So does a run
that started from a file, whose making may have cost exchanges that are not known. A run that failed
leaves the saving undefined: seeds that failed are not those on which an arm does well.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from fedkd.results.interval import LEAST_SEEDS, coverage_of, saving_interval
from fedkd.results.record import RunRecord

BOUNDS = {
    (False, False): "exact",
    (False, True): "at_least",
    (True, False): "at_most",
    (True, True): "undefined",
}
"""What a saving is, by whether the exchanges of the arm and of the baseline are but a lower bound:
a run missed the target, or started from a file."""


def compare_arms(
    runs: Sequence[RunRecord],
    *,
    baselines: Sequence[str],
    targets: Sequence[float],
    failed: Collection[tuple[str, int]] = (),
) -> list[dict[str, Any]]:
    """Compare every arm with every baseline at every target.

    Args:
        runs: all complete runs of the study; an arm is compared on the seeds that it shares with
            the baseline.
        baselines: names of arms, in the order of the study.
        targets: as in the study file. A run's own ``targets`` are the corresponding accuracies, in
            the same order; relative targets differ between seeds.
        failed: arm and seed of every run that failed or stopped without a quorum. A row counts
            them, and its ``bound`` is ``undefined`` if there are any on either side.

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
            failures = {
                side: sum(name == of for name, _ in failed)
                for side, of in (("arm", arm), ("baseline", baseline))
            }
            rows += [
                {"arm": arm, "baseline": baseline, "target": target, **_row(pairs, index, failures)}
                for index, target in enumerate(targets)
                if pairs
            ]
    return rows


def _row(
    pairs: Sequence[tuple[RunRecord, RunRecord]], index: int, failures: dict[str, int]
) -> dict[str, Any]:
    exchanges = np.array([[_exchanges(run, index) for run in pair] for pair in pairs], float)
    reached = [[run.reached(run.targets[index]) is not None for run in pair] for pair in pairs]
    arm_reached, baseline_reached = (sum(column) for column in zip(*reached, strict=True))
    uncharged = [sum(run.uncharged for run in runs) for runs in zip(*pairs, strict=True)]
    least = (
        arm_reached < len(pairs) or uncharged[0] > 0,
        baseline_reached < len(pairs) or uncharged[1] > 0,
    )
    ceiling_exchanges = sum(arm.exchanges_before_round_1 for arm, _ in pairs)
    all_timed = not any(run.cached for pair in pairs for run in pair)
    total = exchanges.sum(0)
    spread, kind = _range(exchanges)
    return {
        "num_seeds": len(pairs),
        "failed": failures,
        "reached": {"arm": arm_reached, "baseline": baseline_reached},
        "uncharged": {"arm": uncharged[0], "baseline": uncharged[1]},
        "exchanges": {"arm": int(total[0]), "baseline": int(total[1])},
        "exchanges_saved_pct": _saved(*total),
        "ceiling_pct": _saved(ceiling_exchanges, total[1]),
        "bound": "undefined" if any(failures.values()) else BOUNDS[least],
        "range": spread,
        "range_kind": kind,
        "coverage": coverage_of(len(pairs)) if kind == "interval" else None,
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


def _range(exchanges: np.ndarray[Any, Any]) -> tuple[list[float] | None, str | None]:
    """Return the range of the saving over seeds, in per cent, and its kind.

    ``extremes``: minimum and maximum over one or two seeds. ``interval``: from three seeds on, the
    95 % interval of :func:`fedkd.results.interval.saving_interval`.
    """
    arm, baseline = exchanges.T
    if len(exchanges) >= LEAST_SEEDS and baseline.sum() > 0:
        low, high = saving_interval(arm, baseline)
        return [round(float(low), 4), round(float(high), 4)], "interval"
    if len(exchanges) < LEAST_SEEDS and (baseline > 0).all():
        each = 100 * (1 - arm / baseline)
        return [round(float(each.min()), 4), round(float(each.max()), 4)], "extremes"
    return None, None
