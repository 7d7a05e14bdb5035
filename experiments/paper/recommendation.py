"""Fit the decision tree of ``fedkd recommend`` on the recorded studies and ship it as data.

    python -m experiments.paper.recommendation

A sample is one federation (study, variant, seed): its description, and for every method the
accuracy before any round that it loses against the best method. The tree predicts these losses; a
leaf names the method with the smallest mean loss. The depth is chosen by cross-validation: it is 0
if no split reduces the loss. Reported figures come from an outer cross-validation. Both leave out
one variant at a time with all its seeds, because the seeds of a variant are similar.
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
    """Return all federations: description, group, and accuracy lost against the best method.

    A method that a study has not run counts as the worst of that study.
    """
    rows = []
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
                rows.append({"figures": federation, "lost": lost, "group": group})
    return rows


def fit(rows: Rows, medians: dict[str, float], depth: int) -> DecisionTreeRegressor:
    """Fit a tree of at most this depth; depth 0 is a single leaf."""
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
    """Return the losses, ``[samples, methods]``."""
    return np.array([row["lost"] for row in rows])


def held_out_losses(
    rows: Rows, medians: dict[str, float], choose: Callable[[Rows], int]
) -> NDArray[np.float64]:
    """Leave out one variant at a time; return the loss of the chosen method on each federation.

    Args:
        rows: all federations.
        medians: of the features.
        choose: maps the training federations to the depth of the tree.
    """
    losses_of_groups = []
    for group in sorted({row["group"] for row in rows}):
        inside = [row for row in rows if row["group"] != group]
        outside = [row for row in rows if row["group"] == group]
        tree = fit(inside, medians, choose(inside))
        chosen = tree.predict(table(outside, medians)).argmin(axis=1)
        losses_of_groups.append(losses(outside)[np.arange(len(outside)), chosen])
    return np.concatenate(losses_of_groups)


def best_depth(rows: Rows, medians: dict[str, float]) -> int:
    """Return the depth with the smallest loss in cross-validation; ties go to the shallower."""
    mean = {d: float(held_out_losses(rows, medians, _always(d)).mean()) for d in DEPTHS}
    return min(DEPTHS, key=lambda depth: mean[depth])


def cross_validate(rows: Rows, medians: dict[str, float]) -> dict[str, Any]:
    """Evaluate trees of chosen depth, and a single leaf, on held-out variants.

    Accuracy is the share of federations in which the method is within ``MARGIN`` of the best.
    """
    figures: dict[str, Any] = {
        "federations": len(rows),
        "variants": len({row["group"] for row in rows}),
    }
    for suffix, choose in (
        ("", lambda inside: best_depth(inside, medians)),
        ("_of_always_the_same", _always(0)),
    ):
        lost = held_out_losses(rows, medians, choose)
        figures[f"accuracy{suffix}"] = round(float((lost <= MARGIN).mean()), 4)
        figures[f"points_lost{suffix}"] = round(100 * float(lost.mean()), 2)
    return figures


def export(tree: DecisionTreeRegressor, rows: Rows, medians: dict[str, float]) -> dict[str, Any]:
    """Return the tree as nested mappings."""
    inner = tree.tree_
    leaves = tree.apply(table(rows, medians))

    def node(index: int) -> dict[str, Any]:
        if inner.children_left[index] < 0:
            method = int(inner.value[index][:, 0].argmin())
            lost = losses(rows)[leaves == index, method]
            foreign = np.array([not row["figures"]["native"] for row in rows])[leaves == index]
            return {
                "method": NAMES[method],
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


def fit_and_evaluate() -> dict[str, Any]:
    """Fit the tree on all records, and evaluate the procedure by cross-validation."""
    rows = samples(Records())
    medians = {
        name: float(np.median([_value(row["figures"].get(name), 0.0) for row in rows]))
        for name in FEATURES
    }
    known = cross_validate(rows, medians)
    tree = export(fit(rows, medians, best_depth(rows, medians)), rows, medians)
    return {"known": known | closed_form(Records()), "medians": medians, "root": tree}


def closed_form(records: Records) -> dict[str, int]:
    """Count the federations in which the student in closed form starts above all methods."""
    higher = federations = 0
    for variant in records.variants("start-digits"):
        runs = records.record("start-digits", variant)["runs"]
        for own in records.runs("start-digits", variant, "fedkd-student-discriminant"):
            others = [r for r in runs if r["seed"] == own["seed"] and r["arm"] in ARMS]
            federations += 1
            higher += own["accuracy"][0] > max(run["accuracy"][0] for run in others)
    return {"closed_form_higher": higher, "closed_form_federations": federations}


def main() -> None:
    """Fit, evaluate and write the tree."""
    tree = fit_and_evaluate()
    write_json(OUT, tree)
    print(f"written: {OUT}: {tree['known']}")  # noqa: T201 -- a script


def _always(depth: int) -> Callable[[Rows], int]:
    return lambda _: depth


def _value(value: Any, default: float) -> float:
    return default if value is None else float(value)


if __name__ == "__main__":
    main()
