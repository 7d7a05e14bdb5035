"""What the search for a whole arm's settings may vary: its rounds, its server, its start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from optuna import Trial

from fedkd.config import Arm, Study
from fedkd.tuning.ranges import Range
from fedkd.tuning.space import Value, number, numeric_point, start_ranges, uses_sgd

Point = Mapping[str, Value]

_SGD_LR = Range(0.01, 0.3, least=1e-5, most=10.0)
_ADAPTIVE_LR = Range(3e-4, 0.01, least=1e-6, most=1.0)
_LOCAL_EPOCHS = Range(1, 10, least=1, most=40, kind="int")
_BATCH_SIZE = Range(16, 64, least=4, most=512, kind="power")
_SERVER_LR = {
    "fedavgm": Range(0.1, 2.0, least=1e-3, most=10.0),
    "fedadam": Range(0.001, 0.1, least=1e-5, most=1.0),
}
_SERVER_LR_DEFAULTS = {"fedavgm": 1.0, "fedadam": 0.01}
_FUSION_LR = Range(0.001, 0.1, least=1e-5, most=1.0)
_MOMENTA = (0.0, 0.9)
_SCHEDULES = ("constant", "cosine")
"""Of every arm alike; all of them are ours."""


class ArmSpace:
    """The settings of one arm that a search varies: the same kinds for every arm.

    Learning rate, local epochs, batch size, momentum and schedule of the rounds; the server's
    learning rate where the strategy has one; and the numeric settings of a consolidation, except
    those of a method's identity such as its weighting. The loss, the number of rounds and the
    share of silos in a round stay as they are.
    """

    def __init__(self, study: Study, arm: str) -> None:
        self._arm = study.arms[arm]
        self._own, self._ranges = _numbers(study, arm)
        self._choices = _choices(study, arm)

    def own_point(self) -> dict[str, Value]:
        """Return the arm's own settings as parameters."""
        return {**self._own, **{key: options[0] for key, options in self._choices.items()}}

    def ranges(self, tried: Iterable[Point] = ()) -> dict[str, Range]:
        """Return the ranges, extended to the values that earlier trials have tried."""
        points = list(tried)
        return {
            key: each.including([number(point[key]) for point in points])
            for key, each in self._ranges.items()
        }

    def suggest(self, trial: Trial, ranges: Mapping[str, Range]) -> dict[str, Value]:
        """Let the sampler choose a point within the ranges."""
        point: dict[str, Value] = {key: each.suggest(trial, key) for key, each in ranges.items()}
        for name, options in self._choices.items():
            choice = trial.suggest_categorical(name, list(options))
            if choice is not None:
                point[name] = choice
        return point

    def choices(self) -> dict[str, tuple[Value, ...]]:
        """Return the settings that are not numeric, with their options; the first is the arm's."""
        return dict(self._choices)

    def settings(self, point: Point) -> Arm:
        """Return the arm with a point's values in place of its own.

        Raises:
            ValueError: the point has another key than this space, or an invalid value.
        """
        if point.keys() != self.own_point().keys():
            raise ValueError("its settings are not those of the search")
        data = self._arm.model_dump(exclude_none=True)
        for path, value in point.items():
            *sections, key = path.split(".")
            place: dict[str, Any] = data
            for section in sections:
                place = place[section]
            place[key] = value
        return Arm.model_validate(data)


def at_edge(point: Point, ranges: Mapping[str, Range]) -> list[str]:
    """Return the settings of a point whose values lie at an edge that can be extended."""
    return [key for key, each in ranges.items() if each.edge(number(point[key]))]


def step_beyond(point: Point, ranges: Mapping[str, Range]) -> dict[str, Value] | None:
    """Return the point with the first setting at an edge moved beyond it; None if none is."""
    for key in at_edge(point, ranges):
        side = ranges[key].edge(number(point[key]))
        if side is not None:
            return {**point, key: ranges[key].beyond(side)}
    return None


def _numbers(study: Study, arm: str) -> tuple[dict[str, float | int], dict[str, Range]]:
    """Return the numeric settings of an arm, and their ranges."""
    settings, rounds = study.arms[arm], study.rounds_of(arm)
    own: dict[str, float | int] = {
        "rounds.lr": rounds.lr,
        "rounds.local_epochs": rounds.local_epochs,
        "rounds.batch_size": rounds.batch_size,
    }
    ranges = {
        "rounds.lr": _SGD_LR if uses_sgd(rounds) else _ADAPTIVE_LR,
        "rounds.local_epochs": _LOCAL_EPOCHS,
        "rounds.batch_size": _BATCH_SIZE,
    }
    if settings.strategy in _SERVER_LR:
        lr = settings.server.lr
        own["server.lr"] = _SERVER_LR_DEFAULTS[settings.strategy] if lr is None else lr
        ranges["server.lr"] = _SERVER_LR[settings.strategy]
    if settings.strategy == "feddf":
        own["fusion.lr"] = settings.fusion.lr
        ranges["fusion.lr"] = _FUSION_LR
    start = settings.consolidation
    if start is not None:
        labelled = study.has_labels(start)
        values = numeric_point(start)
        for key, each in start_ranges(start, labelled=labelled).items():
            if start.uses_densities or not key.startswith("familiarity."):
                own[f"consolidation.{key}"] = values[key]
                ranges[f"consolidation.{key}"] = each
    return own, {key: each.around(own[key]) for key, each in ranges.items()}


def _choices(study: Study, arm: str) -> dict[str, tuple[Value, ...]]:
    """Return the options of the settings that are not numeric, the arm's own first."""
    rounds = study.rounds_of(arm)
    choices: dict[str, tuple[Value, ...]] = {}
    if uses_sgd(rounds):
        choices["rounds.momentum"] = tuple(dict.fromkeys((rounds.momentum, *_MOMENTA)))
    choices["rounds.schedule"] = tuple(dict.fromkeys((rounds.schedule, *_SCHEDULES)))
    return choices
