"""Moments of a silo's examples, as arrays: written by a silo, read and checked by the server."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord

from fedkd.distillation.density.moments import Moments
from fedkd.messages import keys
from fedkd.messages.validate import RefusedError, read_array


def write_moments(moments: Moments) -> ArrayRecord:
    """Write moments; of the second, which is symmetric, the upper triangle row by row."""
    rows, columns = torch.triu_indices(*moments.second.shape)
    return ArrayRecord(
        {
            keys.MOMENT_COUNTS: moments.counts,
            keys.MOMENT_MEANS: moments.means,
            keys.MOMENT_SECOND: moments.second[rows, columns],
        }
    )


def read_moments(record: ArrayRecord, shape: tuple[int, int], most: int, reach: float) -> Moments:
    """Decode moments and refuse those that no examples can have.

    Args:
        record: of the reply.
        shape: K classes and d dimensions.
        most: number of examples of the silo, by its own description.
        reach: greatest norm of an example in the basis.
    """
    if set(record) != {keys.MOMENT_COUNTS, keys.MOMENT_MEANS, keys.MOMENT_SECOND}:
        raise RefusedError("its reply has no moments")
    classes, dims = shape
    counts = read_array(record[keys.MOMENT_COUNTS], keys.MOMENT_COUNTS, (classes,), torch.int64)
    if bool((counts < 0).any() | (counts > most).any()) or not 0 < int(counts.sum()) <= most:
        raise RefusedError(f"its moments are not of 1 to {most} examples, as many as it has")
    means = read_array(record[keys.MOMENT_MEANS], keys.MOMENT_MEANS, shape, torch.float32)
    flat = (dims * (dims + 1) // 2,)
    upper = read_array(record[keys.MOMENT_SECOND], keys.MOMENT_SECOND, flat, torch.float32)
    rows, columns = torch.triu_indices(dims, dims)
    second = torch.empty(dims, dims)
    second[rows, columns] = upper
    second[columns, rows] = upper
    moments = Moments(counts, means, second)
    # The mean square of the norm; rounding to fp32 may lift it by a few parts in a million.
    size = float(second.diagonal().double().sum())
    if size > reach**2 * (1 + 1e-4) or bool(means[counts == 0].any()):
        raise RefusedError("it claims moments that no examples can have")
    within = moments.within
    within.diagonal().add_(1e-5 * max(1.0, size))
    if int(torch.linalg.cholesky_ex(within).info) != 0:
        raise RefusedError("it claims moments that no examples can have")
    return moments
