"""Training steps of a network compiled by ``torch.compile`` against those of the same, as it is.

::

    python -m experiments.bench.compiled

Steps take turns, in processor time of one thread, so that other work on the machine counts little.
A C++ compiler must be installed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedkd.models.build import Shape, build_model
from fedkd.training.compute import is_channels_last

_GREY, _COLOR = Shape(10, 1, 28), Shape(10, 3, 64)
NETWORKS = {
    "mlp": _GREY,
    "cnn": _GREY,
    "experiments.bench.models:two_convolutions": _GREY,
    "torchvision:resnet18": _COLOR,
}
TURNS, SECONDS = 7, 2.0


def make_step(arch: str, shape: Shape, *, compiled: bool) -> Callable[[], object]:
    """Return a step of SGD on a batch of 32 random images."""
    model = build_model(arch, shape, seed=0).train()
    generator = torch.Generator().manual_seed(0)
    size = (32, shape.in_channels, shape.image_size, shape.image_size)
    images = torch.rand(size, generator=generator)
    labels = torch.randint(0, shape.num_classes, (32,), generator=generator)
    if is_channels_last(model):
        images = images.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    forward: Callable[[Tensor], Tensor] | nn.Module = torch.compile(model) if compiled else model

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(forward(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def seconds_of(step: Callable[[], object]) -> float:
    """Return the processor time of a step, from as many as take about two seconds."""
    start, steps = time.process_time(), 0
    while (spent := time.process_time() - start) < SECONDS:
        step()
        steps += 1
    return spent / steps


def main() -> None:
    """Print a line for each network."""
    torch.set_num_threads(1)
    for arch, shape in NETWORKS.items():
        plain, fast = (make_step(arch, shape, compiled=compiled) for compiled in (False, True))
        plain()
        start = time.perf_counter()
        fast()
        compiling = time.perf_counter() - start
        turns = [(seconds_of(plain), seconds_of(fast)) for _ in range(TURNS)]
        ratio = statistics.median(one / other for one, other in turns)
        print(f"{arch}: {ratio:.2f} of the speed, after {compiling:.0f} s to compile")  # noqa: T201


if __name__ == "__main__":
    main()
