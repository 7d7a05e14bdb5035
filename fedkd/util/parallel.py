"""Independent pieces of numeric work on several threads, each computing with one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class StoppedError(Exception):
    """Raised within a piece of work whose result nobody waits for any more."""


def work_off(
    items: Iterable[Item],
    work: Callable[[Item, Callable[[], None]], Result],
    *,
    threads: int,
) -> Iterator[tuple[Item, Result]]:
    """Yield every item with what ``work`` makes of it, as the results come in.

    Each piece computes with one intra-op thread, so that its bits do not depend on ``threads``.
    When the caller ends early, by an error or Ctrl-C, the pieces under way are ended as well.

    Args:
        items: drawn in the caller's thread, each when a thread is free for it.
        work: takes an item, and a function to be called now and then that raises
            :class:`StoppedError` when the piece is to end.
        threads: how many pieces at once.
    """
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise StoppedError

    waiting = iter(items)
    running: dict[Future[Result], Item] = {}
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            while True:
                while len(running) < threads and (more := next(waiting, None)) is not None:
                    running[pool.submit(work, more, check)] = more
                if not running:
                    return
                done = wait(running, return_when=FIRST_COMPLETED).done
                for future in [each for each in running if each in done]:
                    yield running.pop(future), future.result()
        finally:
            stop.set()


def results_of(futures: Sequence[Future[Result]]) -> list[Result]:
    """Return all results, in order; where one raises, those that wait are cancelled.

    Either way nothing of it runs any more afterwards.
    """
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
        wait(futures)


def available_cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
