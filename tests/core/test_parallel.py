"""Work on several threads: the same results, an early end that leaves nothing running."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

import psutil
import pytest
import torch

from fedkd.models.build import Shape, build_model
from fedkd.training.compute import Compute, intra_op_threads
from fedkd.training.loop import fit
from fedkd.training.optimizer import OptimizerSettings
from fedkd.util.parallel import StoppedError, check_stopped, run_all, run_each

LIMIT = 60.0


class Endless:
    """A piece of work that ends only when it is stopped."""

    def __init__(self) -> None:
        self.started, self.stopped = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.started.set()
        try:
            while True:
                check_stopped()
                time.sleep(0.001)
        except StoppedError:
            self.stopped.set()
            raise


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_item_is_done_once_on_one_intra_op_thread(threads: int) -> None:
    def work(item: int) -> tuple[int, int]:
        check_stopped()
        return item**2, torch.get_num_threads()

    results = dict(run_each(range(20), work, threads=threads))
    assert results == {item: (item**2, 1) for item in range(20)}


def test_items_are_drawn_only_when_a_thread_is_free() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for item in range(10):
            drawn.append(item)
            yield item

    results = run_each(items(), lambda item: item, threads=2)
    next(results)
    assert len(drawn) == 2
    results.close()  # type: ignore[attr-defined]


def fail(endless: Endless) -> None:
    assert endless.started.wait(LIMIT)
    raise ValueError("the first")


def test_an_error_stops_the_pieces_that_run() -> None:
    endless = Endless()

    def work(item: int) -> None:
        fail(endless) if item == 0 else endless()

    with pytest.raises(ValueError, match="the first"):
        list(run_each(range(100), work, threads=2))
    assert endless.stopped.is_set()


class Impatient:
    """Presses Ctrl-C at the first wait for results, when a piece of work has started."""

    def __init__(self, endless: Endless) -> None:
        self._endless, self._pressed = endless, False

    def __call__(self, *args: object, **options: object) -> object:
        if self._pressed:
            return wait(*args, **options)  # type: ignore[arg-type]
        self._pressed = True
        assert self._endless.started.wait(LIMIT)
        raise KeyboardInterrupt


def test_ctrl_c_stops_them_and_loses_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = Endless()
    results: list[tuple[int, int]] = []

    def work(item: int) -> int:
        if item:
            endless()
        return item

    monkeypatch.setattr("fedkd.util.parallel.wait", Impatient(endless))
    with pytest.raises(KeyboardInterrupt):
        results.extend(run_each(range(100), work, threads=2))
    assert results == [(0, 0)]
    assert endless.stopped.is_set()


def test_all_results_are_in_order() -> None:
    with ThreadPoolExecutor(3) as pool:
        assert run_all(pool, [partial(pow, n, 2) for n in range(20)]) == [n**2 for n in range(20)]


def test_an_error_of_one_stops_all_and_leaves_the_pool_of_use() -> None:
    endless = Endless()
    with ThreadPoolExecutor(2) as pool:
        works: list[Callable[[], object]] = [partial(fail, endless), endless]
        with pytest.raises(ValueError, match="the first"):
            run_all(pool, works)
        assert endless.stopped.is_set()
        assert pool.submit(check_stopped).result(LIMIT) is None


def test_training_ends_at_the_next_batch() -> None:
    """An error elsewhere ends a training of a million epochs."""
    shape = Shape(3, 1, 8)
    model = build_model("mlp", shape, seed=0)
    started = Endless()

    def train() -> float:
        images = torch.zeros(8, 1, 8, 8, dtype=torch.uint8)
        return fit(
            model,
            images,
            (torch.zeros(8, dtype=torch.long),),
            lambda logits, rest: torch.nn.functional.cross_entropy(logits, rest[0]),
            optimizer=OptimizerSettings(10**6, 4, 0.1),
            generator=torch.Generator().manual_seed(0),
            compute=Compute(),
            on_epoch=started.started.set,
        )

    with ThreadPoolExecutor(2) as pool, pytest.raises(ValueError, match="the first"):
        run_all(pool, [partial(fail, started), train])


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch's OpenMP is another one there")
def test_a_phase_ends_the_threads_that_it_computed_with() -> None:
    def compute() -> tuple[int, int, int]:
        """Return the threads of this process before, in, and after a phase with four."""
        process, numbers = psutil.Process(), torch.rand(1 << 20)
        before = process.num_threads()
        with intra_op_threads(4):
            numbers.sin()
            within = process.num_threads()
        # They end at once; the system may still count them for a moment.
        deadline = time.monotonic() + LIMIT
        while (after := process.num_threads()) > before and time.monotonic() < deadline:
            time.sleep(0.001)
        return before, within, after

    with ThreadPoolExecutor(1) as pool:
        before, within, after = pool.submit(compute).result()
    assert within == before + 3
    assert after == before
