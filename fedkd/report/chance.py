"""Remarks on accuracies that a model reaches without looking at any image."""

from __future__ import annotations

from typing import Any

from fedkd.results.folder import Results, percent


def chance_remarks(results: Results) -> list[str]:
    """Return remarks on targets and starts no better than always predicting one class.

    The share of the largest class among the test images is known of the server's test set alone,
    and not in results of earlier versions.
    """
    shares = {
        entry["seed"]: entry["accuracy"]
        for entry in results.summary.get("constant_accuracy", [])
        if entry["accuracy"] is not None
    }
    runs = [
        run
        for run in results.summary["runs"]
        if run["seed"] in shares and run["accuracy_source"] == "test"
    ]
    if not runs:
        return []
    constant = f"predicting one class for every image ({percent(max(shares.values()))})"
    remarks = [
        f"The target {results.name_target(target)} is no more than {constant} reaches: what is "
        "saved on the way to it shows nothing."
        for index, target in enumerate(results.targets)
        if any(_reached(run, index) <= shares[run["seed"]] for run in runs)
    ]
    arms = results.summary["resolved"]["arms"]
    for arm in results.arms:
        starts = [run for run in runs if run["arm"] == arm and arms[arm]["start"] != "random"]
        if starts and all(run["curve"][0]["accuracy"] <= shares[run["seed"]] for run in starts):
            remarks.append(f"{arm} starts no better than {constant}: its start taught nothing.")
    return remarks


def _reached(run: dict[str, Any], index: int) -> float:
    """Return a run's target in accuracy, or 1 where it has none."""
    targets = run["targets"]
    return float(targets[index]["target"]) if index < len(targets) else 1.0
