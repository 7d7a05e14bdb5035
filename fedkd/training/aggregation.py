"""Many tensors become one, coordinate by coordinate: robust where a minority of them is bad.

Yin et al. 1803.01498, definitions 1 and 2. Both rules count everyone the same: a weight that a
silo claims for itself would be a lever for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedkd.models.state import State, average_states


def aggregate(
    states: Sequence[State], weights: Sequence[float], *, rule: str, trim: float
) -> State:
    """Make one state of several of one architecture.

    Args:
        states: at least one; all have the same keys, shapes and types.
        weights: one positive weight each; of ``mean`` alone.
        rule: ``mean``, ``median`` or ``trimmed-mean``.
        trim: share that ``trimmed-mean`` cuts off at either end.

    Returns:
        A state like them. Integer buffers are rounded; booleans are the first state's.
    """
    if rule == "mean":
        return average_states(list(states), list(weights))
    combined: State = {}
    for key, first in states[0].items():
        if first.dtype is torch.bool:
            combined[key] = first.clone()
            continue
        found = reduce(torch.stack([state[key].double() for state in states]), rule, trim)
        combined[key] = (found if first.dtype.is_floating_point else found.round()).to(first.dtype)
    return combined


def reduce(stacked: Tensor, rule: str, trim: float) -> Tensor:
    """Reduce ``[M, ...]`` to ``[...]`` by ``median`` or ``trimmed-mean``, every row alike.

    An even number of rows has two middle values, whose mean is the median. The trimmed mean leaves
    out the least and the greatest floor(trim M) values.
    """
    rows = len(stacked)
    cut = (rows - 1) // 2 if rule == "median" else math.floor(trim * rows)
    ordered = stacked.sort(dim=0).values
    return ordered[cut : rows - cut].mean(0)
