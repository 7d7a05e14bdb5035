"""The keys of all training: optimizer, learning rate, and how labels and examples are used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from fedkd.config.sections import Count, Momentum, Rate, Section, names_of
from fedkd.registry import AUGMENTATIONS

OptimizerName = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "linear", "cosine"]
ClassWeights = Literal["none", "balanced"]
Share = Annotated[float, Field(ge=0, lt=1)]
WeightDecay = Annotated[float, Field(ge=0, le=1)]
Augmentation = Annotated[str, AfterValidator(AUGMENTATIONS.check), names_of(AUGMENTATIONS)]

_DEFAULTS: dict[str, dict[str, float]] = {
    "sgd": {},
    "adam": {"lr": 0.001},
    "adamw": {"lr": 0.001, "weight_decay": 0.01},
}
"""Values that differ by optimizer: those of PyTorch for Adam and AdamW."""


class OptimizerKeys(Section):
    """What every section on training has in common."""

    optimizer: OptimizerName = "sgd"
    lr: Rate = Field(
        0.05,
        description="learning rate; by default 0.001 for adam and adamw, and for sgd, where "
        "model.train is not all, 0.02 in a consolidation and 0.01 in rounds. Where all of "
        "pre-trained weights is trained, 0.01 in rounds, and a consolidation that names neither "
        "optimizer nor lr has adamw with 0.0002",
    )
    momentum: Momentum = Field(0.9, description="beta_1 for adam and adamw")
    weight_decay: WeightDecay = Field(
        0.0, description="by default 0.01 for adamw, which decouples it from the gradient"
    )
    batch_size: Count = 32
    warmup: Share = Field(
        0.0,
        description="share of all steps (in rounds: of all rounds) in which the learning rate "
        "rises linearly, before the schedule begins",
    )
    schedule: Schedule = Field(
        "constant", description="of the learning rate; linear and cosine: down to zero at the end"
    )
    clip_norm: Rate | None = Field(
        None, description="maximum L2 norm of the gradient of a batch; by default none"
    )
    label_smoothing: Share = Field(
        0.0, description="share of each label that is spread evenly over all classes"
    )
    class_weights: ClassWeights = Field(
        "none",
        description="balanced: a label's loss is divided by the share of its class in the data "
        "that is trained on",
    )
    augment: Augmentation = Field(
        "none", description="random change of each image, drawn anew in every epoch"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("optimizer"), str):
            return {**_DEFAULTS.get(data["optimizer"], {}), **data}
        return data


def optimizer_defaults(name: OptimizerName) -> dict[str, float]:
    """Return the learning rate and weight decay of an optimizer where a study names none."""
    keys = OptimizerKeys(optimizer=name)
    return {"lr": keys.lr, "weight_decay": keys.weight_decay}


def rate_factor(step: int, steps: int, *, schedule: str, warmup: float) -> float:
    """Return the share of the learning rate that is used in a step, counted from 0.

    Linear warm-up, over a share of all steps, as in Goyal et al. 1706.02677. ``cosine`` is (1 +
    cos(pi t)) / 2 and ``linear`` is 1 - t, where t goes from 0 to 1 over the steps that follow:
    Loshchilov & Hutter 1608.03983, without restarts.
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    if schedule == "constant":
        return 1.0
    done, following = step - rising, steps - rising
    if schedule == "linear":
        return 1 - done / following
    return (1 + math.cos(math.pi * done / following)) / 2
