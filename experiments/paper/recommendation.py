"""Fit the decision tree of ``fedkd recommend`` on the recorded studies and ship it as data.

    python -m experiments.paper.recommendation

A sample is one federation (study, variant, seed): its description, and for every method what it
loses in accuracy before any round against the best there. The tree predicts these losses, and a
leaf names the method that loses least on average. Its depth is chosen by cross-validation, so that
it asks nothing where no question helps; what is told about it comes from a second cross-validation
around the first. Both leave out one variant at a time, all its seeds together: seeds of a variant
are too much alike to judge by.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeRegressor

from experiments.paper.figures import Records
from fedkd.federation.recommend import CANDIDATES, FEATURES
from fedkd.util.files import write_json

OUT = Path(__file__).parents[2] / "fedkd" / "federation" / "recommendation.json"
MARGIN = 0.005
DEPTHS = range(4)
LEAF = 6
NAMES = tuple(CANDIDATES)
Rows = list[dict[str, Any]]
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


def samples(records: Records) -> Rows:
    """Return all federations: description, group, and by method the accuracy lost against the best.

    A method that a study has not run counts as the worst that it has.
    """
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
                best, worst = max(reached.values()), min(reached.values())
                lost = [best - reached.get(name, worst) for name in NAMES]
                group = f"{study}.{'.'.join(variant)}"
                found.append({"figures": federation, "lost": lost, "group": group})
    return found


def fit(rows: Rows, medians: dict[str, float], depth: int) -> DecisionTreeRegressor:
    """Fit a tree of at most this depth; one of depth 0 asks nothing."""
    tree = DecisionTreeRegressor(
        max_depth=max(depth, 1),
        min_samples_leaf=LEAF if depth else len(rows),
        random_state=0,
    )
    return tree.fit(table(rows, medians), losses(rows))


def table(rows: Rows, medians: dict[str, float]) -> NDArray[np.float64]:
    """Return the features ``[samples, features]``."""
    return np.array(
        [[_value(row["figures"].get(name), medians[name]) for name in FEATURES] for row in rows]
    )


def losses(rows: Rows) -> NDArray[np.float64]:
    """Return what each method loses, ``[samples, methods]``."""
    return np.array([row["lost"] for row in rows])


def lost_outside(
    rows: Rows, medians: dict[str, float], choose: Callable[[Rows], int]
) -> NDArray[np.float64]:
    """Leave out one variant at a time; return what the method named for each federation loses.

    Args:
        rows: all federations.
        medians: of the features.
        choose: takes the federations inside to the depth of the tree that is fitted to them.
    """
    found = []
    for group in sorted({row["group"] for row in rows}):
        inside = [row for row in rows if row["group"] != group]
        outside = [row for row in rows if row["group"] == group]
        tree = fit(inside, medians, choose(inside))
        named = tree.predict(table(outside, medians)).argmin(axis=1)
        found.append(losses(outside)[np.arange(len(outside)), named])
    return np.concatenate(found)


def best_depth(rows: Rows, medians: dict[str, float]) -> int:
    """Return the depth that loses least by cross-validation; the shallower of equals."""
    mean = {d: float(lost_outside(rows, medians, _always(d)).mean()) for d in DEPTHS}
    return min(DEPTHS, key=lambda depth: mean[depth])


def cross_validate(rows: Rows, medians: dict[str, float]) -> dict[str, Any]:
    """Judge trees of chosen depth, and the one that asks nothing, on variants left out.

    Accuracy is the share of federations where the method named is within ``MARGIN`` of the best.
    """
    found: dict[str, Any] = {
        "federations": len(rows),
        "variants": len({row["group"] for row in rows}),
    }
    for suffix, choose in (
        ("", lambda inside: best_depth(inside, medians)),
        ("_of_always_the_same", _always(0)),
    ):
        lost = lost_outside(rows, medians, choose)
        found[f"accuracy{suffix}"] = round(float((lost <= MARGIN).mean()), 4)
        found[f"points_lost{suffix}"] = round(100 * float(lost.mean()), 2)
    return found


def export(tree: DecisionTreeRegressor, rows: Rows, medians: dict[str, float]) -> dict[str, Any]:
    """Return the tree as nested mappings."""
    inner = tree.tree_
    leaves = tree.apply(table(rows, medians))

    def node(index: int) -> dict[str, Any]:
        if inner.children_left[index] < 0:
            named = int(inner.value[index][:, 0].argmin())
            lost = losses(rows)[leaves == index, named]
            foreign = np.array([not row["figures"]["native"] for row in rows])[leaves == index]
            return {
                "method": NAMES[named],
                "support": len(lost),
                "agreeing": int((lost <= MARGIN).sum()),
                "foreign": int(foreign.sum()),
                "foreign_agreeing": int((lost[foreign] <= MARGIN).sum()),
            }
        left, right = (
            node(int(side[index])) for side in (inner.children_left, inner.children_right)
        )
        if left.get("method") == right.get("method") and "method" in left:
            both = {key: left[key] + right[key] for key in left if key != "method"}
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
    tree = export(fit(rows, medians, best_depth(rows, medians)), rows, medians)
    return {"known": known | closed_form(Records()), "medians": medians, "root": tree}


def closed_form(records: Records) -> dict[str, int]:
    """Return in how many federations the student in closed form began above all methods."""
    higher = federations = 0
    for variant in records.variants("start-digits"):
        runs = records.record("start-digits", variant)["runs"]
        for own in records.runs("start-digits", variant, "fedkd-student-discriminant"):
            others = [r for r in runs if r["seed"] == own["seed"] and r["arm"] in ARMS]
            federations += 1
            higher += own["accuracy"][0] > max(run["accuracy"][0] for run in others)
    return {"closed_form_higher": higher, "closed_form_federations": federations}


def main() -> None:
    """Fit, judge and write."""
    found = fit_and_judge()
    write_json(OUT, found)
    print(f"written: {OUT}: {found['known']}")  # noqa: T201 -- a script


def _always(depth: int) -> Callable[[Rows], int]:
    return lambda _: depth


def _value(value: Any, default: float) -> float:
    return default if value is None else float(value)


if __name__ == "__main__":
    main()
