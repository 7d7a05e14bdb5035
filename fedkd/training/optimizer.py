"""The optimizer of all training, and the learning rate of its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from fedkd.config.optimizer import OptimizerKeys, rate_factor
from fedkd.training.sgd import LeanSGD

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
        self.optimizer = _make_optimizer(model, settings)
        self._parameters = list(model.parameters())
        self._clip_norm = settings.clip_norm
        self._schedule = _make_schedule(self.optimizer, settings, steps)

    def zero_grad(self) -> None:
        """Clear all gradients, without the hooks of PyTorch's profiler."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self) -> None:
        """Clip the gradient, update the weights, and move on in the schedule."""
        if self._clip_norm is not None:
            clip_grad_norm_(self._parameters, self._clip_norm, foreach=True)
        self.optimizer.step()
        self._schedule()


def _make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    decay, lr = settings.weight_decay, settings.lr
    if settings.optimizer == "sgd":
        return LeanSGD(
            model.parameters(), lr=lr, momentum=settings.momentum, weight_decay=decay, foreach=True
        )
    betas = (settings.momentum, _BETA_2)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    adam: torch.optim.Optimizer = kind(
        model.parameters(), lr=lr, betas=betas, weight_decay=decay, foreach=True
    )
    return adam


def _make_schedule(
    optimizer: torch.optim.Optimizer, settings: OptimizerSettings, steps: int
) -> Callable[[], None]:
    """Return the function to call after every step."""
    if settings.warmup == 0 and settings.schedule == "constant":
        return lambda: None
    if settings.warmup == 0 and settings.schedule == "cosine":
        # PyTorch's recursion differs from the closed form in its last bits.
        return CosineAnnealingLR(optimizer, steps).step
    factor = partial(_factor, steps=steps, schedule=settings.schedule, warmup=settings.warmup)
    return LambdaLR(optimizer, factor).step


def _factor(step: int, *, steps: int, schedule: str, warmup: float) -> float:
    """Return the share of the learning rate; the schedule is also asked after the last step."""
    return 0.0 if step >= steps else rate_factor(step, steps, schedule=schedule, warmup=warmup)
