"""Knowledge distillation: vanilla and tuned differ in temperature and weight only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack

from torch import Tensor, nn
from torch.nn.functional import one_hot

from fedkd.config import Consolidation
from fedkd.distillation.augmentation import Mixup
from fedkd.distillation.methods.base import (
    DistillationData,
    How,
    finetune_optimizer_of,
    optimizer_of,
)
from fedkd.training.augment import make_augmentation
from fedkd.training.loop import fit
from fedkd.training.losses import cross_entropy_of, kd_loss
from fedkd.training.optimizer import OptimizerSettings


def kd(
    student: nn.Module, data: DistillationData, settings: Consolidation, **how: Unpack[How]
) -> float:
    """Train on the teachers' pooled predictions, and on labels if there are any.

    Hinton et al. 1503.02531; see :func:`fedkd.training.losses.kd_loss`. With temperature 1 and
    weight 0.5 it is the vanilla form of 2402.14922; with both chosen by a search on validation
    data it is the tuned form. Fine-tuning follows if ``data.unmixed`` is given.
    """
    device, generator = how["compute"].device, how["generator"]
    mix = Mixup(generator) if settings.mixup else None

    def train(data: DistillationData, optimizer: OptimizerSettings) -> float:
        classes = data.target.shape[1]
        labels: tuple[Tensor, ...] = () if data.labels is None else (data.labels,)
        if mix:
            labels = tuple(one_hot(y, classes).float() for y in labels)
        label_losses = [cross_entropy_of(settings, y, classes, device) for y in labels]

        def loss(logits: Tensor, rest: Sequence[Tensor]) -> Tensor:
            temperature = settings.temperature
            if not label_losses:
                return kd_loss(logits, rest[0], temperature=temperature)
            return kd_loss(
                logits,
                rest[0],
                rest[1],
                temperature=temperature,
                weight=settings.weight,
                cross_entropy=label_losses[0],
            )

        return fit(
            student,
            data.images,
            (data.target, *labels),
            loss,
            optimizer=optimizer,
            augment=make_augmentation(settings.augment, generator),
            mix=mix,
            **how,
        )

    last = train(data, optimizer_of(settings))
    if data.unmixed is None or not math.isfinite(last):
        return last
    # Test examples are not mixed: He et al. 1909.09148 end training without augmentation.
    return train(data.unmixed, finetune_optimizer_of(settings))
