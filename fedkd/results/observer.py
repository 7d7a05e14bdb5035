"""Whoever follows a run while it is under way."""

from __future__ import annotations

from typing import Protocol

from fedkd.results.record import Point


class Observer(Protocol):
    """Whoever wants to know how a run goes on."""

    def on_point(self, point: Point) -> None:
        """A round, or the start, has been measured."""

    def on_distillation(self, epoch: int, epochs: int) -> None:
        """An epoch of distillation has ended."""
