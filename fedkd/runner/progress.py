"""What is told of a study while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from fedkd.results.record import RunRecord


class Progress(Protocol):
    """Shows how far a study is; see :mod:`fedkd.report.progress`."""

    def pretraining(self, seed: int, total: int) -> Any:
        """Return a context manager that yields a function to call for every silo."""

    def run(self, arm: str, seed: int, rounds: int, targets: Sequence[float]) -> Any:
        """Return a context manager that yields an Observer of the run."""

    def reused(self, arm: str, seed: int) -> None:
        """A run was taken from the cache."""

    def failed(self, arm: str, seed: int, reason: str) -> None:
        """A run failed."""

    def quarantined(self, record: RunRecord) -> None:
        """A run ended; some replies in it may have been refused."""

    def warn(self, sentence: str) -> None:
        """Something other than a run failed, or a result may be misleading."""
