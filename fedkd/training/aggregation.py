"""Coordinate-wise robust aggregation of model states.

Median and trimmed mean, Yin et al. 1803.01498, definitions 1 and 2. Both give every silo the same
weight: number of examples is only a claim, which a malicious silo could inflate.
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
    """Aggregate several states of one architecture.

    Weights are used by ``mean`` alone; ``trim`` is the share that ``trimmed-mean`` removes at
    either end.

    Returns:
        The aggregated state. Integers and booleans are the first state's.
    """
    if rule == "mean":
        return average_states(states, weights)
    combined: State = {}
    for key, first in states[0].items():
        if not first.dtype.is_floating_point:
            combined[key] = first.clone()
            continue
        value = reduce(torch.stack([state[key].double() for state in states]), rule, trim)
        combined[key] = value.to(first.dtype)
    return combined


def reduce(stacked: Tensor, rule: str, trim: float) -> Tensor:
    """Reduce ``[M, ...]`` to ``[...]`` by ``median`` or ``trimmed-mean``, with equal weights.

    For even M the median is the mean of the two middle values. The trimmed mean leaves out the
    floor(trim M) smallest and largest values.
    """
    rows = len(stacked)
    cut = (rows - 1) // 2 if rule == "median" else math.floor(trim * rows)
    ordered = stacked.sort(dim=0).values
    return ordered[cut : rows - cut].mean(0)
