"""Curves of runs against their costs, bands over seeds, and thinning of long curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedkd.results.folder import Results
from fedkd.results.points import flat_point, point_value

MEGABYTE = 1e6
MAX_POINTS = 20_000
"""Points of all single runs in one plot, so that a browser pans and zooms smoothly."""
MAX_POINTS_OF_OTHERS = 5_000
"""Likewise, for a metric other than the study's: a page holds them all."""
MAX_BAND_POINTS = 200


@dataclass(frozen=True)
class Curve:
    """One run's metric over its cumulative costs; all sequences are of the same length.

    Points at which the metric is not known are left out.

    Attributes:
        exchanges: cumulative round trips, those before round 1 included.
        megabytes: cumulative traffic in both directions, in 10^6 bytes.
        values: of the global model, in [0, 1].
        rounds: of the points.
    """

    run: dict[str, Any]
    exchanges: tuple[float, ...]
    megabytes: tuple[float, ...]
    values: tuple[float, ...]
    rounds: tuple[int, ...]

    @classmethod
    def of(cls, run: dict[str, Any], metric: str = "accuracy") -> Curve:
        """Make the curve of one of the summary's runs."""
        rows = [
            (row, value)
            for row, point in zip(tidy_rows([run]), run["curve"], strict=True)
            if (value := point_value(point, metric)) is not None
        ]
        return cls(
            run,
            tuple(float(row["exchanges"]) for row, _ in rows),
            tuple(row["bytes_so_far"] / MEGABYTE for row, _ in rows),
            tuple(value for _, value in rows),
            tuple(row["round"] for row, _ in rows),
        )

    def costs(self, axis: str) -> tuple[float, ...]:
        """Return the costs in ``exchanges`` or ``megabytes``."""
        return self.exchanges if axis == "exchanges" else self.megabytes

    def reached(self) -> list[int]:
        """Return the indices of the points at which a target was first reached."""
        rounds = {t["round"] for t in self.run["targets"] if t["round"] is not None}
        return [i for i, number in enumerate(self.rounds) if number in rounds]

    @property
    def censored(self) -> bool:
        """Whether the run ended without reaching one of its targets."""
        return any(target["round"] is None for target in self.run["targets"])


@dataclass(frozen=True)
class Band:
    """Mean, minimum and maximum of a metric over seeds against a cost."""

    costs: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def tidy_rows(runs: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Yield one row per run and round: the round's own values, and cumulative costs.

    A metric that is not a value of the point itself is a column of its own.
    """
    for run in runs:
        sent, seconds = 0, 0.0
        for point in run["curve"]:
            sent += point["bytes_up"] + point["bytes_down"]
            seconds += point["seconds"]
            yield {
                "arm": run["arm"],
                "seed": run["seed"],
                "round": point["round"],
                "exchanges": point["round"] + run["exchanges_before_round_1"],
                **flat_point(point),
                "bytes_so_far": sent,
                "seconds_so_far": seconds,
                "cached": run["cached"],
            }


def curves_of(results: Results, metric: str) -> dict[str, list[Curve]]:
    """Return the curves of every arm in a metric, without those that have no value of it."""
    return {
        arm: [curve for run in results.runs(arm) if (curve := Curve.of(run, metric)).values]
        for arm in results.arms
    }


def band(curves: Sequence[Curve], axis: str) -> Band | None:
    """Return the band of several runs, up to the end of the shortest.

    Beyond that end the mean would be over the slower seeds alone. Between two rounds a run has
    the value of the earlier one.
    """
    if not curves:
        return None
    start = max(curve.costs(axis)[0] for curve in curves)
    end = min(curve.costs(axis)[-1] for curve in curves)
    grid = np.unique(np.concatenate([curve.costs(axis) for curve in curves]))
    grid = grid[(grid >= start) & (grid <= end)]
    if not len(grid):
        return None
    if len(grid) > MAX_BAND_POINTS:
        grid = grid[np.linspace(0, len(grid) - 1, MAX_BAND_POINTS).round().astype(int)]
    values = np.array(
        [np.array(c.values)[np.searchsorted(c.costs(axis), grid, side="right") - 1] for c in curves]
    )
    return Band(*(_rounded(row) for row in (grid, values.mean(0), values.min(0), values.max(0))))


def thin(values: Sequence[float], limit: int, keep: Iterable[int] = ()) -> list[int]:
    """Return about ``limit`` indices of ``values`` that keep all peaks and dips.

    Every bucket keeps its minimum and maximum; the ends and ``keep`` are always included.
    """
    total = len(values)
    if total <= limit:
        return list(range(total))
    chosen = {0, total - 1, *keep}
    for bucket in np.array_split(np.arange(total), max(1, limit // 2)):
        part = np.array(values)[bucket]
        chosen |= {int(bucket[part.argmin()]), int(bucket[part.argmax()])}
    return sorted(chosen)


def _rounded(values: np.ndarray[Any, Any]) -> list[float]:
    return [round(float(value), 5) for value in values]
