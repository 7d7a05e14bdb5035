"""Run what has not been recorded, then rebuild RESULTS.md from the records.

python -m experiments.paper            run and rebuild
python -m experiments.paper --rebuild  rebuild only
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.paper.claims import write_results
from experiments.paper.plan import FOLDER, RATES, Run, plan
from experiments.paper.recipe import choose_missing
from experiments.paper.record import attempt, is_recorded

RESULTS = FOLDER / "RESULTS.md"


def main() -> None:
    """Run, record, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rebuild", action="store_true", help="run nothing")
    parser.add_argument(
        "--only", default="", metavar="STUDY", help="run this study's variants alone"
    )
    parser.add_argument(
        "--at-once",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="runs under way at a time (default: one a core)",
    )
    given = parser.parse_args()
    failed = False
    if not given.rebuild:
        for study in RATES:
            if given.only in ("", study):
                choose_missing(study)
        missing = [run for run in plan() if not is_recorded(run) and given.only in ("", run.study)]
        try:
            failed = _record_all(missing, max(1, given.at_once))
        except KeyboardInterrupt:
            sys.exit("paper: interrupted; what was recorded is kept, the same command goes on")
    write_results(RESULTS)
    print(f"written: {RESULTS}")  # noqa: T201 -- a script
    sys.exit(int(failed))


def _record_all(missing: Sequence[Run], at_once: int) -> bool:
    """Record every run, each in a process of its own; say what fails, and return whether any did.

    Distillation takes one thread, so that its bits do not depend on the machine: cores are put to
    use by runs side by side.
    """
    console = Console(stderr=True)
    failed = False
    begin = time.perf_counter()
    with _bar(console, len(missing)) as bar:
        for run, outcome in run_side_by_side(missing, at_once):
            failed = failed or isinstance(outcome, str)
            said = outcome if isinstance(outcome, str) else f"{outcome:.0f} s of processor time"
            bar.console.print(f"{run.record.stem}: {said}", markup=False, highlight=False)
            bar.advance(bar.task_ids[0])
    if missing:
        minutes = (time.perf_counter() - begin) / 60
        console.print(f"{len(missing)} runs, {at_once} at a time: {minutes:.0f} minutes")
    return failed


def run_side_by_side(missing: Sequence[Run], at_once: int) -> Iterator[tuple[Run, float | str]]:
    """Yield, as they end, each run with its seconds of processor time or why it failed.

    A process that is killed is a run that failed. Closed or left by Ctrl-C, this ends what is
    under way and begins nothing more.
    """
    context = multiprocessing.get_context("spawn")
    waiting = list(missing)
    under_way: dict[Connection, tuple[Run, SpawnProcess]] = {}
    try:
        while waiting or under_way:
            while waiting and len(under_way) < at_once:
                # The dear ones first, so that no core is idle while the last of them ends.
                run = waiting.pop()
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=attempt, args=(run, theirs))
                process.start()
                theirs.close()
                under_way[ours] = run, process
            for ours in (end for end in wait(list(under_way)) if isinstance(end, Connection)):
                run, process = under_way.pop(ours)
                yield run, _outcome(ours, process)
    finally:
        for _, process in under_way.values():
            process.terminate()


def _outcome(ours: Connection, process: SpawnProcess) -> float | str:
    with ours:
        try:
            found: float | str = ours.recv()
        except EOFError:
            process.join()
            return f"failed: its process ended with exit code {process.exitcode}"
    process.join()
    return found


def _bar(console: Console, total: int) -> Progress:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    bar.add_task("runs", total=total)
    return bar


if __name__ == "__main__":
    main()
