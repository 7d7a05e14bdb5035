"""The optimizer of all training, and the learning rate of its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from fedkd.config.optimizer import OptimizerKeys, rate_factor
from fedkd.training.sgd import SGD

_BETA_2 = 0.999


@dataclass(frozen=True)
class OptimizerSettings:
    """Settings of stochastic optimisation; the keys of the study file have the same meaning.

    Attributes:
        epochs: number of passes over the data.
        batch_size: number of examples of a step.
        lr: learning rate.
        momentum: of SGD; beta_1 of Adam and AdamW.
        weight_decay: added to the gradient as an L2 penalty; decoupled from it by AdamW.
        schedule: ``constant``, ``linear`` or ``cosine``; see
            :func:`fedkd.config.optimizer.rate_factor`.
        optimizer: ``sgd``, ``adam`` (Kingma & Ba 1412.6980) or ``adamw`` (Loshchilov & Hutter
            1711.05101).
        warmup: share of all steps in which the learning rate rises.
        clip_norm: maximum L2 norm of a batch's gradient; None for no limit.
    """

    epochs: int
    batch_size: int
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "constant"
    optimizer: str = "sgd"
    warmup: float = 0.0
    clip_norm: float | None = None

    @classmethod
    def of(cls, keys: OptimizerKeys, epochs: int) -> OptimizerSettings:
        """Return the settings of a section of the study file."""
        names = (each.name for each in fields(cls) if each.name != "epochs")
        return cls(epochs, **{name: getattr(keys, name) for name in names})


class Stepper:
    """Updates a model by the gradients that it has.

    Args:
        model: the model to train.
        settings: of the optimizer.
        steps: number of all steps, for the schedule.
    """

    def __init__(self, model: nn.Module, settings: OptimizerSettings, steps: int) -> None:
        self._parameters = list(model.parameters())
        self._clip_norm = settings.clip_norm
        self._update = _make_update(self._parameters, settings)
        self._rates = learning_rates(settings, steps)

    def zero_grad(self) -> None:
        """Clear all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self) -> None:
        """Clip the gradient, update the weights, and move on in the schedule."""
        if self._clip_norm is not None:
            clip_grad_norm_(self._parameters, self._clip_norm, foreach=True)
        self._update(next(self._rates))


def learning_rates(settings: OptimizerSettings, steps: int) -> Iterator[float]:
    """Yield the learning rate of each of all steps."""
    rate = settings.lr
    for step in range(steps):
        if settings.schedule != "cosine" or settings.warmup:
            factor = rate_factor(step, steps, schedule=settings.schedule, warmup=settings.warmup)
            yield settings.lr * factor
            continue
        yield rate
        # The recursion of PyTorch's CosineAnnealingLR: the closed form has other last bits.
        now, following = (1 + math.cos(math.pi * each / steps) for each in (step, step + 1))
        rate = following / now * rate


def _make_update(
    parameters: Sequence[nn.Parameter], settings: OptimizerSettings
) -> Callable[[float], None]:
    """Return the function that makes a step with a learning rate."""
    decay = settings.weight_decay
    if settings.optimizer == "sgd":
        return SGD(parameters, momentum=settings.momentum, weight_decay=decay).step
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    adam: torch.optim.Optimizer = kind(
        parameters, betas=(settings.momentum, _BETA_2), weight_decay=decay, foreach=True
    )

    def update(lr: float) -> None:
        for group in adam.param_groups:
            group["lr"] = lr
        adam.step()

    return update
