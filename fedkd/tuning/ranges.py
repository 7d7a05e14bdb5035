"""Ranges of numeric settings, which grow while the best value lies at their edge."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from optuna import Trial
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

Number = float | int
Side = Literal["low", "high"]

EDGE = 0.1
"""A value lies at an edge if it is within this share of the range, on a logarithmic scale. Ours."""
DIGITS = 3
"""Significant digits of a float, which a study file shows."""


@dataclass(frozen=True)
class Range:
    """Where a setting is searched.

    Attributes:
        least: bound below which ``low`` is never extended.
        most: bound above which ``high`` is never extended.
        step: factor by which an edge is extended.
        kind: ``float`` and ``int`` are logarithmic; ``power`` rounds to powers of two; ``share`` is
            linear and is not extended.
        own: the study's value, which is not rounded.
    """

    low: Number
    high: Number
    least: Number
    most: Number
    step: float = 2.0
    kind: Literal["float", "int", "power", "share"] = "float"
    own: Number | None = None

    @classmethod
    def fixed(cls, low: Number, high: Number, kind: Literal["float", "int", "share"]) -> Range:
        """Return a range that is never extended."""
        return cls(low, high, low, high, kind=kind)

    def around(self, own: Number) -> Range:
        """Return the range with the study's own value in it."""
        return replace(self.including([own]), own=own)

    def including(self, values: Iterable[Number]) -> Range:
        """Return the range extended to these values."""
        reached = [self.low, self.high, *values]
        return replace(
            self,
            low=min(reached),
            high=max(reached),
            least=min(self.least, *reached),
            most=max(self.most, *reached),
        )

    def distribution(self) -> BaseDistribution:
        """Return the range as Optuna's distribution."""
        if self.kind in ("float", "share"):
            return FloatDistribution(self.low, self.high, log=self.kind == "float")
        return IntDistribution(int(self.low), int(self.high), log=True)

    def suggest(self, trial: Trial, name: str) -> Number:
        """Let the sampler choose a value, and round it."""
        if self.kind in ("float", "share"):
            value: Number = trial.suggest_float(name, self.low, self.high, log=self.kind == "float")
        else:
            value = trial.suggest_int(name, int(self.low), int(self.high), log=True)
        return value if value == self.own else self._round(value)

    def edge(self, value: Number) -> Side | None:
        """Return at which edge a value lies, if that edge can be extended."""
        if self.kind == "share" or self.high <= self.low:
            return None
        near = EDGE * math.log(self.high / self.low) + 1e-9
        if self.high < self.most and math.log(self.high / value) <= near:
            return "high"
        if self.low > self.least and math.log(value / self.low) <= near:
            return "low"
        return None

    def beyond(self, side: Side) -> Number:
        """Return the next value outside the range."""
        value = self.high * self.step if side == "high" else self.low / self.step
        return self._round(min(max(value, self.least), self.most))

    def _round(self, value: Number) -> Number:
        if self.kind == "power":
            return int(2 ** round(math.log2(value)))
        return round(value) if self.kind == "int" else float(f"{value:.{DIGITS}g}")
