"""A data source made of NumPy alone: a bright blob whose place is the class."""

from __future__ import annotations

from typing import Any

import numpy as np


def blobs(
    *, images: int = 900, classes: int = 5, size: int = 8, noise: float = 0.3, seed: int = 0
) -> dict[str, Any]:
    """Return greyscale images with a Gaussian blob on a circle, at one angle for each class.

    Args:
        images: how many there are.
        classes: how many there are.
        size: height and width in pixels.
        noise: standard deviation of the noise, as a share of the blob's brightness.
        seed: of labels and noise; the same seed gives the same images.
    """
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, images)
    angles = 2 * np.pi * labels / classes
    middle = (size - 1) / 2
    rows = middle + size / 4 * np.sin(angles)
    columns = middle + size / 4 * np.cos(angles)
    row, column = np.mgrid[:size, :size]
    squares = (row - rows[:, None, None]) ** 2 + (column - columns[:, None, None]) ** 2
    pixels = np.exp(-squares / (size / 4)) + noise * random.standard_normal(squares.shape)
    return {
        "images": (255 * pixels.clip(0, 1)).astype(np.uint8),
        "labels": labels,
        "classes": [f"at {360 * label // classes} degrees" for label in range(classes)],
    }
