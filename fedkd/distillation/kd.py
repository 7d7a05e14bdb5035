"""Knowledge distillation, vanilla and tuned: they differ in temperature and weight alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from fedkd.distillation.lesson import Lesson, optimiser_of
from fedkd.distillation.losses import kd_loss
from fedkd.distillation.mixup import Mixup
from fedkd.study import Consolidation
from fedkd.training import Compute, fit


def kd(
    student: nn.Module,
    lesson: Lesson,
    settings: Consolidation,
    *,
    generator: torch.Generator,
    compute: Compute,
    on_epoch: Callable[[], None] | None = None,
) -> float:
    """Learn the teachers' joint opinion, and the labels where there are any.

    Hinton et al. 1503.02531; see :func:`fedkd.distillation.losses.kd_loss`. With temperature 1
    and weight 0.5 it is the vanilla form of 2402.14922, with both chosen by a search on
    validation data the tuned one.
    """
    labels: tuple[Tensor, ...] = () if lesson.labels is None else (lesson.labels,)
    mix = Mixup(generator) if settings.mixup else None
    if mix:
        labels = tuple(one_hot(y, lesson.target.shape[1]).float() for y in labels)

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
        lesson.images,
        (lesson.target, *labels),
        loss,
        sgd=optimiser_of(settings),
        generator=generator,
        compute=compute,
        on_epoch=on_epoch,
        mix=mix,
    )
