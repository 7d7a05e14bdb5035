"""The results of the search for whole arms: a summary of all trials, the tuned study, a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from fedkd.config import Arm, Study, Tuned
from fedkd.tuning.arm_search import best_arm_trial, runs_of
from fedkd.tuning.arm_space import ArmSpace, Point, at_edge
from fedkd.tuning.importance import importances
from fedkd.tuning.outcome import count_states, describe_settings, to_yaml
from fedkd.tuning.trials import POINT, PROBLEM, no_result

DATA_FILE = "tuning.json"
SHOWN_IMPORTANCES = 3
_START = "consolidation."
"""Beginning of the keys of a start's settings."""


def summarise_arm(arm: str, trials: Sequence[FrozenTrial], space: ArmSpace) -> dict[str, Any]:
    """Return the results of one arm as plain values.

    Raises:
        FedKDError: no trial has a result.
    """
    best = best_arm_trial(trials)
    if best is None:
        raise no_result(arm, trials)
    ranges = space.ranges(trial.user_attrs[POINT] for trial in trials)
    by_start = all(run.exchanges == run.before for run in runs_of(best).values())
    point = _with_own_rounds(best.user_attrs[POINT], space) if by_start else best.user_attrs[POINT]
    settings = space.settings(point)
    return {
        "best": {**_entry(best), "settings": point},
        "own": _entry(trials[0]),
        "reached_by_start": by_start,
        "at_edge": [
            key for key in at_edge(point, ranges) if not by_start or key.startswith(_START)
        ],
        "ranges": {name: [each.low, each.high] for name, each in ranges.items()},
        "importances": importances(trials, space),
        "settings": settings.model_dump(mode="json", exclude_none=True),
        "trials": [_entry(trial) for trial in trials],
    }


def _with_own_rounds(point: Point, space: ArmSpace) -> Point:
    """Return a trial's settings of the start, and the arm's own of all else.

    Where the start alone reaches the target on every seed, what was drawn for the rounds is by
    chance. It would decide the runs of seeds whose start does not reach it.
    """
    own = space.own_point()
    return {key: value if key.startswith(_START) else own[key] for key, value in point.items()}


def tuned_study(study: Study, results: Mapping[str, Any]) -> str:
    """Return the study with the best settings of every tuned arm, as YAML that runs."""
    arms = dict(study.arms)
    for name, arm in results["arms"].items():
        tuned = Tuned(
            trials=len(arm["trials"]), seeds=list(results["seeds"]), at_edge=arm["at_edge"]
        )
        arms[name] = Arm.model_validate(arm["settings"]).model_copy(update={"tuned": tuned})
    return to_yaml(study.model_copy(update={"arms": arms}), _header(results))


def print_arms(results: Mapping[str, Any], console: Console) -> None:
    """Print the best trial of each arm, and which settings matter."""
    table = Table(title="Best settings on validation data", title_justify="left")
    for column in ("arm", "trials", "exchanges", "before tuning", "settings", "most important"):
        table.add_column(column, overflow="fold")
    for name, arm in results["arms"].items():
        table.add_row(
            name,
            _count_trials(arm["trials"]),
            _exchanges(arm["best"]),
            _exchanges(arm["own"]),
            describe_settings(arm["best"]["settings"]),
            ", ".join(
                f"{key} {share:.0%}"
                for key, share in list(arm["importances"].items())[:SHOWN_IMPORTANCES]
            ),
        )
    console.print(table)
    for line in _legend(results):
        console.print(line, soft_wrap=True)


def _legend(results: Mapping[str, Any]) -> list[str]:
    seeds = ", ".join(str(seed) for seed in results["seeds"])
    targets = ", ".join(f"{target:.1%}" for target in dict.fromkeys(results["targets"].values()))
    lines = [
        (
            f"exchanges: to {targets} on validation data, summed over seeds {seeds}; >n: the "
            "target was missed within n exchanges. The best of many trials is optimistic."
        ),
        (
            "most important: share of the variance of the exchanges, up to 1.5 times the best "
            "(functional ANOVA)."
        ),
    ]
    lines += [
        f"{name}: the start alone reached the target on every seed; the settings of its rounds are "
        "the study's own."
        for name, arm in results["arms"].items()
        if arm["reached_by_start"]
    ]
    lines += [
        f"{name}: the best value of {', '.join(arm['at_edge'])} lies at the edge of the range that "
        "was searched; more trials extend it."
        for name, arm in results["arms"].items()
        if arm["at_edge"]
    ]
    return lines


def _header(results: Mapping[str, Any]) -> list[str]:
    lines = [f"{results['study']}, tuned by fedkd tune --arms. No test example was used."]
    lines += _legend(results)[:1]
    for name, arm in results["arms"].items():
        lines.append(
            f"{name}, {_count_trials(arm['trials'])}: {_exchanges(arm['best'])} exchanges with "
            f"{describe_settings(arm['best']['settings'])}; before tuning {_exchanges(arm['own'])}."
        )
    return lines


def _entry(trial: FrozenTrial) -> dict[str, Any]:
    runs = runs_of(trial)
    problem = trial.user_attrs.get(PROBLEM)
    state = {TrialState.COMPLETE: "finished"}.get(trial.state, "failed" if problem else "stopped")
    return {
        "number": trial.user_attrs["slot"],
        "state": state,
        "settings": trial.user_attrs[POINT],
        "exchanges": {str(seed): run.exchanges for seed, run in runs.items()},
        "bounds": {str(seed): run.bound for seed, run in runs.items()},
        "accuracy": {str(seed): run.best_accuracy for seed, run in runs.items()},
        "problem": problem,
    }


def _count_trials(trials: Sequence[Mapping[str, Any]]) -> str:
    return f"{len(trials)} trials: {count_states(trials)}"


def _exchanges(entry: Mapping[str, Any]) -> str:
    if not entry["bounds"]:
        return "failed"
    missed = None in entry["exchanges"].values()
    return f"{'>' if missed else ''}{sum(entry['bounds'].values())}"
