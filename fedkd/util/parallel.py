"""Independent pieces of numeric work on several threads, each computing with one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
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


def run_each(
    items: Iterable[Item],
    work: Callable[[Item], Result],
    *,
    threads: int,
    pool: Executor | None = None,
) -> Generator[tuple[Item, Result], None, None]:
    """Yield every item with its result, in the order in which they are done.

    Each piece computes with one intra-op thread, so that its bits do not depend on ``threads``.
    On Ctrl-C the pieces that run are stopped, and results that are there by then are yielded
    before KeyboardInterrupt is raised. If the caller ends early, they are stopped as well.
    Items are drawn in the caller's thread, each when one of ``threads`` is free for it; a
    result that nobody has taken keeps a thread. By default the pool is one of so many threads.
    """
    stop = threading.Event()
    waiting = iter(items)
    running: dict[Future[Result], Item] = {}
    with _one_thread_each(threads) if pool is None else nullcontext(pool) as executor:
        try:
            while True:
                while len(running) < threads and (item := next(waiting, None)) is not None:
                    running[executor.submit(_do, stop, partial(work, item))] = item
                if not running:
                    return
                done = wait(running, return_when=FIRST_COMPLETED).done
                future = next(each for each in running if each in done)
                yield running.pop(future), future.result()
                del future, done  # and with them a result that may be large
        except KeyboardInterrupt:
            _end(stop, list(running))
            for future, item in running.items():
                if not future.cancelled() and future.exception() is None:
                    yield item, future.result()
            raise
        finally:
            _end(stop, list(running))


def _one_thread_each(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


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
