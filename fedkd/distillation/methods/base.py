"""The data of a distillation, and the interface of every method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NotRequired, Protocol, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from fedkd.config import Consolidation
from fedkd.distillation.augmentation import MixedInputs
from fedkd.distillation.weighting.ensemble import Ensemble
from fedkd.training.compute import Compute
from fedkd.training.optimizer import OptimizerSettings


@dataclass(frozen=True)
class DistillationData:
    """N transfer examples with the predictions of M teachers.

    Attributes:
        images: examples ``[N, ...]``.
        labels: int64 ``[N]``, or None if the transfer set has none that may be used; with mixed
            inputs among the examples, probabilities of the K classes, fp32 ``[N, K]``.
        target: the teachers' predictions, pooled at the study's temperature: probabilities, fp32
            ``[N, K]``.
        logits: of each teacher, fp32 ``[M, N, K]``.
        weights: of each teacher on each example, ``[M, N]``, summing to one over M.
        models: the teachers' models, for methods that train them too; empty if only their
            predictions are known.
        student: index of the teacher of which the student is a copy, or None.
        order: of the teachers, for ``sequence: sequential``.
        unmixed: the data of the fine-tuning that follows mixed inputs, or None.
    """

    images: Tensor
    labels: Tensor | None
    target: Tensor
    logits: Tensor
    weights: Tensor
    models: tuple[nn.Module, ...] = ()
    student: int | None = None
    order: tuple[int, ...] = ()
    unmixed: DistillationData | None = None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Tensor) -> DistillationData:
        """Return the data of the examples at ``indices`` ``[S]`` only."""
        return replace(
            self,
            images=self.images[indices],
            labels=None if self.labels is None else self.labels[indices],
            target=self.target[indices],
            logits=self.logits[:, indices],
            weights=self.weights[:, indices],
            unmixed=None,
        )

    def with_mixed_inputs(self, mixed_inputs: MixedInputs, ensemble: Ensemble) -> DistillationData:
        """Return the data with mixed inputs added, and the teachers' predictions on them."""
        labels = None
        if self.labels is not None:
            shares = one_hot(self.labels, self.target.shape[1]).float()
            labels = torch.cat([shares, mixed_inputs.interpolate(shares)])
        return replace(
            self,
            images=torch.cat([self.images, mixed_inputs.images]),
            labels=labels,
            target=torch.cat([self.target, ensemble.target]),
            logits=torch.cat([self.logits, ensemble.logits], dim=1),
            weights=torch.cat([self.weights, ensemble.weights], dim=1),
        )


FINETUNE_RATE = 0.2
"""Initial learning rate of the fine-tuning, as a share of the one before."""


def optimizer_of(settings: Consolidation, epochs: int | None = None) -> OptimizerSettings:
    """Return the student's optimizer settings, by default for the epochs of the consolidation."""
    return OptimizerSettings.of(settings, settings.epochs if epochs is None else epochs)


def finetune_optimizer_of(settings: Consolidation) -> OptimizerSettings:
    """Return the optimizer settings of the fine-tuning: a lower rate that falls to zero."""
    return replace(
        optimizer_of(settings, settings.finetune_epochs),
        lr=FINETUNE_RATE * settings.lr,
        schedule="cosine",
        warmup=0.0,
    )


class How(TypedDict):
    """The keyword arguments of a :class:`Method`."""

    generator: torch.Generator
    compute: Compute
    on_epoch: NotRequired[Callable[[], None] | None]


class Method(Protocol):
    """A function that trains a student in place.

    A user's own has this signature, and declares by :func:`fedkd.method` which settings it uses.
    """

    def __call__(
        self,
        student: nn.Module,
        data: DistillationData,
        settings: Consolidation,
        *,
        generator: torch.Generator,
        compute: Compute,
        on_epoch: Callable[[], None] | None = None,
    ) -> float:
        """Train ``student`` and return the last epoch's mean loss.

        Args:
            student: the model, on ``compute.device``.
            data: transfer examples, and the teachers' predictions on them.
            settings: of the consolidation.
            generator: the only source of randomness.
            compute: device and precision.
            on_epoch: called after every epoch, ``settings.all_epochs`` times.
        """
