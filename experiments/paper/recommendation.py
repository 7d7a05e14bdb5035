"""Fit the decision tree of ``fedkd recommend`` on the recorded studies and ship it as data.

    python -m experiments.paper.recommendation

A sample is one federation (study, variant, seed): its description, and for every method its
accuracy before any round. The method to choose is the simplest within half a point of the best.
Cross-validation leaves out one variant at a time, all its seeds together: seeds of a variant are
too much alike to judge by.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.tree import DecisionTreeClassifier

from experiments.paper.figures import Records
from fedkd.files import write_json
from fedkd.recommendation import FEATURES, METHODS

OUT = Path(__file__).parents[2] / "fedkd" / "recommendation.json"
MARGIN = 0.005
DEPTH, LEAF = 3, 6
ARMS = {
    "average": "average",
    "fedkd-vanilla": "kd-equal",
    "fedkd-equal": "kd-equal",
    "fedkd-confidence": "kd-confidence",
    "fedkd-dp": "dp-kd",
    "fedkd-dml": "dml",
    "control-fine-tune": "fine-tune",
    "fedkd-familiarity": "kd-familiarity",
}
STUDIES = ("start-digits", "labelled-digits", "transfer-digits")


def samples(records: Records) -> list[dict[str, Any]]:
    """Return all federations with their description and what each method reached."""
    found = []
    for study in STUDIES:
        for variant in records.variants(study):
            record = records.record(study, variant)
            for federation in record["federations"]:
                reached = {
                    ARMS[run["arm"]]: run["accuracy"][0]
                    for run in record["runs"]
                    if run["seed"] == federation["seed"] and run["arm"] in ARMS
                }
                best = max(reached.values())
                choice = next(m for m in METHODS if reached.get(m, -1) >= best - MARGIN)
                group = f"{study}.{'.'.join(variant)}"
                found.append(
                    {"figures": federation, "reached": reached, "choice": choice, "group": group}
                )
    return found


def fit(rows: list[dict[str, Any]], medians: dict[str, float]) -> DecisionTreeClassifier:
    """Fit the tree."""
    tree = DecisionTreeClassifier(max_depth=DEPTH, min_samples_leaf=LEAF, random_state=0)
    return tree.fit(table(rows, medians), [row["choice"] for row in rows])


def table(rows: list[dict[str, Any]], medians: dict[str, float]) -> np.ndarray[Any, Any]:
    """Return the features ``[samples, features]``."""
    return np.array(
        [[_value(row["figures"].get(name), medians[name]) for name in FEATURES] for row in rows]
    )


def cross_validate(rows: list[dict[str, Any]], medians: dict[str, float]) -> dict[str, Any]:
    """Leave out one variant at a time: accuracy, and points lost against each one's best method."""
    right: list[bool] = []
    lost: list[float] = []
    constant_right: list[bool] = []
    constant_lost: list[float] = []
    for group in sorted({row["group"] for row in rows}):
        inside = [row for row in rows if row["group"] != group]
        outside = [row for row in rows if row["group"] == group]
        predicted = fit(inside, medians).predict(table(outside, medians))
        common = max(METHODS, key=lambda m: sum(row["choice"] == m for row in inside))
        for row, method in zip(outside, predicted, strict=True):
            for choice, hits, regrets in (
                (str(method), right, lost),
                (common, constant_right, constant_lost),
            ):
                hits.append(choice == row["choice"])
                worst = min(row["reached"].values())
                regrets.append(max(row["reached"].values()) - row["reached"].get(choice, worst))
    return {
        "federations": len(rows),
        "variants": len({row["group"] for row in rows}),
        "accuracy": round(float(np.mean(right)), 4),
        "points_lost": round(100 * float(np.mean(lost)), 2),
        "accuracy_of_always_the_commonest": round(float(np.mean(constant_right)), 4),
        "points_lost_by_always_the_commonest": round(100 * float(np.mean(constant_lost)), 2),
    }


def export(tree: DecisionTreeClassifier, rows: list[dict[str, Any]], medians: Any) -> Any:
    """Return the tree as nested mappings."""
    inner = tree.tree_
    leaves = tree.apply(table(rows, medians))

    def node(index: int) -> dict[str, Any]:
        if inner.children_left[index] < 0:
            choices = [
                row["choice"] for row, leaf in zip(rows, leaves, strict=True) if leaf == index
            ]
            method = str(tree.classes_[int(inner.value[index].argmax())])
            agreeing = choices.count(method)
            return {"method": method, "support": len(choices), "agreeing": agreeing}
        left, right = (
            node(int(side[index])) for side in (inner.children_left, inner.children_right)
        )
        if left.get("method") == right.get("method") and "method" in left:
            both = {key: left[key] + right[key] for key in ("support", "agreeing")}
            return {"method": left["method"], **both}
        return {
            "feature": FEATURES[inner.feature[index]],
            "threshold": round(float(inner.threshold[index]), 4),
            "left": left,
            "right": right,
        }

    return node(0)


def fit_and_judge() -> dict[str, Any]:
    """Fit the tree on all records and judge its kind by cross-validation."""
    rows = samples(Records())
    medians = {
        name: float(np.median([_value(row["figures"].get(name), 0.0) for row in rows]))
        for name in FEATURES
    }
    known = cross_validate(rows, medians)
    tree = export(fit(rows, medians), rows, medians)
    return {"known": known, "medians": medians, "root": tree}


def main() -> None:
    """Fit, judge and write."""
    found = fit_and_judge()
    write_json(OUT, found)
    print(f"written: {OUT}: {found['known']}")  # noqa: T201 -- a script


def _value(value: Any, default: float) -> float:
    return default if value is None else float(value)


if __name__ == "__main__":
    main()
