"""Which method for which federation: a decision tree fitted on the project's recorded studies.

The tree is data, ``recommendation.json``; ``python -m experiments.paper.recommendation`` fits it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from fedkd.errors import FedKDError

METHODS: dict[str, dict[str, Any]] = {
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
"""What a recommendation's name means in a study file; the simplest and cheapest first."""

FEATURES = (
    "label_skew",
    "size_skew",
    "silos",
    "labelled",
    "native",
    "transfer_size",
    "gap",
)
"""What the tree may ask, of the figures of :func:`fedkd.federation.describe.describe`."""


@dataclass(frozen=True)
class Recommendation:
    """A method for a federation, and how far to trust it.

    Attributes:
        method: a key of ``METHODS``.
        arm: what to write under ``arms`` of the study.
        reasons: the questions that led here, in words.
        support: recorded federations in this leaf.
        agreeing: in how many of them this method came within half a point of the best.
        known: what holds for the whole tree: accuracy by cross-validation and more.
        remarks: what else the records say of such a federation.
    """

    method: str
    arm: dict[str, Any]
    reasons: tuple[str, ...]
    support: int
    agreeing: int
    known: dict[str, Any]
    remarks: tuple[str, ...] = ()


def recommend(figures: dict[str, Any], tree: dict[str, Any] | None = None) -> Recommendation:
    """Walk the tree for a described federation.

    Args:
        figures: of :func:`fedkd.federation.describe.describe`; a feature that is None is taken at
            the median of the recorded studies, and the reason says so.
        tree: by default the one that is shipped.
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
    if method not in METHODS:
        raise FedKDError(f"the decision tree names an unknown method {method!r}")
    return Recommendation(
        method,
        METHODS[method],
        tuple(reasons),
        node["support"],
        node["agreeing"],
        tree["known"],
        _remarks(figures, node, tree["known"]),
    )


def _remarks(
    figures: dict[str, Any], leaf: dict[str, Any], known: dict[str, Any]
) -> tuple[str, ...]:
    found = []
    if figures.get("native") is False and leaf.get("foreign"):
        found.append(
            "Beware: the transfer set is another data set or noise. In only "
            f"{leaf['foreign_agreeing']} of {leaf['foreign']} recorded federations of that kind "
            "the method came near the best: look for transfer images of the silos' own kind."
        )
    if known.get("closed_form_federations"):
        found.append(
            "Where silos may tell sums over their images, a student in closed form (student: "
            "discriminant) began above all methods that were asked about in "
            f"{known['closed_form_higher']} of {known['closed_form_federations']} federations."
        )
    return tuple(found)


def load_tree() -> dict[str, Any]:
    """Read the shipped tree."""
    text = files("fedkd.federation").joinpath("recommendation.json").read_text(encoding="utf-8")
    tree: dict[str, Any] = json.loads(text)
    return tree
