"""Data-partitioning distillation: learn only where the teacher knows more than the student did.

Roth et al. 2310.17653 (KL+DP): on every other sample the student is held to what it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fedkd.config import Consolidation
from fedkd.data.images import as_float
from fedkd.distillation.methods.base import DistillationData, optimizer_of
from fedkd.training.compute import Compute
from fedkd.training.evaluate import predict
from fedkd.training.loop import fit
from fedkd.training.losses import kd_loss


def dp_kd(
    student: nn.Module,
    data: DistillationData,
    settings: Consolidation,
    *,
    generator: torch.Generator,
    compute: Compute,
    on_epoch: Callable[[], None] | None = None,
) -> float:
    """Learn each sample from whoever is surest of it, the student's frozen self included.

    With labels the surest is who gives the label most probability, without them whose greatest
    probability is greatest. Several teachers speak in parallel (the surest of all is heard) or in
    sequence (one after another, in ``lesson.order``, the frozen self renewed before each); the
    epochs are then shared out among them, so that both forms cost the same. That is our choice:
    the source has one teacher. Weightings play no part.
    """
    if settings.sequence == "parallel":
        shifts = [(data.logits, settings.epochs)]
    else:
        order = data.order or tuple(range(len(data.logits)))
        bounds = [settings.epochs * step // len(order) for step in range(len(order) + 1)]
        epochs = [end - start for start, end in itertools.pairwise(bounds)]
        shifts = [(data.logits[m : m + 1], n) for m, n in zip(order, epochs, strict=True) if n]
    mean = float("nan")
    for teachers, epochs_each in shifts:
        frozen = predict(student, data.images, compute=compute)
        surest = pick_surest(frozen, teachers, data.labels)
        mean = _learn(
            student, data.images, surest, settings, epochs_each, generator, compute, on_epoch
        )
    return mean


def pick_surest(student: Tensor, teachers: Tensor, labels: Tensor | None) -> Tensor:
    """Return for each sample the logits of the surest, ``[N, K]``; a tie is the student's.

    Args:
        student: logits of the frozen student ``[N, K]``.
        teachers: logits of the teachers ``[M, N, K]``.
        labels: ``[N]``, or None to go by the greatest probability.
    """
    candidates = torch.cat([student[None], teachers])
    probabilities = torch.softmax(candidates.double(), dim=2)
    if labels is None:
        sureness = probabilities.amax(2)
    else:
        index = labels[None, :, None].expand(len(candidates), -1, 1)
        sureness = probabilities.gather(2, index).squeeze(2)
    # Among equals argmax may return any; the first must win.
    winner = (sureness == sureness.amax(0)).int().argmax(0)
    return candidates[winner, torch.arange(len(student))]


def _learn(
    student: nn.Module,
    images: Tensor,
    surest: Tensor,
    settings: Consolidation,
    epochs: int,
    generator: torch.Generator,
    compute: Compute,
    on_epoch: Callable[[], None] | None,
) -> float:
    target = torch.softmax(surest.double() / settings.temperature, dim=1).float()

    def loss(logits: Tensor, rest: Sequence[Tensor]) -> Tensor:
        return kd_loss(logits, rest[0], temperature=settings.temperature)

    return fit(
        student,
        as_float(images),
        (target,),
        loss,
        sgd=optimizer_of(settings, epochs),
        generator=generator,
        compute=compute,
        on_epoch=on_epoch,
    )
