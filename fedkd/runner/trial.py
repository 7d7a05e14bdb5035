"""Runs on validation data for ``fedkd tune``: an arm is run until the caller has seen enough."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedkd.config import Study
from fedkd.engines.base import Engine, Task
from fedkd.federation.federation import Federation
from fedkd.results.record import Point
from strategies.savepoint import read_exchanges


class TrialRunner:
    """Runs arms on the validation examples in place of the test examples; nothing is kept."""

    def __init__(self, federations: Sequence[Federation], engine: Engine) -> None:
        self._federations = {each.seed: evaluated_on_validation(each) for each in federations}
        self._engine = engine

    def __call__(
        self, study: Study, arm: str, seed: int, on_point: Callable[[int, float], bool]
    ) -> None:
        """Run one seed until ``on_point`` returns false; see :class:`fedkd.tuning` for it."""
        federation = self._federations[seed]
        own = Federation(study, seed, federation.split, federation.cache)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "run"
            exchanges = study.exchanges_before_round_1(arm)
            observer = _Watch(folder, exchanges, study.metric, on_point)
            with contextlib.suppress(_SeenEnoughError):
                self._engine.run(Task(own, arm, (), folder), observer)


class _SeenEnoughError(Exception):
    """Ends a run whose further rounds are not needed."""


class NullObserver:
    """An observer that does nothing."""

    def on_point(self, point: Point) -> None:
        """Do nothing."""

    def on_distillation(self, epoch: int, epochs: int) -> None:
        """Do nothing."""

    def on_waiting(self, reason: str) -> None:
        """Do nothing."""


@dataclass
class _Watch(NullObserver):
    """Passes points on and ends the run where the caller wants it."""

    folder: Path
    exchanges: int
    metric: str
    goes_on: Callable[[int, float], bool]

    def on_point(self, point: Point) -> None:
        """End the run where the caller has seen enough."""
        if point.round == 0:
            measured = read_exchanges(self.folder)
            self.exchanges = self.exchanges if measured is None else measured
        if not self.goes_on(self.exchanges, point.value(self.metric) or 0.0):
            raise _SeenEnoughError


def evaluated_on_validation(federation: Federation) -> Federation:
    """Return the federation with its validation examples as test examples."""
    split = replace(federation.split, test=federation.split.validation)
    return Federation(federation.study, federation.seed, split, federation.cache)
