"""Remarks that limit a verdict, most important first."""

from __future__ import annotations

from typing import Any

from fedkd.registry import METRICS
from fedkd.report.savings import (
    LOSSES,
    UNIT,
    Row,
    against_strongest,
    candidates,
    enumerate_names,
    failed,
    failed_runs,
    interval,
    is_control,
    is_defined,
    reached_all,
    saved,
    uncharged_arms,
)
from fedkd.report.silos_get import remarks_on_silos
from fedkd.results.folder import Results, percent
from fedkd.results.interval import LEAST_SEEDS
from fedkd.results.points import metric_values, point_value

LEAST_FALL = 0.01
"""Smallest loss of the metric in round 1 that is remarked."""


def remarks_on(results: Results, headline: Row | None) -> list[str]:
    """Return remarks on a study, whose verdict is on the row ``headline`` if there is one."""
    remarks = []
    if headline is not None:
        remarks += _about_headline(results, headline)
        remarks += _worse_arms(results, headline)
    remarks += remarks_on_silos(results, headline)
    remarks += [
        f"{arm} started from a file: the exchanges that made it are unknown and not counted."
        for arm in uncharged_arms(results.summary)
    ]
    remarks += _about_chance(results)
    remarks += _falls(results)
    remarks += [f"{sentence}." for sentence in results.summary.get("warnings", [])]
    remarks += _about_runs(results)
    return remarks


def _about_headline(results: Results, headline: Row) -> list[str]:
    arm, target = headline["arm"], headline["target"]
    remarks = []
    skipped = [percent(t) for t in sorted(results.targets) if t > target]
    if skipped:
        remarks.append(f"No result for {enumerate_names(skipped)}: too many runs did not reach it.")
    for other in results.arms:
        row = against_strongest(results, other, target) if is_control(other) else None
        if row is None or not is_defined(row):
            continue
        if row["exchanges_saved_pct"] < headline["exchanges_saved_pct"]:
            remarks.append(f"The control {other}, without teachers' models, saves {saved(row)}.")
        elif reached_all(row):
            remarks.append(
                f"The control {other}, without teachers' models, saves at least as much, "
                f"{saved(row)}: the saving of {arm} is not due to the teachers' models."
            )
        else:
            remarks.append(
                f"The control {other}, without teachers' models, saves {saved(row)}: whether the "
                f"saving of {arm} is due to the teachers' models is open."
            )
    seconds = headline["seconds_saved_pct"]
    if seconds is not None and seconds < 0 < headline["exchanges_saved_pct"]:
        remarks.append(
            f"It takes {LOSSES[headline['bound']]}{percent(-seconds / 100)} more seconds: "
            "simulated silos reply immediately, while distillation takes time. Fewer exchanges "
            "save time if each one waits for a network."
        )
    if (ranked := len(candidates(results))) > 1:
        remarks.append(
            f"{arm} is the best of {ranked} arms, selected on these results; the interval "
            "does not account for that selection."
        )
    for other_target in sorted(results.targets):
        row = against_strongest(results, arm, other_target)
        if other_target < target and row is not None:
            spread = f" ({interval(row)})" if interval(row) else ""
            remarks.append(
                f"To {results.name_target(other_target)}, {arm} saves {saved(row)}{spread} "
                f"against {row['baseline']}."
            )
    remarks += _about_range(headline)
    return remarks


def _about_range(row: Row) -> list[str]:
    seeds = row["num_seeds"]
    if 1 < seeds < LEAST_SEEDS:
        sentence = (
            f"With {seeds} seeds the range is minimum to maximum; a confidence interval needs at "
            f"least {LEAST_SEEDS} seeds."
        )
        return [sentence]
    if row["range_kind"] != "interval" or row["coverage"] is None:
        return []
    sentence = (
        f"The interval is paired over seeds; in simulated studies of {seeds} seeds "
        f"{row['coverage']:g}{UNIT} of such intervals contain the true saving."
    )
    return [sentence]


def _worse_arms(results: Results, headline: Row) -> list[str]:
    target, baseline = headline["target"], headline["baseline"]
    rows = [
        row
        for row in results.summary["comparison"]
        if row["target"] == target
        and row["baseline"] == baseline
        and row["arm"] not in results.baselines[: results.baselines.index(baseline)]
    ]
    worse = [
        f"{row['arm']} ({LOSSES[row['bound']]}{percent(-row['exchanges_saved_pct'] / 100)} more)"
        for row in rows
        if is_defined(row) and row["exchanges_saved_pct"] < 0
    ]
    unknown = [row["arm"] for row in rows if row["bound"] == "undefined" and not failed(row)]
    goal = percent(target)
    remarks = (
        [f"More exchanges than {baseline} to {goal}: {enumerate_names(worse)}."] if worse else []
    )
    if unknown:
        remarks.append(
            f"Not comparable with {baseline} to {goal}, because both missed it on some seed: "
            f"{enumerate_names(unknown)}."
        )
    return remarks


def _about_chance(results: Results) -> list[str]:
    """Return remarks on targets and starts that are no better than a constant prediction.

    What one answer for all examples reaches is known for the server's test set alone, and not in
    results of earlier versions.
    """
    shares = {
        entry["seed"]: value
        for entry in results.summary.get("constant_accuracy", [])
        if (value := point_value(entry, results.metric)) is not None
    }
    runs = [
        run
        for run in results.summary["runs"]
        if run["seed"] in shares and run["accuracy_source"] == "test"
    ]
    if not runs:
        return []
    constant = f"predicting the same class for every example ({percent(max(shares.values()))})"
    remarks = [
        f"The target {results.name_target(target)} is not above {constant}: savings to it are "
        "meaningless."
        for index, target in enumerate(results.targets)
        if any(_target_of(run, index) <= shares[run["seed"]] for run in runs)
    ]
    arms = results.summary["resolved"]["arms"]
    for arm in results.arms:
        starts = [run for run in runs if run["arm"] == arm and arms[arm]["start"] != "random"]
        values = [point_value(run["curve"][0], results.metric) for run in starts]
        if starts and all(
            value is not None and value <= shares[run["seed"]]
            for run, value in zip(starts, values, strict=True)
        ):
            remarks.append(f"{arm} starts no better than {constant}.")
    return remarks


def _target_of(run: dict[str, Any], index: int) -> float:
    """Return a run's target, or 1 if it has none."""
    targets = run["targets"]
    return float(targets[index]["target"]) if index < len(targets) else 1.0


def _falls(results: Results) -> list[str]:
    """Return remarks on arms that no round brings back to their start, on any seed."""
    remarks = []
    for arm in results.arms:
        curves = [metric_values(run, results.metric) for run in results.runs(arm)]
        curves = [curve for curve in curves if len(curve) > 1]
        if not curves or any(max(curve[1:]) >= curve[0] for curve in curves):
            continue
        start, first = (sum(curve[i] for curve in curves) / len(curves) for i in (0, 1))
        if start - first >= LEAST_FALL:
            remarks.append(
                f"{arm} falls from {percent(start)} at the start to {percent(first)} after round 1 "
                "(means), and no round reaches the start again: a smaller "
                f"arms.{arm}.rounds.lr, or rounds.local_loss: logit-adjusted, may keep it."
            )
    return remarks


def _about_runs(results: Results) -> list[str]:
    runs, failures = results.summary["runs"], results.summary["failures"]
    remarks = []
    missing = len(results.arms) * len(results.seeds) - len(runs) - len(failures)
    interrupted = sum(run["stopped"] == "interrupted" for run in runs)
    if missing or interrupted:
        remarks.append(
            f"The study was interrupted; unfinished runs: {missing + interrupted}. Resume it with "
            "fedkd compare --resume FOLDER."
        )
    if stopped_early := sum(run["stopped"] == "quorum" for run in runs):
        remarks.append(
            f"Runs that stopped because too few silos replied: {stopped_early}. They count as "
            "failed; fedkd compare --resume continues them once the silos are back."
        )
    if failures:
        remarks.append(f"Runs that failed: {len(failures)}, listed under Runs.")
    remarks += [f"Not ranked: {sentence}." for sentence in failed_runs(results)]
    if refused := sum(len(run["quarantined"]) for run in runs):
        remarks.append(f"Replies of silos refused or missing: {refused}, listed under Refused.")
    if with_fallback := sorted({run["arm"] for run in runs if run["notes"].get("fallback")}):
        remarks.append(f"A fallback weighting was used in {enumerate_names(with_fallback)}.")
    warnings = {(run["arm"], run["notes"]["warning"]) for run in runs if "warning" in run["notes"]}
    remarks += [f"{arm}, on some seed: {warning}." for arm, warning in sorted(warnings)]
    if excluded := sorted({run["arm"] for run in runs if run["notes"].get("doubted")}):
        remarks.append(
            f"Contradicted teachers were excluded in {enumerate_names(excluded)}; summary.json "
            "lists them."
        )
    if early := sorted({run["arm"] for run in runs if run["notes"].get("ended_early")}):
        remarks.append(
            f"Rounds of {enumerate_names(early)} ended before all silos had replied "
            "(rounds.enough): repeated, they give other curves."
        )
    if any(run["accuracy_source"] == "silos" for run in runs):
        remarks.append("Accuracies are those that the silos reported on their own data.")
    if without := sorted({silo for run in runs for silo in run["notes"].get("metric_without", [])}):
        remarks.append(
            f"The {METRICS[results.metric]} is over the data of silos that share sums by class, "
            f"which {enumerate_names(without)} did not in every round."
        )
    return remarks
