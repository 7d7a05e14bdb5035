"""Tune and run the studies that are not recorded, then rebuild RESULTS.md from the records.

python -m experiments.paper            tune, run and rebuild
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
from multiprocessing.context import ForkServerProcess

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.paper.claims import write_results
from experiments.paper.plan import FOLDER, Run, plan
from experiments.paper.record import attempt, is_recorded
from experiments.paper.tuned import tune_missing

RESULTS = FOLDER / "RESULTS.md"


def main() -> None:
    """Run, record, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rebuild", action="store_true", help="only rebuild the page")
    parser.add_argument(
        "--only", default="", metavar="STUDY", help="only studies whose names begin so"
    )
    parser.add_argument(
        "--at-once",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="number of parallel runs (default: one per core)",
    )
    arguments = parser.parse_args()
    failed = False
    if not arguments.rebuild:
        tune_missing(arguments.only)
        missing = [
            run for run in plan() if run.study.startswith(arguments.only) and not is_recorded(run)
        ]
        try:
            failed = _record_all(missing, max(1, arguments.at_once))
        except KeyboardInterrupt:
            sys.exit("paper: interrupted; records are kept, and the same command resumes")
    write_results(RESULTS)
    print(f"written: {RESULTS}")  # noqa: T201 -- a script
    sys.exit(int(failed))


def _record_all(missing: Sequence[Run], at_once: int) -> bool:
    """Record every run in a process of its own; print failures, and return whether there are any.

    Distillation uses one thread, so that its bits do not depend on the machine. Parallel runs use
    the cores.
    """
    console = Console(stderr=True)
    failed = False
    # Imported once, and not by every run's process.
    multiprocessing.set_forkserver_preload(["experiments.paper.record"])
    start = time.perf_counter()
    with _bar(console, len(missing)) as bar:
        for run, outcome in run_in_parallel(missing, at_once):
            failed = failed or isinstance(outcome, str)
            message = outcome if isinstance(outcome, str) else f"{outcome:.0f} s of processor time"
            bar.console.print(f"{run.record.stem}: {message}", markup=False, highlight=False)
            bar.advance(bar.task_ids[0])
    if missing:
        minutes = (time.perf_counter() - start) / 60
        console.print(f"{len(missing)} runs, {at_once} at a time: {minutes:.0f} minutes")
    return failed


def run_in_parallel(missing: Sequence[Run], at_once: int) -> Iterator[tuple[Run, float | str]]:
    """Yield each run as it ends, with its seconds of processor time or the reason of its failure.

    A killed process is a failed run. Closing the generator, or Ctrl-C, stops the current runs and
    starts no more.
    """
    context = multiprocessing.get_context("forkserver")
    waiting = list(missing)
    running: dict[Connection, tuple[Run, ForkServerProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                # The most expensive runs first, so that no core idles at the end.
                run = waiting.pop()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=attempt, args=(run, sender))
                process.start()
                sender.close()
                running[receiver] = run, process
            for receiver in (end for end in wait(list(running)) if isinstance(end, Connection)):
                run, process = running.pop(receiver)
                yield run, _outcome(receiver, process)
    finally:
        for _, process in running.values():
            process.terminate()


def _outcome(receiver: Connection, process: ForkServerProcess) -> float | str:
    with receiver:
        try:
            outcome: float | str = receiver.recv()
        except EOFError:
            process.join()
            return f"failed: its process ended with exit code {process.exitcode}"
    process.join()
    return outcome


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
