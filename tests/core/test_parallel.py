"""Work on several threads: the same results, an early end that leaves nothing running."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from fedkd.util.parallel import StoppedError, work_off


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_item_is_worked_off_once_on_one_intra_op_thread(threads: int) -> None:
    def work(item: int, check: Callable[[], None]) -> tuple[int, int]:
        check()
        return item**2, torch.get_num_threads()

    found = dict(work_off(range(20), work, threads=threads))
    assert found == {item: (item**2, 1) for item in range(20)}


def test_items_are_drawn_only_when_a_thread_is_free() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for item in range(10):
            drawn.append(item)
            yield item

    results = work_off(items(), lambda item, _: item, threads=2)
    next(results)
    assert len(drawn) == 2
    results.close()  # type: ignore[attr-defined]


def test_an_error_ends_the_pieces_under_way() -> None:
    ended = threading.Event()
    started = threading.Event()

    def work(item: int, check: Callable[[], None]) -> None:
        if item == 0:
            started.wait(60)
            raise ValueError("the first")
        started.set()
        try:
            while True:
                check()
                time.sleep(0.001)
        except StoppedError:
            ended.set()
            raise

    with pytest.raises(ValueError, match="the first"):
        list(work_off(range(100), work, threads=2))
    assert ended.is_set()
