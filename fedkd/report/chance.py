"""Remarks on values of the metric that a constant prediction reaches."""

from __future__ import annotations

from typing import Any

from fedkd.results.folder import Results, percent
from fedkd.results.points import point_value


def chance_remarks(results: Results) -> list[str]:
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
        if any(_reached(run, index) <= shares[run["seed"]] for run in runs)
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


def _reached(run: dict[str, Any], index: int) -> float:
    """Return a run's target, or 1 if it has none."""
    targets = run["targets"]
    return float(targets[index]["target"]) if index < len(targets) else 1.0
