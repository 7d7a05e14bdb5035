"""What shows the progress of a search; see :mod:`fedkd.report.progress`."""

from __future__ import annotations

from typing import Protocol

from fedkd.federation.prepare import PreparationProgress


class Progress(PreparationProgress, Protocol):
    """Shows the progress of the search for a start's settings."""

    def on_trial(self, ended: int, total: int, best: float | None) -> None:
        """Called with the number of ended trials, and the best score."""

    def on_epoch(self, seed: int, epoch: int, epochs: int) -> None:
        """Called after every epoch of a student."""


class ArmProgress(PreparationProgress, Protocol):
    """Shows the progress of the search for the settings of whole arms."""

    def on_arm_trial(self, arm: str, ended: int, total: int, best: int | None) -> None:
        """Called with the number of ended trials, and the exchanges of the best."""
