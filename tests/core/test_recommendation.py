"""The decision tree is walked as it is written, and what is shipped can be used."""

from __future__ import annotations

from typing import Any

import pytest

from fedkd.config import Arm
from fedkd.federation.recommend import CANDIDATES, FEATURES, load_tree, recommend

TREE: dict[str, Any] = {
    "known": {"accuracy": 0.5},
    "medians": {**dict.fromkeys(FEATURES, 0.0), "gap": 0.3},
    "root": {
        "feature": "label_skew",
        "threshold": 0.2,
        "left": {"method": "kd-equal", "support": 9, "agreeing": 7},
        "right": {
            "feature": "gap",
            "threshold": 0.1,
            "left": {"method": "average", "support": 6, "agreeing": 6},
            "right": {"method": "kd-familiarity", "support": 12, "agreeing": 11},
        },
    },
}


@pytest.mark.parametrize(
    ("figures", "method"),
    [
        ({"label_skew": 0.2, "gap": 0.5}, "kd-equal"),
        ({"label_skew": 0.3, "gap": 0.1}, "average"),
        ({"label_skew": 0.3, "gap": 0.2}, "kd-familiarity"),
        ({"label_skew": 0.3, "gap": None}, "kd-familiarity"),
    ],
)
def test_the_tree_is_walked(figures: dict[str, Any], method: str) -> None:
    found = recommend(figures, TREE)
    assert found.method == method
    assert found.arm == CANDIDATES[method]
    assert found.reasons[0].startswith(f"label_skew is {figures['label_skew']}")


def test_an_unknown_figure_is_named_as_such() -> None:
    assert (
        "gap is unknown, taken as 0.3" in recommend({"label_skew": 1, "gap": None}, TREE).reasons[1]
    )


def test_what_else_the_records_say_is_told() -> None:
    tree = {
        **TREE,
        "known": {"closed_form_higher": 3, "closed_form_federations": 4},
        "root": {
            "method": "kd-equal",
            "support": 9,
            "agreeing": 7,
            "foreign": 5,
            "foreign_agreeing": 1,
        },
    }
    own = recommend({"native": True}, tree).remarks
    beware, *rest = recommend({"native": False}, tree).remarks
    assert "1 of 5 recorded federations of that kind" in beware
    assert tuple(rest) == own
    assert "3 of 4 recorded federations" in own[0]
    assert recommend({"native": False, "label_skew": 0.1}, TREE).remarks == ()


def leaves(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [node] if "method" in node else leaves(node["left"]) + leaves(node["right"])


def test_the_shipped_tree_holds_what_it_claims() -> None:
    tree = load_tree()
    ends = leaves(tree["root"])
    assert sum(leaf["support"] for leaf in ends) == tree["known"]["federations"]
    assert all(0 < leaf["agreeing"] <= leaf["support"] for leaf in ends)
    assert {leaf["method"] for leaf in ends} <= set(CANDIDATES)
    assert 0 <= tree["known"]["accuracy"] <= 1
    assert set(tree["medians"]) == set(FEATURES)


@pytest.mark.parametrize("method", CANDIDATES)
def test_every_recommended_arm_is_a_valid_one(method: str) -> None:
    Arm.model_validate(CANDIDATES[method])
