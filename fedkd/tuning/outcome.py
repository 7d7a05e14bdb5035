"""The results of the search for a start: a JSON of all trials, the tuned study, a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from fedkd.config import Consolidation, Study, Tuned
from fedkd.config.study_file import dump_study, parse_study
from fedkd.registry import METRICS
from fedkd.tuning.objective import Judge, agreement, describe_judge
from fedkd.tuning.space import Space
from fedkd.tuning.store import Kind
from fedkd.tuning.trials import ACCURACIES, POINT, PROBLEM, SCORES, best_trial, no_result
from fedkd.util.files import write_json, write_text

SCHEMA = 1
TUNED_FILE = "tuned.yaml"
SHOWN = 5


@dataclass(frozen=True)
class Searched:
    """The results of a search, and their files; no study if that of arms was interrupted."""

    results: dict[str, Any]
    data: Path
    tuned: Path | None

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C interrupted the search."""
        return bool(self.results["interrupted"])


def summarise(
    study: Study, arm: str, trials: Sequence[FrozenTrial], space: Space, *, kind: Kind, judge: Judge
) -> dict[str, Any]:
    """Return the results as plain values.

    Raises:
        FedKDError: no trial has a result.
    """
    best = best_trial(trials)
    if best is None:
        raise no_result(arm, trials)
    own = [t for t in trials if t.state == TrialState.COMPLETE and _is_own(t, space)]
    compared = [t for t in trials if t.state == TrialState.COMPLETE and ACCURACIES in t.user_attrs]
    return {
        "schema": SCHEMA,
        "study": study.name,
        "arm": arm,
        "search": kind,
        "judge": judge,
        "metric": study.metric,
        "judged_by": describe_judge(judge, study.metric),
        "seeds": study.seeds,
        "best": _entry(best),
        "own": _entry(own[0]) if own else None,
        "consolidation": space.settings(best.user_attrs[POINT]).model_dump(
            mode="json", exclude_none=True
        ),
        "agreement": agreement(
            [float(t.value or 0) for t in compared], [_accuracy(t) for t in compared]
        )
        if judge != "validation" and study.data.validation > 0
        else None,
        "trials": [_entry(trial) for trial in trials],
    }


def tuned_study(study: Study, results: dict[str, Any]) -> str:
    """Return the study with the best settings in place of the arm's own, as YAML that runs."""
    arm = results["arm"]
    settings = Consolidation.model_validate(results["consolidation"])
    ended = [entry for entry in results["trials"] if entry["state"] != "killed"]
    tuned_by = Tuned(trials=len(ended), seeds=results["seeds"])
    changed = study.arms[arm].model_copy(update={"consolidation": settings, "tuned": tuned_by})
    tuned = study.model_copy(update={"arms": {**study.arms, arm: changed}})
    return to_yaml(tuned, _header(results))


def to_yaml(tuned: Study, header: Sequence[str]) -> str:
    """Return a tuned study as YAML below lines of comment."""
    text = "".join(f"# {line}\n" for line in header) + dump_study(tuned)
    if parse_study(text) != tuned:
        raise RuntimeError("the tuned study changes when it is written and read")
    return text


def write_outcome(study: Study, results: dict[str, Any], folder: Path) -> Searched:
    """Write ``tuned.yaml`` and ``tune-<arm>.json``."""
    tuned, data = folder / TUNED_FILE, folder / f"tune-{results['arm']}.json"
    write_text(tuned, tuned_study(study, results))
    write_json(data, results)
    return Searched(results, data, tuned)


def print_outcome(results: dict[str, Any], console: Console) -> None:
    """Print the best trials, the arm's own settings, and what the scores are."""
    table = Table(title=f"{results['arm']}: best settings", title_justify="left")
    for column in ("trial", "score", "range over seeds", "settings"):
        table.add_column(column, overflow="fold")
    own = results["own"]
    ranked = [t for t in results["trials"] if t["state"] == "finished"]
    ranked.sort(key=lambda t: (-t["value"], t["number"]))
    shown = ranked[:SHOWN] + ([own] if own and own not in ranked[:SHOWN] else [])
    for entry in shown:
        name = f"{entry['number']} (own)" if own and entry["number"] == own["number"] else ""
        table.add_row(
            name or str(entry["number"]),
            f"{entry['value']:.1%}",
            _span(entry),
            describe_settings(entry["settings"]),
        )
    console.print(table)
    console.print(f"Scores: {results['judged_by']}.", soft_wrap=True)
    if results["agreement"]:
        console.print(_agreement_sentence(results), soft_wrap=True)


def _header(results: dict[str, Any]) -> list[str]:
    best, own = results["best"], results["own"]
    seeds = ", ".join(str(seed) for seed in results["seeds"])
    chosen = describe_settings(best["settings"])
    lines = [
        f"{results['study']}, its arm {results['arm']} tuned by fedkd tune.",
        f"Search {results['search']}, seeds {seeds}; trials: {count_states(results['trials'])}.",
        f"Score: {results['judged_by']}. No test example was used.",
        f"Best, trial {best['number']}: {best['value']:.4f} ({_span(best)}): {chosen}.",
    ]
    if own:
        lines.append(f"The arm's own settings, trial {own['number']}: {own['value']:.4f}.")
    lines.append("The score of the best of many trials is optimistic.")
    if results["agreement"]:
        lines.append(_agreement_sentence(results))
    return lines


def _agreement_sentence(results: dict[str, Any]) -> str:
    measured, metric = results["agreement"], METRICS[results["metric"]]
    if measured["regret"] is None:
        return "No trial was also measured on validation data."
    rank = "undefined" if measured["spearman"] is None else f"{measured['spearman']:.2f}"
    return (
        f"Against validation {metric} over the same {measured['trials']} trials: rank correlation "
        f"(Spearman) {rank}; the choice is {100 * measured['regret']:.1f} points below the best."
    )


def _entry(trial: FrozenTrial) -> dict[str, Any]:
    attributes = trial.user_attrs
    state = {
        TrialState.COMPLETE: "finished",
        TrialState.PRUNED: "diverged" if PROBLEM in attributes else "pruned",
    }.get(trial.state, "killed")
    return {
        "number": trial.number,
        "state": state,
        "value": trial.value,
        "settings": attributes.get(POINT, {}),
        "scores": attributes.get(SCORES, {}),
        "validation": attributes.get(ACCURACIES, {}),
        "problem": attributes.get(PROBLEM),
    }


def _is_own(trial: FrozenTrial, space: Space) -> bool:
    own = space.own_point()
    point = trial.user_attrs.get(POINT, {})
    return bool(point) and all(own.get(key) == value for key, value in point.items())


def _accuracy(trial: FrozenTrial) -> float:
    each = trial.user_attrs[ACCURACIES].values()
    return float(sum(each) / len(each))


def _span(entry: dict[str, Any]) -> str:
    scores = entry["scores"].values()
    return f"{min(scores):.1%} to {max(scores):.1%}"


def count_states(trials: Sequence[Mapping[str, Any]]) -> str:
    """Return how many trials are in each state, in words."""
    states = [trial["state"] for trial in trials]
    return ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))


def describe_settings(settings: Mapping[str, Any]) -> str:
    """Return the settings of a trial in words."""
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in settings.items()
    )
