"""Training of the global model on a silo's data: the local losses, and the training itself.

A local loss, a user's own too, is a function of a :class:`LocalTask` that returns an
:class:`Objective`; a user's own takes the study's ``rounds.options`` as keyword arguments. It is
called once for every silo and round, so that what is constant in a round (a prior, a copy of the
received parameters, the received model's predictions) is computed once. Silos keep nothing between
rounds, so that any of them may be left out of any round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedkd.config import Rounds
from fedkd.data.images import Images
from fedkd.errors import UserError
from fedkd.registry import LOCAL_LOSSES
from fedkd.training.augment import make_augmentation
from fedkd.training.compute import Compute
from fedkd.training.evaluate import predict
from fedkd.training.loop import Loss, fit
from fedkd.training.losses import LabelLoss, cross_entropy_of, kd_loss
from fedkd.training.optimizer import OptimizerSettings


@dataclass(frozen=True)
class LocalTask:
    """What a local loss is computed from, before the first step of a round.

    Attributes:
        model: the received global model, on the device; it is then trained in place.
        data: the silo's N labelled examples.
        num_classes: C.
        settings: the study's ``rounds``, among them ``mu``, ``beta`` and ``tau``.
        compute: device and precision.
    """

    model: nn.Module
    data: Images
    num_classes: int
    settings: Rounds
    compute: Compute

    @property
    def label_loss(self) -> LabelLoss:
        """Cross-entropy with the settings' label smoothing and class weights."""
        return cross_entropy_of(
            self.settings, self.data.labels, self.num_classes, self.compute.device
        )


@dataclass(frozen=True)
class Objective:
    """The local loss of one silo in one round.

    Attributes:
        loss: function of logits ``[B, C]`` and a list of tensors, which are the batch's labels
            ``[B]`` and its rows of each of ``extras``; returns a scalar.
        extras: tensors ``[N, ...]`` with a row for each example of the silo, in the order of its
            data.
    """

    loss: Loss
    extras: tuple[Tensor, ...] = ()


def train_locally(task: LocalTask, *, generator: torch.Generator) -> float:
    """Train the task's model in place for one round; see :func:`fedkd.training.loop.fit`.

    Returns:
        The mean of the local loss, penalties included, over the last epoch.

    Raises:
        UserError: a local loss of the user's own failed or did not return what it should.
    """
    settings = task.settings
    name = settings.local_loss
    objective = LOCAL_LOSSES.call(name, task, **settings.options)
    if LOCAL_LOSSES.is_own(name):
        objective = _checked(objective, name, len(task.data))
    return fit(
        task.model,
        task.data,
        (task.data.labels, *objective.extras),
        objective.loss,
        # Warm-up and schedule go over the rounds; the settings of a round have its learning rate.
        optimizer=replace(
            OptimizerSettings.of(settings, settings.local_epochs), schedule="constant", warmup=0.0
        ),
        generator=generator,
        compute=task.compute,
        augment=make_augmentation(settings.augment, generator),
    )


def _checked(objective: object, name: str, images: int) -> Objective:
    """Return the objective of a user's own local loss, whose loss is checked on every batch."""
    if not isinstance(objective, Objective):
        raise UserError(
            f"local loss {name} must return a fedkd.training.local.Objective, not "
            f"{type(objective).__name__}"
        )
    for extra in objective.extras:
        if not isinstance(extra, Tensor) or extra.dim() == 0 or len(extra) != images:
            raise UserError(
                f"local loss {name}: every one of extras must be a tensor with a row for each of "
                f"{images} examples"
            )
    compute = objective.loss

    def loss(logits: Tensor, batch: Sequence[Tensor]) -> Tensor:
        with LOCAL_LOSSES.calling(name):
            value = compute(logits, batch)
        if not isinstance(value, Tensor) or value.dim() or not value.requires_grad:
            raise UserError(
                f"local loss {name} must compute a scalar tensor from the logits, with a gradient"
            )
        return value

    return Objective(loss, tuple(objective.extras))


def cross_entropy(task: LocalTask) -> Objective:
    """Cross-entropy alone, as in McMahan et al. 1602.05629."""
    label_loss = task.label_loss
    return Objective(lambda logits, batch: label_loss(logits, batch[0]))


def logit_adjusted(task: LocalTask) -> Objective:
    """Cross-entropy of z + tau log prior, so that a silo's label distribution is not learned.

    Menon et al. 2007.07314, equation 10, with the prior of each silo's own labels as in FedLC
    2209.00189. Predictions are made from z.
    """
    counts = torch.bincount(task.data.labels, minlength=task.num_classes)
    adjustment = (task.settings.tau * log_prior(counts)).to(task.compute.device)
    label_loss = task.label_loss
    return Objective(lambda logits, batch: label_loss(logits + adjustment, batch[0]))


def proximal(task: LocalTask) -> Objective:
    """Cross-entropy plus mu/2 ||w - w_t||^2, w_t the received parameters.

    FedProx, Li et al. 1812.06127, equation 2. Buffers are not parameters and have no penalty.
    """
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    received = [parameter.detach().clone() for parameter in parameters]
    label_loss = task.label_loss

    def loss(logits: Tensor, batch: Sequence[Tensor]) -> Tensor:
        distance = squared_distance(parameters, received)
        return label_loss(logits, batch[0]) + task.settings.mu / 2 * distance

    return Objective(loss)


def not_true(task: LocalTask) -> Objective:
    """Cross-entropy plus beta times the distillation of the received model's not-true classes.

    FedNTD, Lee et al. 2106.03097, equations 3 and 4, times tau^2 as in the authors' code. The
    received model predicts once, before the first step.
    """
    received = predict(task.model, task.data, compute=task.compute)
    label_loss = task.label_loss

    def loss(logits: Tensor, batch: Sequence[Tensor]) -> Tensor:
        labels, old_logits = batch
        distillation = not_true_loss(logits, old_logits, labels, temperature=task.settings.tau)
        return label_loss(logits, labels) + task.settings.beta * distillation

    return Objective(loss, (received,))


def log_prior(class_counts: Tensor) -> Tensor:
    """Return the log share of each class, fp32 ``[C]``, from counts ``[C]``.

    An absent class counts as one example, so that its log prior is finite; this is our choice. The
    formula's limit, minus infinity, takes absent classes out of the softmax: a silo of one class
    would have no gradient, and one of two classes would not separate them from the others.
    """
    counts = class_counts.double().clamp_min(1)
    return (counts / counts.sum()).log().float()


def squared_distance(parameters: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Return ||w - v||^2 of two lists of tensors of the same shapes."""
    return torch.stack(
        [(one - other).square().sum() for one, other in zip(parameters, others, strict=True)]
    ).sum()


def not_true_loss(
    logits: Tensor, old_logits: Tensor, labels: Tensor, *, temperature: float
) -> Tensor:
    """Return T^2 KL(old || new) over the C-1 classes that are not the label, averaged.

    Args:
        logits: of the model in training ``[B, C]``; the only ones with a gradient.
        old_logits: of the received model ``[B, C]``.
        labels: the true classes ``[B]``, left out of both softmaxes.
        temperature: T.
    """
    others = functional.one_hot(labels, logits.shape[1]) == 0
    new, old = (z[others].reshape(len(labels), -1) for z in (logits, old_logits.float()))
    return kd_loss(new, torch.softmax(old / temperature, dim=1), temperature=temperature)
