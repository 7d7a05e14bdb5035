"""What a student learns from, and what every method of distillation is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from fedkd.config import Consolidation
from fedkd.distillation.augmentation import MixedInputs
from fedkd.distillation.weighting.ensemble import Ensemble
from fedkd.training.compute import Compute
from fedkd.training.loop import Sgd


@dataclass(frozen=True)
class DistillationData:
    """N transfer images and what M teachers say of them.

    Attributes:
        images: uint8 ``[N, C, H, W]``.
        labels: int64 ``[N]``, or None where a method may not see any; with blends among the
            images, shares of classes, fp32 ``[N, K]``.
        target: the teachers' joint opinion, probabilities at the study's temperature, fp32
            ``[N, K]`` for K classes.
        logits: every teacher's own, fp32 ``[M, N, K]``.
        weights: of each teacher on each image, ``[M, N]``, summing to one over M.
        models: the teachers' models, for methods that train them too; empty where only their
            predictions are known.
        student: which of the teachers the student is a copy of, or None.
        order: in which teachers come where they come one after another.
        unmixed: the lesson that follows one with blends, or None.
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
        """Return the lesson on the images at ``indices`` ``[S]`` alone."""
        return DistillationData(
            images=self.images[indices],
            labels=None if self.labels is None else self.labels[indices],
            target=self.target[indices],
            logits=self.logits[:, indices],
            weights=self.weights[:, indices],
            models=self.models,
            student=self.student,
            order=self.order,
        )

    def with_mixed_inputs(self, mixed_inputs: MixedInputs, ensemble: Ensemble) -> DistillationData:
        """Return the lesson with blends of its images added, and what the teachers say of them."""
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
"""Share of the rate at which a student goes on with images that are not blended."""


def optimizer_of(settings: Consolidation, epochs: int | None = None) -> Sgd:
    """Return how a student is trained, for fewer epochs than the study's if so many are named."""
    return Sgd(
        settings.epochs if epochs is None else epochs,
        settings.batch_size,
        settings.lr,
        settings.momentum,
        schedule=settings.schedule,
    )


def finetune_optimizer_of(settings: Consolidation) -> Sgd:
    """Return how a student goes on after blends: the rate begins lower and falls to zero."""
    return replace(
        optimizer_of(settings, settings.finetune_epochs),
        lr=FINETUNE_RATE * settings.lr,
        schedule="cosine",
    )


class Method(Protocol):
    """Trains a student in place; a user's own is a function of this form."""

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
            data: what it learns from.
            settings: temperature, weight and optimiser.
            generator: order of the samples and noise of random layers; the only source of
                randomness.
            compute: device and precision.
            on_epoch: to be called after every epoch, ``settings.all_epochs`` times.
        """
