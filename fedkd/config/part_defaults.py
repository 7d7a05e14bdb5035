"""Learning rates of studies that train a part of a pre-trained network.

Features of a pre-trained network are large: a linear layer on them moves far at the rates of a
whole network, and on skewed labels each silo's layer moves another way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PART_RATES = {"pretraining": 0.02, "rounds": 0.01, "consolidation": 0.02}
"""Learning rate of SGD by section, where ``model.train`` names a part and the section no rate.

Chosen on validation images: clip art of 12 classes, 5 silos, Dirichlet 0.1, three seeds, a head on
EfficientNet-Lite0. Rounds: the largest of 0.001 to 0.05 at which the curve from an average rises in
every round; at 0.05 it swings by 8 points. Pre-training and distillation are level from 0.005 to
0.02 and 0.05. The last block of resnet8 on digits also rises faster at 0.01 than
at 0.05 (one seed); adapters have the same rates unmeasured.
"""


def fill_part_rates(data: Any) -> Any:
    """Fill in the learning rates that a study leaves open, if it trains a part of its models.

    A section that names an optimizer other than SGD has the default rate of that optimizer.

    Args:
        data: the study as its file holds it; it is not changed.
    """
    if not isinstance(data, Mapping) or not trains_a_part(data.get("model")):
        return data
    filled = {key: _fill(data.get(key, {}), key) for key in ("pretraining", "rounds")}
    arms = data.get("arms")
    if isinstance(arms, Mapping):
        filled["arms"] = {name: _fill_arm(arm) for name, arm in arms.items()}
    return {**data, **filled}


def trains_a_part(model: Any) -> bool:
    """Whether a study's section ``model``, as its file holds it, names a part to train."""
    return isinstance(model, Mapping) and model.get("train", "all") != "all"


def _fill_arm(arm: Any) -> Any:
    if not isinstance(arm, Mapping) or arm.get("start") != "consolidated":
        return arm
    settings = arm.get("consolidation") or {}
    return {**arm, "consolidation": _fill(settings, "consolidation")}


def _fill(section: Any, key: str) -> Any:
    if not isinstance(section, Mapping) or section.get("optimizer", "sgd") != "sgd":
        return section
    return {"lr": PART_RATES[key], **section}
