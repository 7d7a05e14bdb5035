"""Show the progress of a study that another process runs, from the files it writes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedkd.config import RelativeTargets, Study
from fedkd.config.study_file import parse_study
from fedkd.errors import FedKDError
from fedkd.registry import METRICS, MetricName
from fedkd.results.folder import STUDY_FILE, SUMMARY_FILE, find_run, percent, read_study
from fedkd.results.record import ROUNDS_FILE, STATE_FILE, Point, RunRecord, read_points
from fedkd.util.yaml_loader import dump_yaml

POLL_SECONDS = 1.0
ROWS_ALWAYS_SHOWN = 40


@dataclass(frozen=True)
class RunState:
    """Progress of one arm and seed.

    Attributes:
        record: the record of an ended run, else None.
        points: the curve so far.
        max_rounds: the budget of rounds.
        targets: values of the metric; empty while they depend on a baseline that has not ended.
    """

    arm: str
    seed: int
    record: RunRecord | None
    points: tuple[Point, ...]
    max_rounds: int
    targets: tuple[float, ...]
    metric: MetricName = "accuracy"

    @property
    def phase(self) -> str:
        """``waiting``, ``running``, ``cached``, or the stop reason, such as ``targets``."""
        if self.record is not None:
            return "cached" if self.record.cached else self.record.stopped
        return "running" if self.points else "waiting"


@dataclass(frozen=True)
class StudyState:
    """Progress of a study.

    Attributes:
        runs: all arms and seeds, in the order in which they run.
        ended: whether the summary has been written.
        elapsed: seconds from the start to the newest file, by the clock of the writing host.
    """

    study: Study
    runs: tuple[RunState, ...]
    ended: bool
    elapsed: float

    @property
    def seconds_left(self) -> float | None:
        """Time left if every run uses its whole budget at the current pace; None before round 1."""
        computed = [run for run in self.runs if run.phase not in ("waiting", "cached")]
        done = sum(run.points[-1].round for run in computed if run.points)
        if not done or self.ended:
            return None
        left = sum(
            run.max_rounds - (run.points[-1].round if run.points else 0)
            for run in self.runs
            if run.record is None
        )
        return self.elapsed / done * left


def read_state(folder: Path) -> StudyState:
    """Read the progress of the study in a results folder."""
    folder = find_run(folder)
    path = folder / STUDY_FILE
    study = parse_study(dump_yaml(read_study(folder)), origin=str(path))
    arms = list(study.arms)
    if isinstance(study.targets, RelativeTargets):
        arms.sort(key=lambda arm: arm != study.baselines[0])
    started = newest = path.stat().st_mtime
    runs = []
    for seed in study.seeds:
        # Relative targets are set by the first baseline's curve on the same seed.
        targets = tuple(study.absolute_targets or ())
        for arm in arms:
            run_folder = folder / arm / f"seed-{seed}"
            run = _read_run(study, run_folder, arm, seed, targets)
            runs.append(run)
            targets = run.record.targets if run.record is not None and not targets else targets
            newest = max([newest, *(p.stat().st_mtime for p in run_folder.glob(ROUNDS_FILE))])
    ended = (folder / SUMMARY_FILE).is_file()
    return StudyState(study, tuple(runs), ended, newest - started)


def watch(
    folder: Path,
    console: Console,
    *,
    once: bool = False,
    sleep: Callable[[float], None] = time.sleep,
    on_state: Callable[[StudyState], None] = lambda _: None,
    draw: bool = True,
) -> bool:
    """Show the progress of a study until it has ended, and return whether it has.

    ``on_state`` receives every state that differs from the one before, and ``sleep`` waits
    between two reads.

    Raises:
        UserError: the folder is not a results folder.
        KeyboardInterrupt: the user pressed Ctrl-C; the study continues.
    """
    folder = find_run(folder)
    state = read_state(folder)
    on_state(state)
    if once or state.ended:
        if draw:
            console.print(render(state, ROWS_ALWAYS_SHOWN))
        return state.ended
    rows = max(8, console.height - 8)
    shown = (
        Live(render(state, rows), console=console, auto_refresh=False) if draw else nullcontext()
    )
    with shown as live:
        while not state.ended:
            sleep(POLL_SECONDS)
            before, state = state, read_state(folder)
            if state != before:
                on_state(state)
            if live is not None:
                live.update(render(state, rows), refresh=True)
    return True


def render(state: StudyState, max_rows: int) -> RenderableType:
    """Return a table of all runs, or of the running ones if there are too many."""
    table = Table(title=state.study.name, title_justify="left", title_style="bold")
    metric = METRICS[state.study.metric]
    for name, right in (("arm", 0), ("seed", 1), ("state", 0), ("rounds", 1), (metric, 1)):
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    table.add_column("targets")
    shown = list(state.runs)
    if len(shown) > max_rows:
        shown = [run for run in shown if run.phase == "running"][:max_rows]
    for run in shown:
        table.add_row(*_cells(run))
    return Group(table, Text(_status(state)))


def _read_run(
    study: Study, folder: Path, arm: str, seed: int, targets: tuple[float, ...]
) -> RunState:
    record: RunRecord | None = None
    points: tuple[Point, ...] = ()
    try:
        if (folder / STATE_FILE).is_file():
            record = RunRecord.read(folder)
        points = record.curve if record is not None else read_points(folder)
    except (FedKDError, ValueError, TypeError, RecursionError, OSError):
        # Read during a write or a copy: the next read gets complete files.
        record = None
    run_targets = record.targets if record is not None and record.targets else targets
    return RunState(arm, seed, record, points, study.rounds_of(arm).max, run_targets, study.metric)


def _cells(run: RunState) -> list[RenderableType]:
    style = {"running": "bold", "waiting": "dim", "interrupted": "red"}.get(run.phase, "")
    last = run.points[-1] if run.points else None
    return [
        Text(run.arm, style),
        Text(str(run.seed), style),
        Text(f"ended: {run.phase}" if run.record is not None else run.phase, style),
        Text(f"{last.round if last else 0}/{run.max_rounds}", style),
        Text(_percent(last.value(run.metric)) if last else "", style),
        _targets(run),
    ]


def _targets(run: RunState) -> Text:
    """Return every target with the round that reached it, or the best value so far."""
    text = Text()
    values = [v for point in run.points if (v := point.value(run.metric)) is not None]
    for target in run.targets:
        reached = next((p.round for p in run.points if p.reaches(target, run.metric)), None)
        text.append("  " if text else "")
        if reached is not None:
            text.append(f"{percent(target)} in round {reached}", "green")
        elif run.record is not None:
            text.append(f"{percent(target)} not reached", "red")
        else:
            gap = f", best {percent(max(values))}" if values else ""
            text.append(f"{percent(target)} pending{gap}", "dim")
    return text


def _percent(value: float | None) -> str:
    return "unknown" if value is None else percent(value)


def _status(state: StudyState) -> str:
    ended = sum(run.record is not None for run in state.runs)
    running = sum(run.phase == "running" for run in state.runs)
    words = f"{ended} of {len(state.runs)} runs have ended, {running} running"
    words += f"; {_clock(state.elapsed)} so far"
    if state.ended:
        return words + "; the study has ended"
    if (left := state.seconds_left) is not None:
        words += f", at most about {_clock(left)} left"
    return words


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
