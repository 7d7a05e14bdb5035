"""A distillation method: the temperature falls from that of the study to 1 over the epochs.

In the spirit of Annealing-KD (Jafari et al. 2104.07163): the student fits smooth targets first and
sharp ones last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import fedkd
from fedkd.config import Consolidation
from fedkd.data.images import as_float
from fedkd.distillation.methods.base import DistillationData, optimizer_of
from fedkd.training.compute import Compute
from fedkd.training.loop import fit
from fedkd.training.losses import kd_loss


@fedkd.method(uses={"temperature", "weighting"})
def annealed_kd(
    student: nn.Module,
    data: DistillationData,
    settings: Consolidation,
    *,
    generator: torch.Generator,
    compute: Compute,
    on_epoch: Callable[[], None] | None = None,
) -> float:
    """Train on the weighted mean of the teachers' logits at T^(1 - e / (E - 1)) in epoch e of E."""
    pooled = (data.weights[:, :, None] * data.logits).sum(0).float()  # [N, K]
    epoch = 0

    def loss(logits: Tensor, rest: Sequence[Tensor]) -> Tensor:
        temperature = settings.temperature ** (1 - epoch / max(1, settings.epochs - 1))
        target = torch.softmax(rest[0] / temperature, dim=1)
        return kd_loss(logits, target, temperature=temperature)

    def after_epoch() -> None:
        nonlocal epoch
        epoch += 1
        if on_epoch:
            on_epoch()

    return fit(
        student,
        as_float(data.images),
        (pooled,),
        loss,
        optimizer=optimizer_of(settings),
        generator=generator,
        compute=compute,
        on_epoch=after_epoch,
    )
