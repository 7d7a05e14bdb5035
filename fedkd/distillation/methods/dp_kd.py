"""Data-partitioning distillation (KL+DP), Roth et al. 2310.17653.

Where a teacher is more confident than the initial student, the student learns from the teacher; on
all other samples from its own initial predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from fedkd.config import Consolidation
from fedkd.distillation.methods.base import DistillationData, How, optimizer_of
from fedkd.training.evaluate import predict
from fedkd.training.loop import fit, floats_of
from fedkd.training.losses import kd_loss


def dp_kd(
    student: nn.Module, data: DistillationData, settings: Consolidation, **how: Unpack[How]
) -> float:
    """Train on each sample with the most confident of all teachers and the frozen student.

    With labels, confidence is the probability of the label; without, the greatest probability.
    Several teachers are compared all at once (``sequence: parallel``), or one after another in
    ``data.order``, with the student frozen anew before each. As in the source, every teacher of a
    sequence has all the epochs, with a schedule and momentum of its own, so that M teachers take M
    times as long as one.
    """
    stages = [data.logits]
    if settings.sequence == "sequential":
        order = data.order or tuple(range(len(data.logits)))
        stages = [data.logits[m : m + 1] for m in order]

    def loss(logits: Tensor, rest: Sequence[Tensor]) -> Tensor:
        return kd_loss(logits, rest[0], temperature=settings.temperature)

    mean = float("nan")
    for teachers in stages:
        frozen = predict(student, data.images, compute=how["compute"])
        logits = pick_most_confident(frozen, teachers, data.labels)
        target = torch.softmax(logits.double() / settings.temperature, dim=1).float()
        images = floats_of(student, data.images)
        mean = fit(student, images, (target,), loss, optimizer=optimizer_of(settings), **how)
    return mean


def pick_most_confident(student: Tensor, teachers: Tensor, labels: Tensor | None) -> Tensor:
    """Return each sample's most confident logits, ``[N, K]``; of equals the student's.

    They are of the frozen student ``[N, K]`` or of a teacher ``[M, N, K]``; without labels ``[N]``
    the greatest probabilities are compared.
    """
    candidates = torch.cat([student[None], teachers])
    probabilities = torch.softmax(candidates.double(), dim=2)
    if labels is None:
        confidence = probabilities.amax(2)
    else:
        index = labels[None, :, None].expand(len(candidates), -1, 1)
        confidence = probabilities.gather(2, index).squeeze(2)
    # Of equal values argmax may return any; the first must win.
    winner = (confidence == confidence.amax(0)).int().argmax(0)
    return candidates[winner, torch.arange(len(student))]
