"""The section on an arm: the start of the global model, and its rounds."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from fedkd.config.consolidation import Consolidation
from fedkd.config.rounds import RoundOverrides
from fedkd.config.sections import Architecture, Count, Momentum, Options, Rate, Section, names_of
from fedkd.config.tuned import Tuned
from fedkd.registry import STARTS, STRATEGIES


class ServerOptimiser(Section):
    """The server's optimiser, for which a round's mean change is the gradient."""

    lr: Rate | None = Field(None, description="by default 1 for fedavgm and 0.01 for fedadam")
    momentum: Momentum = Field(0.9, description="for fedavgm; beta_1 for fedadam")
    beta_2: Momentum = Field(0.99, description="for fedadam: decay of the squared changes")
    tau: Rate = Field(1e-3, description="for fedadam: degree of adaptivity")


class Fusion(Section):
    """The distillation of a round's models into their average, for feddf."""

    epochs: Count = 1
    batch_size: Count = 32
    lr: Rate = 0.01
    momentum: Momentum = 0.9
    temperature: Rate = 1.0


class Arm(Section):
    """A start of the global model, and the rounds that follow."""

    start: Annotated[str, AfterValidator(STARTS.check), names_of(STARTS)] = Field(
        description="random weights, the average of the silos' models, the best of them, the "
        "student of a consolidation, or a checkpoint"
    )
    checkpoint: str | None = Field(
        None,
        min_length=1,
        description="for start: checkpoint: a file, or the folder RUN/ARM/seed-N of a finished "
        "run, whose exchanges are then counted",
    )
    strategy: Annotated[str, AfterValidator(STRATEGIES.check), names_of(STRATEGIES)] = Field(
        "fedavg", description="what the server does with the average of a round's models"
    )
    options: Options = Field(default={}, description="of a start or strategy of your own")
    server: ServerOptimiser = ServerOptimiser()
    fusion: Fusion = Fusion()
    arch: Architecture | None = Field(
        None, description="of this arm's global model, if it differs from model.arch"
    )
    consolidation: Consolidation | None = None
    rounds: RoundOverrides = RoundOverrides()
    tuned: Tuned | None = Field(
        None, description="how these settings were tuned; written by fedkd tune, changes no result"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_consolidation(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("start") == "consolidated":
            return {**data, "consolidation": data.get("consolidation") or {}}
        return data

    @model_validator(mode="after")
    def _check(self) -> Arm:
        if self.consolidation is not None and self.start != "consolidated":
            raise ValueError(
                f"consolidation is set but start is {self.start!r}; use start: consolidated"
            )
        if (self.checkpoint is None) == (self.start == "checkpoint"):
            raise ValueError(
                "checkpoint: is missing; name a file, or the folder RUN/ARM/seed-N of a run"
                if self.checkpoint is None
                else f"checkpoint is set but start is {self.start!r}; use start: checkpoint"
            )
        if self.options and not (STARTS.is_own(self.start) or STRATEGIES.is_own(self.strategy)):
            raise ValueError(
                "options are for a start or strategy of your own (package.module:function), but "
                f"{self.start} and {self.strategy} are built in"
            )
        return self

    @property
    def starts_from_models(self) -> bool:
        """Whether the silos' own models may be used; a user's own start is not imported."""
        asked = self.consolidation is None or self.consolidation.asks_silos
        return self.start not in ("random", "checkpoint") and asked

    @property
    def needs_pretrained(self) -> bool:
        """Whether the silos must own a trained model for this arm.

        Raises:
            UserError: its start is the user's own and cannot be imported.
        """
        if not STARTS.is_own(self.start):
            return self.starts_from_models
        return bool(getattr(STARTS.load(self.start), "needs_models", True))

    @property
    def needs_transfer(self) -> bool:
        """Whether this arm may use the transfer set."""
        starts = ("random", "checkpoint", "average", "best")
        return self.start not in starts or self.strategy not in ("fedavg", "fedavgm", "fedadam")
