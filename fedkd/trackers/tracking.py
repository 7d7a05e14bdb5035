"""Logging every run to the trackers, none of which can end or change a study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedkd.config import Study
from fedkd.results.observer import Observer
from fedkd.results.record import Point, RunRecord
from fedkd.trackers.base import RunLog, TrackedRun, Tracker, final_figures
from fedkd.user_code import describe

Key = tuple[str, int]


class Tracking(AbstractContextManager["Tracking"]):
    """Logs the runs of one study to its trackers.

    A tracker that raises an exception is left out for the rest of the study, with one warning. The
    record of a run is complete: points that the engine did not report, and all points of a run
    from the cache, are logged when the run ends.
    """

    def __init__(
        self, trackers: Sequence[Tracker], study: Study, folder: Path, warn: Callable[[str], None]
    ) -> None:
        self._trackers = list(trackers)
        self._study = study
        self._folder = folder
        self._warn = warn
        self._logs: dict[Key, list[tuple[Tracker, RunLog]]] = {}
        self._logged: dict[Key, int] = {}

    def __exit__(self, *exc_info: object) -> None:
        """Close all open runs and all trackers."""
        for arm, seed in list(self._logs):
            self.fail(arm, seed)
        for tracker in list(self._trackers):
            self._guard(tracker, tracker.close)

    def watch(self, arm: str, seed: int, observer: Observer) -> Observer:
        """Return an observer that calls ``observer`` and logs points to the trackers."""
        return _Both(observer, lambda point: self._log((arm, seed), point))

    def finish(self, record: RunRecord) -> None:
        """Close a run that has a record, after logging the points that were not yet logged."""
        key = (record.arm, record.seed)
        for point in record.curve[self._logged.get(key, 0) :]:
            self._log(key, point)
        self._end(key, final_figures(self._study, record), record.stopped)

    def fail(self, arm: str, seed: int) -> None:
        """Close a run without a record, if it was open."""
        self._end((arm, seed), {}, "failed")

    def _log(self, key: Key, point: Point) -> None:
        for tracker, log in self._opened(key):
            self._guard(tracker, partial(log.log, point))
        self._logged[key] = self._logged.get(key, 0) + 1

    def _opened(self, key: Key) -> list[tuple[Tracker, RunLog]]:
        if key not in self._logs:
            run = TrackedRun(self._study, *key, self._folder)
            self._logs[key] = []
            for tracker in list(self._trackers):
                self._guard(tracker, partial(self._begin, tracker, run))
        return [(t, log) for t, log in self._logs[key] if t in self._trackers]

    def _begin(self, tracker: Tracker, run: TrackedRun) -> None:
        self._logs[run.arm, run.seed].append((tracker, tracker.begin(run)))

    def _end(self, key: Key, figures: dict[str, float], status: str) -> None:
        for tracker, log in self._logs.pop(key, []):
            if tracker in self._trackers:
                self._guard(tracker, partial(log.end, figures, status=status))

    def _guard(self, tracker: Tracker, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self._trackers.remove(tracker)
            name = type(tracker).__name__.removesuffix("Tracker")
            if type(tracker).__module__.startswith("fedkd."):
                lines = str(error).strip().splitlines() or [type(error).__name__]
                reason = lines[0]
            else:
                reason = " ".join(describe(error).split())
            self._warn(f"{name} is left out from here on: {reason}")


@dataclass(frozen=True)
class _Both:
    """Calls an observer first, then the trackers."""

    observer: Observer
    log: Callable[[Point], None]

    def on_point(self, point: Point) -> None:
        self.observer.on_point(point)
        self.log(point)

    def on_distillation(self, epoch: int, epochs: int) -> None:
        self.observer.on_distillation(epoch, epochs)

    def on_waiting(self, reason: str) -> None:
        self.observer.on_waiting(reason)
