"""Distil teachers' predictions into a student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedkd.data.images import Images, as_float
from fedkd.distillation import METHODS, WEIGHTINGS
from fedkd.distillation.weightings import Evidence, foreign_share, pool
from fedkd.study import Consolidation
from fedkd.training import Compute, Sgd, fit


@dataclass(frozen=True)
class Ensemble:
    """The teachers' joint opinion of the transfer set.

    Attributes:
        target: probabilities at the study's temperature, float32 ``[N, C]``.
        weights: of each teacher on each sample, float64 ``[M, N]``.
        foreign: mean share of the samples that no silo knows, or None without densities.
    """

    target: Tensor
    weights: Tensor
    foreign: float | None


def combine(evidence: Evidence, settings: Consolidation) -> Ensemble:
    """Weigh the teachers and pool their predictions."""
    weights = WEIGHTINGS.load(settings.weighting)(evidence, settings)
    target = pool(
        evidence.logits, weights, temperature=settings.temperature, pooling=settings.pooling
    )
    foreign = None
    if evidence.log_density is not None and evidence.log_background is not None:
        known = ~torch.isnan(evidence.log_density).any(dim=1)
        foreign = float(foreign_share(evidence, settings).mean()) if known.any() else None
    return Ensemble(target, weights, foreign)


def distil(
    student: nn.Module,
    transfer: Images,
    target: Tensor,
    settings: Consolidation,
    *,
    labelled: bool,
    generator: torch.Generator,
    compute: Compute,
    on_epoch: Callable[[], None] | None = None,
) -> float:
    """Train ``student`` in place towards ``target`` and return the last epoch's mean loss.

    Args:
        student: the model to train.
        transfer: N images; their labels are used only if ``labelled``.
        target: the teachers' probabilities ``[N, C]``.
        settings: method, temperature, weight and optimiser.
        labelled: whether the method may use the labels.
        generator: order of the samples and noise of random layers.
        compute: device and precision.
        on_epoch: called after every epoch.
    """
    method = METHODS.load(settings.method)

    def loss(logits: Tensor, rest: Sequence[Tensor]) -> Tensor:
        labels = rest[1] if labelled else None
        value: Tensor = method(
            logits, rest[0], labels, temperature=settings.temperature, weight=settings.weight
        )
        return value

    return fit(
        student,
        as_float(transfer.images),
        (target, transfer.labels),
        loss,
        sgd=Sgd(settings.epochs, settings.batch_size, settings.lr, settings.momentum),
        generator=generator,
        compute=compute,
        on_epoch=on_epoch,
    )
