"""Callbacks of a run."""

from __future__ import annotations

from typing import Protocol

from fedkd.results.record import Point


class Observer(Protocol):
    """Receives the progress of a run."""

    def on_point(self, point: Point) -> None:
        """Called after the evaluation of the start and of every round."""

    def on_distillation(self, epoch: int, epochs: int) -> None:
        """Called after every epoch of distillation."""

    def on_waiting(self, reason: str) -> None:
        """Called while silos that are connected do not answer yet; says which, and why."""
