"""The method that was best on the project's recorded federations, as a decision tree.

The shipped tree, ``recommendation.json``, has a single leaf: no property of a federation was found
to predict a better method. ``python -m experiments.paper.recommendation`` fits it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from fedkd.errors import FedKDError

CANDIDATES: dict[str, dict[str, Any]] = {
    "average": {"start": "average"},
    "kd-equal": {"start": "consolidated", "consolidation": {"method": "kd", "weighting": "equal"}},
    "kd-confidence": {
        "start": "consolidated",
        "consolidation": {"method": "kd", "weighting": "confidence"},
    },
    "dp-kd": {"start": "consolidated", "consolidation": {"method": "dp-kd"}},
    "dml": {"start": "consolidated", "consolidation": {"method": "dml"}},
    "fine-tune": {"start": "consolidated", "consolidation": {"method": "fine-tune"}},
    "kd-familiarity": {
        "start": "consolidated",
        "consolidation": {"method": "kd", "weighting": "familiarity"},
    },
}
"""Candidate methods as arms of a study file; the simplest and cheapest first."""

FEATURES = (
    "label_skew",
    "size_skew",
    "silos",
    "labelled",
    "native",
    "transfer_size",
    "gap",
)
"""Features of the tree, from :func:`fedkd.federation.describe.describe`."""


@dataclass(frozen=True)
class Recommendation:
    """A method, and how often it was best.

    Attributes:
        method: a key of ``CANDIDATES``.
        arm: the arm to add to a study.
        reasons: the conditions on the path to the leaf, in words; empty for a tree without any.
        support: number of recorded federations in the leaf.
        agreeing: number of them in which the method is within half a point of the best.
        known: statistics of the whole tree, such as its accuracy in cross-validation.
        remarks: further findings on such federations.
    """

    method: str
    arm: dict[str, Any]
    reasons: tuple[str, ...]
    support: int
    agreeing: int
    known: dict[str, Any]
    remarks: tuple[str, ...] = ()


def recommend(figures: dict[str, Any], tree: dict[str, Any] | None = None) -> Recommendation:
    """Evaluate the tree for a described federation.

    Args:
        figures: from :func:`fedkd.federation.describe.describe`. A feature that is None is
            replaced by the median of the recorded studies, as its reason states.
        tree: default: the shipped one.
    """
    tree = tree or load_tree()
    node = tree["root"]
    reasons = []
    while "feature" in node:
        name = node["feature"]
        value = figures.get(name)
        unknown = value is None
        number = float(tree["medians"][name] if value is None else value)
        goes_left = number <= node["threshold"]
        reasons.append(
            f"{name} is {'unknown, taken as ' if unknown else ''}{number:g}, "
            f"{'at most' if goes_left else 'above'} {node['threshold']:g}"
        )
        node = node["left" if goes_left else "right"]
    method = node["method"]
    if method not in CANDIDATES:
        raise FedKDError(f"the decision tree names an unknown method {method!r}")
    return Recommendation(
        method,
        CANDIDATES[method],
        tuple(reasons),
        node["support"],
        node["agreeing"],
        tree["known"],
        _remarks(figures, node, tree["known"]),
    )


def _remarks(
    figures: dict[str, Any], leaf: dict[str, Any], known: dict[str, Any]
) -> tuple[str, ...]:
    remarks = []
    if figures.get("native") is False and leaf.get("foreign"):
        remarks.append(
            "The transfer set is another data set or noise. In only "
            f"{leaf['foreign_agreeing']} of {leaf['foreign']} recorded federations of that kind "
            "was the method within half a point of the best: use transfer examples like the silos'."
        )
    if known.get("closed_form_federations"):
        remarks.append(
            "If silos may share class sums, a student in closed form (student: lda-head) has a "
            "higher initial accuracy than all of these methods, in "
            f"{known['closed_form_higher']} of {known['closed_form_federations']} recorded "
            "federations."
        )
    return tuple(remarks)


def load_tree() -> dict[str, Any]:
    """Read the shipped tree."""
    text = files("fedkd.federation").joinpath("recommendation.json").read_text(encoding="utf-8")
    tree: dict[str, Any] = json.loads(text)
    return tree
