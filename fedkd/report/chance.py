"""Remarks on accuracies that a constant prediction reaches."""

from __future__ import annotations

from typing import Any

from fedkd.results.folder import Results, percent


def chance_remarks(results: Results) -> list[str]:
    """Return remarks on targets and starts that are no better than a constant prediction.

    The share of the largest class is known for the server's test set alone, and not in results of
    earlier versions.
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
    constant = f"predicting the same class for every image ({percent(max(shares.values()))})"
    remarks = [
        f"The target {results.name_target(target)} is not above {constant}: savings to it are "
        "meaningless."
        for index, target in enumerate(results.targets)
        if any(_reached(run, index) <= shares[run["seed"]] for run in runs)
    ]
    arms = results.summary["resolved"]["arms"]
    for arm in results.arms:
        starts = [run for run in runs if run["arm"] == arm and arms[arm]["start"] != "random"]
        if starts and all(run["curve"][0]["accuracy"] <= shares[run["seed"]] for run in starts):
            remarks.append(f"{arm} starts no better than {constant}.")
    return remarks


def _reached(run: dict[str, Any], index: int) -> float:
    """Return a run's target accuracy, or 1 if it has none."""
    targets = run["targets"]
    return float(targets[index]["target"]) if index < len(targets) else 1.0
