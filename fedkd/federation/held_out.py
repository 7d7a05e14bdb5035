"""Examples of a silo by which it judges models: of its own, or the server's in its class mix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd.data.images import Images
from fedkd.util.seeding import numpy_generator


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Examples by which a silo judges models.

    Attributes:
        data: all examples on which models predict.
        rows: those that count, positions in ``data``.
        weights: of these, float64, the same for all of a class.
    """

    data: Images
    rows: Tensor
    weights: Tensor

    @property
    def labels(self) -> Tensor:
        """Labels of the examples that count."""
        return self.data.labels[self.rows]


def divide(silo: str, data: Images, share: float, seed: int) -> tuple[Images, Images | None]:
    """Hold out a share of a silo's examples, rounded up; one is always left to train on.

    Returns:
        The examples to train on and those held out, None where there are none; both in the order of
        ``data``.
    """
    size = min(math.ceil(round(share * len(data), 9)), len(data) - 1)
    if size < 1:
        return data, None
    order = torch.from_numpy(numpy_generator(seed, "silo-test", silo).permutation(len(data)))
    return data.take(order[size:].sort().values), data.take(order[:size].sort().values)


def choose_held_out(own: Images | None, server: Images, class_counts: Tensor) -> HeldOut:
    """Return the examples by which a silo judges models.

    A silo that holds out none takes the server's test examples of its classes, weighted so that
    each class has the silo's share ``class_counts`` ``[C]``.
    """
    if own is not None and len(own):
        return HeldOut(own, torch.arange(len(own)), torch.ones(len(own), dtype=torch.float64))
    rows = (class_counts[server.labels] > 0).nonzero()[:, 0]
    labels = server.labels[rows]
    there = torch.bincount(labels, minlength=len(class_counts)).double()
    return HeldOut(server, rows, class_counts.double()[labels] / there[labels])
