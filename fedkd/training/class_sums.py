"""Sums over labelled examples by class, from which several metrics follow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassSums:
    """Numbers of examples by class, each of length C; those of several data sets can be added.

    Attributes:
        labels: examples of the class.
        predicted: examples that a model takes for the class.
        hits: examples that are both.
    """

    labels: tuple[int, ...]
    predicted: tuple[int, ...]
    hits: tuple[int, ...]

    @classmethod
    def of(cls, predicted: Tensor, labels: Tensor, num_classes: int) -> ClassSums:
        """Count predicted classes ``[N]`` and true ones ``[N]``."""
        return cls(
            *(
                tuple(torch.bincount(classes, minlength=num_classes).tolist())
                for classes in (labels, predicted, labels[predicted == labels])
            )
        )

    def __add__(self, other: ClassSums) -> ClassSums:
        """Return the sums over both data sets."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return ClassSums(
            *(tuple(a + b for a, b in zip(mine, its, strict=True)) for mine, its in pairs)
        )

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that occur in the labels."""
        labels, _, hits = self._doubles()
        present = labels > 0
        return float((hits[present] / labels[present]).mean())

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that occur in labels or predictions."""
        labels, predicted, hits = self._doubles()
        occurrences = predicted + labels
        present = occurrences > 0
        return float((2 * hits[present] / occurrences[present]).mean())

    def _doubles(self) -> list[Tensor]:
        return [torch.tensor(counts, dtype=torch.float64) for counts in vars(self).values()]
