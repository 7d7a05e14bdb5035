"""Independent pieces of numeric work on several threads, each computing with one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class StoppedError(Exception):
    """Raised within a piece of work whose result is no longer needed."""


class _Work(threading.local):
    """What the current thread works on."""

    stop: threading.Event | None = None


_WORK = _Work()


def check_stopped() -> None:
    """End the piece of work that this thread does if its result is no longer needed.

    Every loop over batches calls this, so that an error or Ctrl-C ends all threads soon.

    Raises:
        StoppedError: the result is no longer needed.
    """
    if _WORK.stop is not None and _WORK.stop.is_set():
        raise StoppedError


def run_all(pool: Executor, works: Iterable[Callable[[], Result]]) -> list[Result]:
    """Return the results of all works, in order.

    If one raises, or on Ctrl-C, those that run are stopped and those that wait are cancelled;
    this returns when none runs any more.
    """
    stop = threading.Event()
    futures = [pool.submit(_do, stop, work) for work in works]
    try:
        return [future.result() for future in futures]
    finally:
        _end(stop, futures)


def run_as_done(
    pool: Executor, works: Iterable[Callable[[], Result]], *, at_once: int
) -> Iterator[tuple[int, Result]]:
    """Yield the number of every work and its result, in the order in which they are done.

    At most ``at_once`` works run, or have results that nobody has taken yet. If one raises, on
    Ctrl-C, or if the caller closes the iterator, those that run are stopped; see :func:`run_all`.
    """
    stop = threading.Event()
    waiting = iter(enumerate(works))
    running: dict[Future[Result], int] = {}
    try:
        while True:
            while len(running) < at_once and (item := next(waiting, None)) is not None:
                running[pool.submit(_do, stop, item[1])] = item[0]
            if not running:
                return
            done = next(iter(wait(running, return_when=FIRST_COMPLETED).done))
            number = running.pop(done)
            yield number, done.result()
            del done
    finally:
        _end(stop, list(running))


def run_each(
    items: Iterable[Item], work: Callable[[Item], Result], *, threads: int
) -> Iterator[tuple[Item, Result]]:
    """Yield every item with its result, in the order in which they are done.

    Each piece computes with one intra-op thread, so that its bits do not depend on ``threads``.
    On Ctrl-C the pieces that run are stopped, and results that are there by then are yielded
    before KeyboardInterrupt is raised. If the caller ends early, they are stopped as well.

    Args:
        items: drawn in the caller's thread, each when a thread is free for it.
        work: takes an item to its result.
        threads: how many pieces at once.
    """
    stop = threading.Event()
    waiting = iter(items)
    running: dict[Future[Result], Item] = {}
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            while True:
                while len(running) < threads and (item := next(waiting, None)) is not None:
                    running[pool.submit(_do, stop, partial(work, item))] = item
                if not running:
                    return
                done = wait(running, return_when=FIRST_COMPLETED).done
                for future in [each for each in running if each in done]:
                    yield running.pop(future), future.result()
        except KeyboardInterrupt:
            _end(stop, list(running))
            for future, item in running.items():
                if not future.cancelled() and future.exception() is None:
                    yield item, future.result()
            raise
        finally:
            _end(stop, list(running))


def _do(stop: threading.Event, work: Callable[[], Result]) -> Result:
    _WORK.stop = stop
    try:
        return work()
    finally:
        _WORK.stop = None


def _end(stop: threading.Event, futures: Sequence[Future[Result]]) -> None:
    stop.set()
    for future in futures:
        future.cancel()
    wait(futures)


def available_cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
