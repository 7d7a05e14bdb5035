"""Progress bars on the terminal; warnings are printed everywhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedkd.registry import METRICS, MetricName
from fedkd.results.record import Point, RunRecord


class StudyProgress:
    """Shows the progress of the whole study and of the current run.

    Bars appear only on a terminal, warnings always. Targets are in ``metric``.
    """

    _counted = "study"

    def __init__(
        self, console: Console, total_runs: int = 1, metric: MetricName = "accuracy"
    ) -> None:
        self._console = console
        self._metric = metric
        self._bars = _bars(console, TextColumn("{task.fields[detail]}"))
        self._study: TaskID = self._bars.add_task(self._counted, total=total_runs, detail="")

    def __enter__(self) -> Self:
        """Show the bars."""
        self._bars.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Remove the bars."""
        self._bars.stop()

    @contextmanager
    def pretraining(self, seed: int, total: int) -> Iterator[Callable[[], None]]:
        """Show the pre-training of one seed's silos."""
        task = self._bars.add_task(f"pre-training, seed {seed}", total=total, detail="silos")
        yield lambda: self._bars.advance(task)
        self._bars.remove_task(task)

    @contextmanager
    def run(self, arm: str, seed: int, rounds: int, targets: Sequence[float]) -> Iterator[_RunBar]:
        """Show the rounds of one run."""
        task = self._bars.add_task(f"{arm}, seed {seed}", total=rounds, detail="starting")
        try:
            yield _RunBar(self._bars, task, targets, self._metric)
        finally:
            self._bars.remove_task(task)
            self._bars.advance(self._study)

    def reused(self, arm: str, seed: int) -> None:  # noqa: ARG002 -- only the bar advances
        """Count a run that came from the cache."""
        self._bars.advance(self._study)

    def failed(self, arm: str, seed: int, reason: str) -> None:
        """Print that a run failed."""
        self._console.print(f"[red]failed[/red] {arm}, seed {seed}: {escape(reason)}")

    def warn(self, sentence: str) -> None:
        """Print a warning."""
        self._console.print(f"[yellow]note[/yellow] {escape(sentence)}")

    def quarantined(self, record: RunRecord) -> None:
        """Print which silos' replies were not used, and the warnings of a run."""
        where = f"{record.arm}, seed {record.seed}"
        by_silo: dict[str, list[Any]] = {}
        for entry in record.quarantined:
            by_silo.setdefault(entry.silo, []).append(entry)
        for silo, entries in by_silo.items():
            rounds = ", ".join(str(entry.round) for entry in entries[:5])
            remaining = f" and {len(entries) - 5} more" if len(entries) > 5 else ""
            last = record.notes.get("quarantined_after", {}).get(silo)
            ending = "" if last is None else f"; not asked after round {last}"
            self._console.print(
                f"[yellow]not used[/yellow] {where}: {silo} in round {rounds}{remaining}: "
                f"{escape(entries[0].reason)}{ending}"
            )
        if fallback := record.notes.get("fallback"):
            self._console.print(f"[yellow]note[/yellow] {record.arm}: weighting {escape(fallback)}")
        if warning := record.notes.get("warning"):
            self._console.print(f"[yellow]note[/yellow] {where}: {escape(warning)}")
        for silo, trust in record.notes.get("doubted", {}).items():
            self._console.print(
                f"[yellow]excluded[/yellow] {where}: {escape(silo)}, contradicted by others "
                f"(trust {trust:.2f})"
            )


class SearchProgress(StudyProgress):
    """Shows the trials of a search and the current student."""

    _counted = "trials"
    _best = ""

    def on_trial(self, ended: int, total: int, best: float | None) -> None:
        """Show how many trials have ended, and the best score."""
        self._best = "" if best is None else f"best {best:.1%}"
        self._bars.update(self._study, completed=ended, total=total, detail=self._best)

    def on_epoch(self, seed: int, epoch: int, epochs: int) -> None:
        """Show the epoch of the current student."""
        detail = f"{self._best}  seed {seed}, epoch {epoch} of {epochs}"
        self._bars.update(self._study, detail=detail)


class ArmSearchProgress(StudyProgress):
    """Shows the trials of the search for whole arms."""

    _counted = "trials"

    def on_arm_trial(self, arm: str, ended: int, total: int, best: int | None) -> None:
        """Show the number of ended trials of an arm, and the exchanges of the best."""
        detail = "" if best is None else f"best {best} exchanges"
        self._bars.update(self._study, description=arm, completed=ended, total=total, detail=detail)


class PairsProgress(StudyProgress):
    """Shows how many rows of the table of pairs are finished."""

    _counted = "pairs"

    def on_row(self, ended: int, total: int) -> None:
        """Show how many rows are finished."""
        self._bars.update(self._study, completed=ended, total=total)


class _RunBar:
    """Shows the progress of one run."""

    def __init__(
        self, bars: Progress, task: TaskID, targets: Sequence[float], metric: MetricName
    ) -> None:
        self._bars = bars
        self._metric = metric
        self._task = task
        self._targets = sorted(targets)
        self._waiting = ""

    def on_point(self, point: Point) -> None:
        unreached = [t for t in self._targets if not point.reaches(t, self._metric)]
        goal = f" (next target {unreached[0]:.1%})" if unreached else ""
        value = point.value(self._metric)
        name = METRICS[self._metric]
        detail = f"{name} {value:.1%}{goal}" if value is not None else f"{name} unknown{goal}"
        self._bars.update(self._task, completed=point.round, detail=detail)

    def on_distillation(self, epoch: int, epochs: int) -> None:
        self._bars.update(self._task, detail=f"distilling, epoch {epoch} of {epochs}")

    def on_waiting(self, reason: str) -> None:
        if reason != self._waiting:
            self._waiting = reason
            self._bars.console.print(f"[yellow]waiting[/yellow] {escape(reason)}")


class EpochBar:
    """A progress bar over the epochs of one distillation, shown after a delay.

    It appears only on a terminal.
    """

    def __init__(self, console: Console, delay: float = 2.0) -> None:
        self._bar = _bars(console)
        self._task = self._bar.add_task("reading", total=None)
        self._lock = threading.Lock()
        self._ended = False
        self._timer = threading.Timer(delay, self._appear)
        self._timer.daemon = True

    def __enter__(self) -> EpochBar:
        """Start the delay."""
        self._timer.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Remove the bar."""
        self._timer.cancel()
        with self._lock:
            self._ended = True
            self._bar.stop()

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Advance the bar by an epoch."""
        description = "distilling, epochs"
        self._bar.update(self._task, completed=epoch, total=epochs, description=description)

    def _appear(self) -> None:
        with self._lock:
            if not self._ended:
                self._bar.start()


def _bars(console: Console, *more: ProgressColumn) -> Progress:
    """Return bars that disappear at their end, with these columns after the usual ones."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        *more,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
