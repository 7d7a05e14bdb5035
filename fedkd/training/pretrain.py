"""Pre-training of a silo's own model, with an early stop on data that it does not train on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from fedkd.config import Pretraining
from fedkd.data.images import Images
from fedkd.models.state import State, copy_state
from fedkd.training.augment import make_augmentation
from fedkd.training.compute import Compute
from fedkd.training.evaluate import evaluate
from fedkd.training.loop import train_supervised
from fedkd.training.losses import cross_entropy_of
from fedkd.training.optimizer import OptimizerSettings


@dataclass(eq=False)
class EarlyStop:
    """Ends training when the loss on held-out examples has not fallen for some epochs.

    Call it after every epoch; it returns whether to end. A loss that is not finite never counts as
    lower.
    """

    model: nn.Module
    held_out: Images
    patience: int
    compute: Compute
    _best: State | None = None
    _lowest: float = math.inf
    _waited: int = 0

    def __call__(self) -> bool:
        """Measure the model, and return whether training ends."""
        loss = evaluate(self.model, self.held_out, compute=self.compute).loss
        self.model.train()
        if loss < self._lowest:
            self._lowest, self._waited = loss, 0
            self._best = copy_state(self.model)
        else:
            self._waited += 1
        return self._waited >= self.patience

    def restore(self) -> None:
        """Give the model the weights of its best epoch; without any it keeps its own."""
        if self._best is not None:
            self.model.load_state_dict(self._best)


def pretrain(
    model: nn.Module,
    data: Images,
    settings: Pretraining,
    *,
    num_classes: int,
    generator: torch.Generator,
    compute: Compute,
) -> None:
    """Train a silo's own model in place.

    With ``patience``, a share of the examples, drawn from ``generator``, is held out, and the
    weights of the epoch with the lowest loss on it are kept. A silo that is too small to hold out
    an example trains on all of them for all epochs.
    """
    early_stop = None
    held_out = settings.num_held_out(len(data))
    if settings.patience is not None and held_out:
        order = torch.randperm(len(data), generator=generator)
        early_stop = EarlyStop(model, data.take(order[:held_out]), settings.patience, compute)
        data = data.take(order[held_out:])
    train_supervised(
        model,
        data,
        optimizer=OptimizerSettings.of(settings, settings.epochs),
        generator=generator,
        compute=compute,
        on_epoch=early_stop,
        augment=make_augmentation(settings.augment, generator),
        cross_entropy=cross_entropy_of(settings, data.labels, num_classes, compute.device),
    )
    if early_stop is not None:
        early_stop.restore()
