"""The interface of trackers: they get a run's settings, its points, and its final figures.

A tracker of the user's own is a class with the methods of :class:`Tracker`, named on the command
line as ``--track package.module:Class``. It is made without arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from fedkd.config import Study
from fedkd.results.points import flat_point
from fedkd.results.record import Point, RunRecord


@dataclass(frozen=True)
class TrackedRun:
    """One arm and seed of a study.

    Attributes:
        seed: the repetition.
        folder: the study's results folder, ``<out>/<study>/<timestamp>``.
    """

    study: Study
    arm: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """A readable name."""
        return f"{self.arm}-seed-{self.seed}"

    def settings(self) -> dict[str, Any]:
        """Return the run's settings as nested plain values."""
        resolved = self.study.to_dict()
        return {
            "study": self.study.name,
            "timestamp": self.folder.name,
            "arm": self.arm,
            "seed": self.seed,
            **{key: resolved[key] for key in ("data", "partition", "model", "pretraining")},
            **resolved["arms"][self.arm],
            "rounds": self.study.rounds_of(self.arm).model_dump(mode="json", exclude_none=True),
            "engine": resolved["engine"],
        }


class RunLog(Protocol):
    """One run at one tracker."""

    def log(self, point: Point) -> None:
        """Log a round; :func:`figures_of` gives its figures with their names in ``rounds.jsonl``.

        The point of round 0 is the start.
        """

    def end(self, figures: Mapping[str, float], *, status: str) -> None:
        """Log the final figures and close the run.

        Args:
            figures: by name; see :func:`final_figures`.
            status: why the run stopped, or ``failed``.
        """


class Tracker(Protocol):
    """Logs the runs of a study.

    The constructor imports what it needs, so that a missing package is found before a run starts.
    """

    def begin(self, run: TrackedRun) -> RunLog:
        """Open a run; several may be open at once."""

    def close(self) -> None:
        """Release what is shared by all runs."""


def figures_of(point: Point) -> dict[str, float]:
    """Return a point's figures by name; a loss that was not finite is left out."""
    values = flat_point(asdict(point))
    return {name: value for name, value in values.items() if value is not None}


def final_figures(study: Study, record: RunRecord) -> dict[str, float]:
    """Return a run's best and final accuracy, and the cost of every target that it reached.

    A target is named by its number in the study, such as ``exchanges_to_0.85``.
    """
    accuracies = [point.accuracy for point in record.curve]
    figures: dict[str, float] = {
        "best_accuracy": max(accuracies),
        "final_accuracy": accuracies[-1],
    }
    for named, target in zip(study.target_values, record.targets, strict=False):
        for figure in ("exchanges", "bytes", "seconds"):
            spent = record.cost(target)[figure]
            if spent is not None:
                figures[f"{figure}_to_{named:g}"] = spent
    return figures


def flatten(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested mappings as one, its keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{above}.{key}" if above else key
        flat.update(flatten(value, path) if isinstance(value, Mapping) else {path: value})
    return flat
