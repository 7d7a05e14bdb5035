"""Sections on training: architectures, pre-training, and the communication rounds."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from fedkd.config.sections import (
    Architecture,
    Count,
    Fraction,
    Momentum,
    Options,
    Rate,
    Section,
    names_of,
    refuse_options,
)
from fedkd.registry import LOCAL_LOSSES

LocalLoss = Annotated[str, AfterValidator(LOCAL_LOSSES.check), names_of(LOCAL_LOSSES)]
Aggregation = Literal["mean", "median", "trimmed-mean"]
Weight = Annotated[float, Field(ge=0, le=1000)]
Schedule = Literal["constant", "cosine"]


class Model(Section):
    """The architecture of the global model and of silos that differ from it."""

    arch: Architecture = "cnn"
    per_silo: dict[str, Architecture] = Field(
        default={}, description="silo name to the architecture of its pre-trained model"
    )
    files: list[str] = Field(
        default=[],
        max_length=100,
        description="files that own functions read: an edit of one makes new models and runs",
    )


class Pretraining(Section):
    """How the silos' own models are trained, or where they are read."""

    epochs: Count = 20
    lr: Rate = 0.02
    momentum: Momentum = 0.9
    batch_size: Count = 32
    schedule: Schedule = Field(
        "constant", description="of the learning rate; cosine: down to zero over all epochs"
    )
    init: Literal["shared", "per-silo"] = Field(
        "shared", description="one initialisation for all silos, or one for each"
    )
    checkpoints: dict[str, str] = Field(
        default={}, description="silo name to a .safetensors file used instead of pre-training"
    )


class Rounds(Section):
    """The communication rounds."""

    max: Count = 40
    stop: Literal["targets", "budget"] = Field(
        "targets", description="stop when all targets are reached, or after max rounds"
    )
    fraction: Fraction = Field(1.0, description="of the silos that train in a round")
    local_epochs: Count = 1
    batch_size: Count = 32
    lr: Rate = 0.05
    momentum: Momentum = 0.9
    weight_decay: float = Field(0.0, ge=0, le=1)
    schedule: Schedule = Field(
        "constant",
        description="of the learning rate over the rounds; cosine: down to zero after max rounds",
    )
    local_loss: LocalLoss = "cross-entropy"
    options: Options = Field(
        default={}, description="keyword arguments of a local loss of your own"
    )
    mu: Weight = Field(
        0.01,
        description="for local_loss proximal: weight of half the squared distance to the received "
        "parameters",
    )
    beta: Weight = Field(
        1.0, description="for local_loss not-true: weight of the received model's predictions"
    )
    tau: Rate = Field(
        1.0,
        description="for local_loss logit-adjusted: scale of the log prior; not-true: temperature",
    )
    quorum: float = Field(
        0.5, ge=0, le=1, description="minimum share of a round's silos with a valid reply"
    )
    timeout: float = Field(3600.0, gt=0, description="seconds to wait for a round's replies")
    max_failures: Count = Field(
        3, description="failed replies of a silo after which it is no longer asked"
    )
    max_examples: int = Field(
        10_000_000,
        ge=1,
        le=1_000_000_000,
        description="maximum number of examples of a silo; a reply that claims more is refused",
    )
    aggregation: Aggregation = Field(
        "mean",
        description="of a round's models: mean weighted by examples, or one of two unweighted "
        "aggregates that are robust to a minority of bad models",
    )
    trim: float = Field(
        0.2,
        gt=0,
        lt=0.5,
        description="share cut off at either end; for aggregation: trimmed-mean",
    )

    @model_validator(mode="after")
    def _check(self) -> Rounds:
        refuse_options(self.options, LOCAL_LOSSES, self.local_loss)
        return self

    def in_round(self, number: int) -> Rounds:
        """Return the settings of one round, counted from 1, with its learning rate.

        ``cosine`` is lr (1 + cos(pi (r - 1) / max)) / 2: Loshchilov & Hutter 1608.03983, without
        restarts. On heterogeneous data FedAvg converges only with a decaying rate (Li et al.
        1907.02189).
        """
        if self.schedule == "constant":
            return self
        share = (1 + math.cos(math.pi * (number - 1) / self.max)) / 2
        return self.model_copy(update={"lr": self.lr * share})


class RoundOverrides(Section):
    """Keys of ``rounds`` that differ for one arm."""

    max: Count | None = None
    stop: Literal["targets", "budget"] | None = None
    fraction: Fraction | None = None
    local_epochs: Count | None = None
    batch_size: Count | None = None
    lr: Rate | None = None
    momentum: Momentum | None = None
    weight_decay: Annotated[float, Field(ge=0, le=1)] | None = None
    schedule: Schedule | None = None
    local_loss: LocalLoss | None = None
    options: Options | None = None
    mu: Weight | None = None
    beta: Weight | None = None
    tau: Rate | None = None
    quorum: Annotated[float, Field(ge=0, le=1)] | None = None
    timeout: Annotated[float, Field(gt=0)] | None = None
    max_failures: Count | None = None
    max_examples: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    aggregation: Aggregation | None = None
    trim: Annotated[float, Field(gt=0, lt=0.5)] | None = None
