"""Trials as the file of a search holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import optuna
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from fedkd.errors import FedKDError
from fedkd.tuning.space import Value
from fedkd.tuning.student import Scores
from fedkd.util.seeding import derive_seed

POINT, SCORES, ACCURACIES, PROBLEM = "point", "scores", "validation", "problem"
"""Attributes of a trial: its parameters as used, its score by seed, the accuracy by seed of the
same students on validation data where the objective is another, and why it has no result."""


def make_sampler(arm: str, ended: int, fixed: Mapping[str, Value] | None) -> BaseSampler:
    """Return the sampler of the next trial.

    Optuna does not store a sampler's random state, so each trial has a sampler of its own, seeded
    by the number of trials that have ended: a search that was killed draws what it would have
    drawn. The grid's points are fixed one by one, as Optuna's own GridSampler regards a point as
    done whose trial was killed.
    """
    seed = derive_seed(0, f"tuning {arm}", round_number=ended) % 2**32
    if fixed is not None:
        return PartialFixedSampler(dict(fixed), RandomSampler(seed))
    return TPESampler(seed=seed, multivariate=True, group=True)


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
