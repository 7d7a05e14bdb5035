"""Learning rates of studies that train a pre-trained network, or a part of one.

Features of a pre-trained network are large: a linear layer on them moves far at the rates of a
whole network, and on skewed labels each silo's layer moves another way. The whole of a pre-trained
network forgets what it has learnt at the rates of a network that has learnt nothing yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedkd.registry import HUGGING_FACE

PART_RATES = {"pretraining": 0.02, "rounds": 0.01, "consolidation": 0.02}
"""Learning rate of SGD by section, where ``model.train`` names a part and the section no rate.

Chosen on validation images: clip art of 12 classes, 5 silos, Dirichlet 0.1, three seeds, a head on
EfficientNet-Lite0. Rounds: the largest of 0.001 to 0.05 at which the curve from an average rises in
every round; at 0.05 it swings by 8 points. Pre-training and distillation are level from 0.005 to
0.02 and 0.05. The last block of resnet8 on digits also rises faster at 0.01 than
at 0.05 (one seed); adapters have the same rates unmeasured.
"""

PRETRAINED_RATES = {"rounds": 0.01}
"""The same where all of a pre-trained network is trained; pre-training has 0.02 anyway.

From the average of the four ResNet-18 of ``experiments/hospitals.yaml``, which has 98.5 % on test
images (seed 0), one round leads to 51.0 % at 0.05, and to 98.8 % at 0.02 and 0.01. From a student
with 100 %, it leads to 47.5 % at 0.02.
"""
PRETRAINED_STUDENT = {"optimizer": "adamw", "lr": 0.0002}
"""Of a consolidation of such networks that names neither optimizer nor rate.

Distilled for five epochs, that average has 33.0 % by SGD at 0.05, and 100 % by these values.
"""


def fill_rates(data: Any) -> Any:
    """Fill in the learning rates that a study of pre-trained networks leaves open.

    A section that names an optimizer other than SGD has the default rate of that optimizer.
    """
    model = data.get("model") if isinstance(data, Mapping) else None
    if not (rates := _rates_of(model)):
        return data
    keys = [key for key in ("pretraining", "rounds") if key in rates]
    filled = {key: _fill(data.get(key, {}), rates[key]) for key in keys}
    arms = data.get("arms")
    if isinstance(arms, Mapping):
        filled["arms"] = {name: _fill_arm(arm, model) for name, arm in arms.items()}
    return {**data, **filled}


def default_rate(model: Any, key: str) -> float | None:
    """Return the rate of SGD of a section in a study of such a ``model``, None for the usual."""
    return _rates_of(model).get(key)


def trains_a_part(model: Any) -> bool:
    """Whether a study's section ``model``, as its file holds it, names a part to train."""
    return isinstance(model, Mapping) and model.get("train", "all") != "all"


def _rates_of(model: Any) -> Mapping[str, float]:
    if trains_a_part(model):
        return PART_RATES
    if not isinstance(model, Mapping):
        return {}
    is_pretrained = model.get("weights") or str(model.get("arch")).startswith(HUGGING_FACE)
    return PRETRAINED_RATES if is_pretrained else {}


def _fill_arm(arm: Any, model: Any) -> Any:
    if not isinstance(arm, Mapping) or arm.get("start") != "consolidated":
        return arm
    settings = arm.get("consolidation") or {}
    if trains_a_part(model):
        return {**arm, "consolidation": _fill(settings, PART_RATES["consolidation"])}
    is_given = not isinstance(settings, Mapping) or settings.keys() & PRETRAINED_STUDENT.keys()
    if is_given or (arm.get("arch") or model.get("arch")) != model.get("arch"):
        return arm
    return {**arm, "consolidation": {**PRETRAINED_STUDENT, **settings}}


def _fill(section: Any, rate: float) -> Any:
    if not isinstance(section, Mapping) or section.get("optimizer", "sgd") != "sgd":
        return section
    return {"lr": rate, **section}
