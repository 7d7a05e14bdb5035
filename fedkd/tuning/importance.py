"""Which settings of a search matter: shares of the variance of its results."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial

from fedkd.tuning.arm_search import RUNS, runs_of
from fedkd.tuning.arm_space import ArmSpace
from fedkd.tuning.exchanges import SLACK, loss
from fedkd.tuning.trials import POINT

LEAST_TRIALS = 4
"""Number of trials with a result below which nothing is measured. Ours."""


def importances(trials: Sequence[FrozenTrial], space: ArmSpace) -> dict[str, float]:
    """Return the share of each setting in the variance of the results, by functional ANOVA.

    Hutter, Hoos & Leyton-Brown (2014), An Efficient Approach for Assessing Hyperparameter
    Importance. Results are cut at the cap of :class:`Limits`: beyond it trials were stopped, so
    that theirs are unknown. A trial that was stopped counts at least as the worst that finished.

    Returns:
        Shares that sum to 1, largest first; empty with too few trials or equal results.
    """
    measured = [trial for trial in trials if RUNS in trial.user_attrs]
    values = _values(measured)
    if len(values) < LEAST_TRIALS or len(set(values)) < 2:
        return {}
    distributions = _distributions(measured, space)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(direction="minimize")
        study.add_trials(
            [
                create_trial(
                    value=value,
                    params=dict(trial.user_attrs[POINT]),
                    distributions=dict(distributions),
                )
                for trial, value in zip(measured, values, strict=True)
            ]
        )
        shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {name: round(float(share), 4) for name, share in shares.items()}


def _values(trials: Sequence[FrozenTrial]) -> list[float]:
    losses = [loss(list(runs_of(trial).values())) for trial in trials]
    is_finished = [trial.state == TrialState.COMPLETE for trial in trials]
    finished = [value for value, done in zip(losses, is_finished, strict=True) if done]
    if not finished:
        return []
    cap, worst = SLACK * min(finished), max(finished)
    return [
        min(cap, value if done else max(value, worst))
        for value, done in zip(losses, is_finished, strict=True)
    ]


def _distributions(
    trials: Sequence[FrozenTrial], space: ArmSpace
) -> Mapping[str, BaseDistribution]:
    """Return one distribution for each setting: trials may have had different ranges."""
    ranges = space.ranges(trial.user_attrs[POINT] for trial in trials)
    return {name: each.distribution() for name, each in ranges.items()} | {
        name: CategoricalDistribution(options) for name, options in space.choices().items()
    }
