"""Figures from the records: means and ranges over seeds, and selection on validation data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.paper.plan import Run, plan
from experiments.paper.record import is_recorded, load


def mean(values: Sequence[float]) -> float:
    """Return the mean of at least one value."""
    return sum(values) / len(values)


@dataclass(frozen=True)
class Spread:
    """A mean and its range over seeds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        return cls(mean(values), min(values), max(values))

    def percent(self) -> str:
        """Format as per cent with the range."""
        return f"{100 * self.mean:.1f} ({100 * self.low:.1f} to {100 * self.high:.1f})"


def runs_of(record: dict[str, Any], arm: str) -> list[dict[str, Any]]:
    """Return an arm's runs in a record, one per seed."""
    return [run for run in record["runs"] if run["arm"] == arm]


class Records:
    """The records of the plan that exist, up to date or not."""

    def __init__(self) -> None:
        kept = [run for run in plan() if run.record.is_file()]
        self._records = {(run.study, run.variant): load(run) for run in kept}
        self._outdated = {(run.study, run.variant) for run in kept if not is_recorded(run)}

    def outdated(self) -> dict[str, int]:
        """Return the number of records of another study or split rule, by version of fedkd."""
        versions = (
            self._records[key].get("versions", {}).get("fedkd", "0.1.0") for key in self._outdated
        )
        return dict(Counter(versions).most_common())

    def processors(self) -> dict[str, int]:
        """Return the number of records by processor, for records that name one."""
        known = (each["processor"] for each in self._records.values() if "processor" in each)
        return dict(Counter(known).most_common())

    def variants(self, study: str) -> list[tuple[str, ...]]:
        """Return a study's variants, in the order of the plan."""
        return [variant for name, variant in self._records if name == study]

    def missing(self) -> list[Run]:
        """Return the runs without a record."""
        return [run for run in plan() if (run.study, run.variant) not in self._records]

    def record(self, study: str, variant: tuple[str, ...]) -> dict[str, Any]:
        """Return one whole record."""
        return self._records[study, variant]

    def runs(self, study: str, variant: tuple[str, ...], arm: str) -> list[dict[str, Any]]:
        """Return an arm's runs, one per seed."""
        return runs_of(self._records[study, variant], arm)

    def starts(self, study: str, variant: tuple[str, ...], arm: str) -> list[float]:
        """Return the accuracies before any round, one per seed."""
        return [run["accuracy"][0] for run in self.runs(study, variant, arm)]

    def start(self, study: str, variant: tuple[str, ...], arm: str) -> Spread | None:
        """Summarise the accuracy before any round; None if the arm failed on every seed."""
        values = self.starts(study, variant, arm)
        return Spread.of(values) if values else None

    def tuned(self, study: str, variant: tuple[str, ...], arms: Sequence[str]) -> list[float]:
        """Return per seed the initial accuracy of the best arm on validation data."""
        by_seed: dict[int, list[dict[str, Any]]] = {}
        for arm in arms:
            for run in self.runs(study, variant, arm):
                by_seed.setdefault(run["seed"], []).append(run)
        chosen = [max(runs, key=lambda run: run["validation"] or 0) for runs in by_seed.values()]
        return [run["accuracy"][0] for run in chosen]

    def flips(self, study: str, variant: tuple[str, ...], arm: str) -> tuple[Spread, Spread] | None:
        """Summarise gain and forgetting of consolidation."""
        runs = [run["student"] for run in self.runs(study, variant, arm) if run["student"]]
        if not runs:
            return None
        return Spread.of([r["gain"] for r in runs]), Spread.of([r["forgetting"] for r in runs])
