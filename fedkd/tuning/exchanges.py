"""How a trial of a whole arm is judged: exchanges to the highest target, on validation data.

A trial is stopped early by two rules. It cannot be the best once it has more exchanges than the
best trial: the adaptive capping of Hutter et al. (2009), JAIR 36. It is unlikely to be the best if
its accuracy at a quarter or half of the rounds is below the median of earlier trials: the rule of
Golovin et al. (2017), Google Vizier.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

SLACK = 1.5
"""A trial is stopped after this multiple of the best trial's exchanges. Above 1, so that the
importances of settings rest on more than the best trials. Ours."""
LEAST_TRIALS = 4
"""Number of finished trials before a trial is stopped for its accuracy. Ours."""
_ACCURACY_WEIGHT = 0.5
"""Below the difference of one exchange: accuracy only decides between equal numbers."""


@dataclass(frozen=True)
class SeedRun:
    """The curve of one seed of a trial, on validation data.

    Attributes:
        before: exchanges before round 1.
        max_rounds: number of rounds of the whole run.
        target: accuracy to reach.
        accuracies: by round; the first is the start's.
        stopped: whether the run was stopped early because the trial cannot be the best.
    """

    before: int
    max_rounds: int
    target: float
    accuracies: tuple[float, ...]
    stopped: bool = False

    @property
    def exchanges(self) -> int | None:
        """Exchanges to the target; None if it was not reached."""
        reached = (n for n, value in enumerate(self.accuracies) if value >= self.target)
        first = next(reached, None)
        return None if first is None else self.before + first

    @property
    def bound(self) -> int:
        """Exchanges to the target, or a lower bound: at least the rounds that were made.

        A whole run that missed the target counts with its whole budget.
        """
        if self.exchanges is not None:
            return self.exchanges
        return self.before + (len(self.accuracies) if self.stopped else self.max_rounds)

    @property
    def best_accuracy(self) -> float:
        """The highest accuracy of the curve."""
        return max(self.accuracies, default=0.0)

    def best_until(self, number: int) -> float | None:
        """Return the highest accuracy up to a round; None if the run ended before.

        A run that had reached its target by then counts with its best accuracy.
        """
        if len(self.accuracies) <= number and self.exchanges is None:
            return None
        return max(self.accuracies[: number + 1])


def loss(runs: Sequence[SeedRun]) -> float:
    """Return what a search minimises: exchanges over all seeds; of equals, the better accuracy."""
    error = 1 - sum(run.best_accuracy for run in runs) / len(runs)
    return sum(run.bound for run in runs) + _ACCURACY_WEIGHT * error


@dataclass(frozen=True)
class Limits:
    """When a trial is stopped, given the trials before it.

    Attributes:
        cap: exchanges over all seeds; None as long as no trial has finished.
        medians: by seed and round, an accuracy; empty with few finished trials.
    """

    cap: float | None = None
    medians: Mapping[tuple[int, int], float] = field(default_factory=dict)

    @classmethod
    def of(cls, finished: Iterable[Mapping[int, SeedRun]]) -> Limits:
        """Return the limits that finished trials set; each maps seeds to runs."""
        trials = [dict(trial) for trial in finished]
        if not trials:
            return cls(None, {})
        best = min(trials, key=lambda trial: loss(list(trial.values())))
        cap = SLACK * sum(run.bound for run in best.values())
        if len(trials) < LEAST_TRIALS:
            return cls(cap, {})
        medians = {}
        for seed, example in best.items():
            for number in {example.max_rounds // 4, example.max_rounds // 2} - {0}:
                values = [trial[seed].best_until(number) for trial in trials]
                medians[seed, number] = median(value for value in values if value is not None)
        return cls(cap, medians)

    def exclude(self, spent: int, seed: int, run: SeedRun) -> bool:
        """Whether a trial cannot be the best, or is unlikely to be.

        ``spent`` are the exchanges of the trial's seeds before this one, whose target is
        not reached.
        """
        number = len(run.accuracies) - 1
        if self.cap is not None and spent + run.before + number + 1 > self.cap:
            return True
        limit = self.medians.get((seed, number))
        return limit is not None and run.best_accuracy < limit
