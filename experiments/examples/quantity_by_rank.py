"""A partition: sizes follow Zipf's law, with the same distribution of labels in all silos."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def quantity_by_rank(
    labels: npt.NDArray[np.int64],
    silos: int,
    generator: np.random.Generator,
    *,
    exponent: float = 1.0,
) -> list[npt.NDArray[np.int64]]:
    """Give the silo of rank r = 1, 2, ... a share of the images proportional to r^-exponent.

    Args:
        labels: of all images, ``[N]``.
        silos: number of silos.
        generator: of the order of the images.
        exponent: 0 for equal sizes.
    """
    shares = np.arange(1, silos + 1) ** -float(exponent)
    ends = np.floor(np.cumsum(shares / shares.sum()) * len(labels)).astype(np.int64)
    return np.split(generator.permutation(len(labels)), ends[:-1])
