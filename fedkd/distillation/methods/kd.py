"""Knowledge distillation, vanilla and tuned: they differ in temperature and weight alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from fedkd.config import Consolidation
from fedkd.distillation.methods.base import DistillationData, finetune_optimizer_of, optimizer_of
from fedkd.distillation.methods.mixup import Mixup
from fedkd.training.compute import Compute
from fedkd.training.loop import Sgd, fit
from fedkd.training.losses import kd_loss


def kd(
    student: nn.Module,
    data: DistillationData,
    settings: Consolidation,
    *,
    generator: torch.Generator,
    compute: Compute,
    on_epoch: Callable[[], None] | None = None,
) -> float:
    """Learn the teachers' joint opinion, and the labels where there are any.

    Hinton et al. 1503.02531; see :func:`fedkd.training.losses.kd_loss`. With temperature 1
    and weight 0.5 it is the vanilla form of 2402.14922, with both chosen by a search on
    validation data the tuned one. After blends comes what is not blended, if the lesson has it.
    """
    mix = Mixup(generator) if settings.mixup else None

    def learn(data: DistillationData, sgd: Sgd) -> float:
        labels: tuple[Tensor, ...] = () if data.labels is None else (data.labels,)
        if mix:
            labels = tuple(one_hot(y, data.target.shape[1]).float() for y in labels)

        def loss(logits: Tensor, rest: Sequence[Tensor]) -> Tensor:
            return kd_loss(
                logits,
                rest[0],
                rest[1] if labels else None,
                temperature=settings.temperature,
                weight=settings.weight,
            )

        return fit(
            student,
            data.images,
            (data.target, *labels),
            loss,
            sgd=sgd,
            generator=generator,
            compute=compute,
            on_epoch=on_epoch,
            mix=mix,
        )

    last = learn(data, optimizer_of(settings))
    if data.unmixed is None or not math.isfinite(last):
        return last
    # What is blended differs from what will be met: He et al. 1909.09148 end without augmentation.
    return learn(data.unmixed, finetune_optimizer_of(settings))
