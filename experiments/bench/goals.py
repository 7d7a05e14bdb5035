"""Goals, each with its measurement and whether it is met."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Minimum, median and maximum of some values."""

    least: float
    median: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        return cls(min(values), statistics.median(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.least:.3g} to {self.greatest:.3g})"


@dataclass(frozen=True)
class Goal:
    """One goal and its measurement.

    Attributes:
        text: the goal in words.
        limit: the bound on the median.
        at_least: whether it is a lower bound.
        measured: the measurement, or None without one.
        note: a remark.
    """

    text: str
    limit: float
    at_least: bool = False
    measured: Spread | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether it is met; None without a measurement."""
        if self.measured is None:
            return None
        if self.at_least:
            return self.measured.median >= self.limit
        return self.measured.median <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {**asdict(self), "met": self.met}
