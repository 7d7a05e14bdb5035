"""The control: fine-tuning on the labels of the transfer set, without teachers."""

from __future__ import annotations

from typing import Unpack

from torch import nn
from torch.nn.functional import one_hot

from fedkd.config import Consolidation
from fedkd.distillation.augmentation import Mixup
from fedkd.distillation.methods.base import DistillationData, How, optimizer_of
from fedkd.errors import UserError
from fedkd.training.augment import make_augmentation
from fedkd.training.loop import fit
from fedkd.training.losses import cross_entropy_of


def fine_tune(
    student: nn.Module, data: DistillationData, settings: Consolidation, **how: Unpack[How]
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
    label_loss = cross_entropy_of(settings, labels, data.target.shape[1], how["compute"].device)
    return fit(
        student,
        data.images,
        (labels,),
        lambda logits, rest: label_loss(logits, rest[0]),
        optimizer=optimizer_of(settings),
        augment=make_augmentation(settings.augment, how["generator"]),
        mix=Mixup(how["generator"]) if settings.mixup else None,
        **how,
    )
