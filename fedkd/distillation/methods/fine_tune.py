"""The control: fine-tuning on the labels of the transfer set, without teachers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from fedkd.config import Consolidation
from fedkd.distillation.methods.base import DistillationData, optimizer_of
from fedkd.distillation.methods.mixup import Mixup
from fedkd.errors import UserError
from fedkd.training.compute import Compute
from fedkd.training.loop import fit


def fine_tune(
    student: nn.Module,
    data: DistillationData,
    settings: Consolidation,
    *,
    generator: torch.Generator,
    compute: Compute,
    on_epoch: Callable[[], None] | None = None,
) -> float:
    """Train on the labels by cross-entropy; the teachers are ignored.

    Raises:
        UserError: the data has no labels.
    """
    if data.labels is None:
        raise UserError("method fine-tune learns from labels, but the transfer set has none")
    labels = data.labels
    if settings.mixup:
        labels = one_hot(labels, data.target.shape[1]).float()
    return fit(
        student,
        data.images,
        (labels,),
        lambda logits, rest: cross_entropy(logits, rest[0]),
        sgd=optimizer_of(settings),
        generator=generator,
        compute=compute,
        on_epoch=on_epoch,
        mix=Mixup(generator) if settings.mixup else None,
    )
