"""Sections on training: architectures, pre-training, and the communication rounds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from fedkd.config.backbone import BackboneKeys, Preprocessing
from fedkd.config.optimizer import (
    Augmentation,
    ClassWeights,
    OptimizerKeys,
    OptimizerName,
    Schedule,
    Share,
    WeightDecay,
    rate_factor,
)
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
from fedkd.user_code import LOSS_SETTINGS, MethodSpec

LocalLoss = Annotated[str, AfterValidator(LOCAL_LOSSES.check), names_of(LOCAL_LOSSES)]
Aggregation = Literal["mean", "median", "trimmed-mean"]
Weight = Annotated[float, Field(ge=0, le=1000)]


class Model(BackboneKeys):
    """The architecture of the global model and of silos that differ from it."""

    arch: Architecture = "cnn"
    per_silo: dict[str, Architecture] = Field(
        default={}, description="silo name to the architecture of its pre-trained model"
    )
    batch_norm: Literal["average", "local", "recalibrate"] = Field(
        "average",
        description="BatchNorm in averaged models: averaged too; local: also averaged, but every "
        "silo goes on with its own (FedBN); recalibrate: statistics are computed anew on the "
        "transfer set after every average",
    )
    files: list[str] = Field(
        default=[],
        max_length=100,
        description="files that own functions read: an edit of one makes new models and runs",
    )


class Pretraining(OptimizerKeys):
    """How the silos' own models are trained, or where they are read."""

    epochs: Count = 20
    lr: Rate = Field(0.02, description="learning rate; by default 0.001 for adam and adamw")
    patience: Count | None = Field(
        None,
        description="epochs without a lower loss on the silo's own validation part after which "
        "training ends; the best epoch's weights are kept. By default no early stop",
    )
    validation: float = Field(
        0.1,
        gt=0,
        le=0.5,
        description="share of a silo's examples that it holds out for patience; silos too small to "
        "hold out one train for all epochs",
    )
    min_size: Count = Field(
        1,
        description="silos of fewer examples have no model of their own, and take part in rounds "
        "alone",
    )
    init: Literal["shared", "per-silo"] = Field(
        "shared", description="one initialisation for all silos, or one for each"
    )
    checkpoints: dict[str, str] = Field(
        default={},
        description="silo name to a checkpoint used instead of pre-training: .safetensors, "
        ".safetensors.index.json, .pt, .pth, .ckpt or .bin",
    )
    preprocessing: dict[str, Preprocessing] = Field(
        default={},
        description="silo name to the preprocessing of its own model, where it differs from "
        "model.preprocessing",
    )

    @model_validator(mode="after")
    def _check(self) -> Pretraining:
        default = type(self).model_fields["validation"].default
        if self.patience is None and self.validation != default:
            raise ValueError("validation: is held out for an early stop; set patience")
        return self

    def num_held_out(self, count: int) -> int:
        """Return how many of a silo's examples its pre-training holds out."""
        return 0 if self.patience is None else round(self.validation * count)


class Rounds(OptimizerKeys):
    """The communication rounds. Every silo begins every round with a fresh optimizer."""

    max: Count = 40
    stop: Literal["targets", "budget"] = Field(
        "targets", description="stop when all targets are reached, or after max rounds"
    )
    fraction: Fraction = Field(1.0, description="of the silos that train in a round")
    local_epochs: Count = 1
    schedule: Schedule = Field(
        "constant",
        description="of the learning rate over the rounds; linear and cosine: down to zero after "
        "max rounds",
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
    enough: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="for deployed silos: share of a round's silos, at least quorum, after whose "
        "replies the others are only waited for during grace; by default all are waited for",
    )
    grace: float = Field(
        0.2,
        ge=0,
        le=10,
        description="for enough: the time that the other silos get, as a share of the time that "
        "enough silos took",
    )
    max_failures: Count = Field(
        3, description="failed replies of a silo after which it is no longer asked"
    )
    keep: Count | None = Field(
        None,
        description="every so many rounds the global model is kept in the run's folder, and the "
        "best one on data.validation; by default only the final one is",
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
        0.2, gt=0, lt=0.5, description="share cut off at either end; for aggregation: trimmed-mean"
    )

    @model_validator(mode="after")
    def _check(self) -> Rounds:
        refuse_options(self.options, LOCAL_LOSSES, self.local_loss)
        if self.enough is None and self.grace != type(self).model_fields["grace"].default:
            raise ValueError(
                "grace: is the time that silos get after enough have replied; set enough"
            )
        return self

    def in_round(self, number: int) -> Rounds:
        """Return the settings of one round, counted from 1, with its learning rate.

        On heterogeneous data FedAvg converges only with a decaying rate (Li et al. 1907.02189).
        """
        share = rate_factor(number - 1, self.max, schedule=self.schedule, warmup=self.warmup)
        return self if share == 1 else self.model_copy(update={"lr": self.lr * share})

    @property
    def length_decides_rates(self) -> bool:
        """Whether the learning rate of a round depends on ``max``."""
        return self.schedule != "constant" or self.warmup > 0

    def check_local_loss(self, spec: MethodSpec) -> None:
        """Refuse settings that the local loss does not use.

        The spec of a user's own loss is known only once it is imported.

        Raises:
            ValueError: with the key and what to do.
        """
        for key in LOSS_SETTINGS:
            default = type(self).model_fields[key].default
            if key not in spec.uses and getattr(self, key) != default:
                remedy = "leave it out"
                if LOCAL_LOSSES.is_own(self.local_loss):
                    remedy = f"if it uses it, declare it: @fedkd.local_loss(uses={{{key!r}}})"
                raise ValueError(f"{key}: is not used by local_loss {self.local_loss}; {remedy}")


class RoundOverrides(Section):
    """Keys of ``rounds`` that differ for one arm."""

    max: Count | None = None
    stop: Literal["targets", "budget"] | None = None
    fraction: Fraction | None = None
    local_epochs: Count | None = None
    optimizer: OptimizerName | None = None
    lr: Rate | None = None
    momentum: Momentum | None = None
    weight_decay: WeightDecay | None = None
    batch_size: Count | None = None
    warmup: Share | None = None
    schedule: Schedule | None = None
    clip_norm: Rate | None = None
    label_smoothing: Share | None = None
    class_weights: ClassWeights | None = None
    augment: Augmentation | None = None
    local_loss: LocalLoss | None = None
    options: Options | None = None
    mu: Weight | None = None
    beta: Weight | None = None
    tau: Rate | None = None
    quorum: Annotated[float, Field(ge=0, le=1)] | None = None
    timeout: Annotated[float, Field(gt=0)] | None = None
    enough: Annotated[float, Field(gt=0, le=1)] | None = None
    grace: Annotated[float, Field(ge=0, le=10)] | None = None
    max_failures: Count | None = None
    keep: Count | None = None
    max_examples: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    aggregation: Aggregation | None = None
    trim: Annotated[float, Field(gt=0, lt=0.5)] | None = None
