"""The control: what the labels of the transfer set alone would teach."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fedkd.data.images import Images
from fedkd.distillation.lesson import Lesson
from fedkd.errors import UserError
from fedkd.study import Consolidation
from fedkd.training import Compute, Sgd, train_supervised


def fine_tune(
    student: nn.Module,
    lesson: Lesson,
    settings: Consolidation,
    *,
    generator: torch.Generator,
    compute: Compute,
    on_epoch: Callable[[], None] | None = None,
) -> float:
    """Learn the labels by cross-entropy and ignore the teachers.

    Raises:
        UserError: the lesson has no labels.
    """
    if lesson.labels is None:
        raise UserError("method fine-tune learns from labels, but the transfer set has none")
    return train_supervised(
        student,
        Images(lesson.images, lesson.labels),
        sgd=Sgd(settings.epochs, settings.batch_size, settings.lr, settings.momentum),
        generator=generator,
        compute=compute,
        on_epoch=on_epoch,
    )
