"""Trials as the file of a search holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import optuna
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from fedkd.errors import FedKDError, UserError
from fedkd.tuning.space import Value
from fedkd.tuning.student import Scores
from fedkd.util.seeding import derive_seed

Result = TypeVar("Result")

POINT, SCORES, ACCURACIES, PROBLEM = "point", "scores", "validation", "problem"
"""Attributes of a trial: its parameters as used, its score by seed, the accuracy by seed of the
same students on validation data where the objective is another, and why it has no result."""


def make_sampler(
    purpose: str, number: int, fixed: Mapping[str, Value] | None, **options: Any
) -> BaseSampler:
    """Return the sampler of a trial; options are those of the Tree-structured Parzen Estimator.

    Optuna does not store a sampler's random state, so each trial has a sampler of its own, seeded
    by its purpose and number: a search that was killed draws what it would have drawn. The grid's
    points are fixed one by one, as Optuna's own GridSampler regards a point as done whose trial was
    killed.
    """
    seed = derive_seed(0, purpose, round_number=number) % 2**32
    if fixed is not None:
        return PartialFixedSampler(dict(fixed), RandomSampler(seed))
    return TPESampler(seed=seed, **options)


def or_failure(work: Callable[[], Result]) -> Result | FedKDError:
    """Return the result of a trial's work, or the error if its settings made it fail.

    Raises:
        UserError: what the settings ask for is impossible.
    """
    try:
        return work()
    except UserError:
        raise
    except FedKDError as error:
        return error


def give_up(search: optuna.Study, trial: optuna.Trial, error: FedKDError) -> None:
    """End a trial without a result; it would diverge again."""
    trial.set_user_attr(PROBLEM, str(error))
    search.tell(trial, state=TrialState.PRUNED)


def store_scores(trial: optuna.Trial, seed: int, scores: Scores) -> None:
    """Store one seed's scores with the trial."""
    for what, value in ((SCORES, scores.score), (ACCURACIES, scores.accuracy)):
        if value is not None:
            trial.set_user_attr(what, {**trial.user_attrs.get(what, {}), str(seed): value})


def best_trial(trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """Return the trial with the best result, of equals the first; None if none has any."""
    complete = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    return max(complete, key=lambda t: (t.value, -t.number), default=None)


def best_value(trials: Iterable[FrozenTrial]) -> float | None:
    """Return the best result; None if no trial has any."""
    best = best_trial(trials)
    return None if best is None else best.value


def no_result(arm: str, trials: Iterable[FrozenTrial]) -> FedKDError:
    """Return the error of a search of which no trial has a result, with the first reason."""
    problems = [str(t.user_attrs[PROBLEM]) for t in trials if PROBLEM in t.user_attrs]
    why = f" ({problems[0]})" if problems else ""
    return FedKDError(f"arms.{arm}: no trial of the search has a result{why}")
