"""An arm: how the global model starts, and how its rounds go on."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from fedkd.config.consolidation import Consolidation
from fedkd.config.rounds import RoundOverrides
from fedkd.config.sections import Architecture, Count, Momentum, Options, Rate, Section
from fedkd.registry import STARTS, STRATEGIES, start_needs_models


class ServerOptimiser(Section):
    """How the server steps along the mean of a round's changes; of fedavgm and fedadam."""

    lr: Rate | None = Field(None, description="1 for fedavgm, 0.01 for fedadam by default")
    momentum: Momentum = Field(0.9, description="of fedavgm; beta_1 of fedadam")
    beta_2: Momentum = Field(0.99, description="of fedadam: decay of the squared changes")
    tau: Rate = Field(1e-3, description="of fedadam: degree of adaptivity")


class Fusion(Section):
    """How feddf distils the round's models into their average, on the transfer set."""

    epochs: Count = 1
    batch_size: Count = 32
    lr: Rate = 0.01
    momentum: Momentum = 0.9
    temperature: Rate = 1.0


class Arm(Section):
    """One way to start the global model and to go on."""

    start: Annotated[
        str, AfterValidator(STARTS.check), Field(json_schema_extra={"examples": list(STARTS)})
    ]
    strategy: Annotated[
        str,
        AfterValidator(STRATEGIES.check),
        Field(json_schema_extra={"examples": list(STRATEGIES)}),
    ] = "fedavg"
    options: Options = Field(
        default={}, description="of a start or strategy of your own, which reads them"
    )
    server: ServerOptimiser = ServerOptimiser()
    fusion: Fusion = Fusion()
    arch: Architecture | None = Field(
        None, description="of this arm's global model, where it differs from model.arch"
    )
    consolidation: Consolidation | None = None
    rounds: RoundOverrides = RoundOverrides()

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
        if self.options and not (STARTS.is_own(self.start) or STRATEGIES.is_own(self.strategy)):
            raise ValueError(
                "options are for a start or strategy of your own (package.module:function), but "
                f"{self.start} and {self.strategy} are built in"
            )
        return self

    @property
    def starts_from_models(self) -> bool:
        """Whether the silos' own models may be asked for; imports nothing to find out."""
        return self.start != "random"

    @property
    def needs_pretrained(self) -> bool:
        """Whether the silos must own a trained model for this arm.

        Raises:
            UserError: its start is the user's own and cannot be imported.
        """
        return start_needs_models(self.start)

    @property
    def needs_transfer(self) -> bool:
        """Whether this arm may use the transfer set."""
        starts, strategies = ("random", "average", "best"), ("fedavg", "fedavgm", "fedadam")
        return self.start not in starts or self.strategy not in strategies
