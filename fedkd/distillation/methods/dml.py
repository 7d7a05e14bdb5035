"""Deep mutual learning: the student and all teachers are trained on each other's predictions."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedkd.config import Consolidation
from fedkd.data.images import as_inputs
from fedkd.distillation.methods.base import DistillationData, How, optimizer_of
from fedkd.models.build import running
from fedkd.training.compute import batch_bounds
from fedkd.training.optimizer import Stepper
from fedkd.util.parallel import check_stopped
from fedkd.util.random_ops import DrawFrom, draws_at_random


def dml(
    student: nn.Module, data: DistillationData, settings: Consolidation, **how: Unpack[How]
) -> float:
    """Train the student and all teachers together on L_i = [CE] + mean over j of KL(p_j || p_i).

    Zhang et al. 1706.00384, algorithm 1: on each batch the models are updated in turn; peers'
    predictions are constants, and a model's are recomputed after its own step. Without labels the
    loss has no cross-entropy. A student that is a copy of a teacher replaces it; any other is one
    model more.

    Our extension: the mean over j is weighted per example by the weights of the peers, so that a
    model does not learn from peers to which the example is unfamiliar. A student that is not a
    teacher has weight 1/M. Teachers are copied, not changed.
    """
    generator, compute, on_epoch = how["generator"], how["compute"], how.get("on_epoch")
    models, weights = _participants(student, data)
    noises = [
        DrawFrom(generator) if draws_at_random(model) else contextlib.nullcontext()
        for model in models
    ]
    images = as_inputs(data.images)
    bounds = batch_bounds(len(images), settings.batch_size)
    steps = settings.epochs * len(bounds)
    steppers = [Stepper(model, optimizer_of(settings), steps) for model in models]
    mean = float("nan")
    for model in models:
        model.train()
    for _ in range(settings.epochs):
        order = torch.randperm(len(images), generator=generator)
        shuffled = images[order].to(compute.device)
        shuffled_weights = weights[:, order].to(compute.device)
        labels = None if data.labels is None else data.labels[order].to(compute.device)
        total = torch.zeros((), device=compute.device)
        for start, end in bounds:
            check_stopped()
            batch = shuffled[start:end]

            def log_probabilities(index: int, batch: Tensor = batch) -> Tensor:
                with noises[index], compute.autocast(), running(models[index]):
                    logits = models[index](batch)
                return functional.log_softmax(logits.float(), dim=1)

            def as_peer(index: int) -> Tensor:
                with torch.no_grad(), keep_buffers(models[index]):
                    return log_probabilities(index)

            peers = [as_peer(index) for index in range(len(models))]
            for index, stepper in enumerate(steppers):
                stepper.zero_grad()
                own = log_probabilities(index)
                loss = mutual_loss(own, peers, shuffled_weights[:, start:end], index)
                if labels is not None:
                    loss = loss + functional.nll_loss(own, labels[start:end])
                with running(models[index]):
                    loss.backward()  # type: ignore[no-untyped-call]  # PyTorch's is untyped
                stepper.step()
                peers[index] = as_peer(index)
                if models[index] is student:
                    total += loss.detach() * (end - start)
        mean = float(total) / len(images)
        if on_epoch:
            on_epoch()
        if not torch.isfinite(total):
            break
    return mean


@contextlib.contextmanager
def keep_buffers(model: nn.Module) -> Iterator[None]:
    """Undo what the block does to a model's buffers.

    A model in training mode predicts as a peer before and after its own step. Without this, batch
    normalisation would count every batch three times in its running statistics.
    """
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def mutual_loss(own: Tensor, models: list[Tensor], weights: Tensor, index: int) -> Tensor:
    """Return the weighted mean over peers of KL(p_j || p_i), averaged over the batch.

    Args:
        own: log-probabilities of model i with gradient ``[B, K]``.
        models: log-probabilities of all models, ``[B, K]`` each, constants.
        weights: of all models on the batch ``[M, B]``.
        index: i.
    """
    peers = [j for j in range(len(models)) if j != index]
    if not peers:
        return own.sum() * 0
    share = weights[peers]
    totals = share.sum(0)
    # If no peer has any weight, all have the same.
    share = torch.where(totals > 0, share / totals.clamp_min(1e-300), 1 / len(peers)).to(own.dtype)
    divergences = torch.stack([(models[j].exp() * (models[j] - own)).sum(1) for j in peers])
    return (share * divergences).sum(0).mean()


def _participants(student: nn.Module, data: DistillationData) -> tuple[list[nn.Module], Tensor]:
    """Return all models that are trained, and their weights ``[M, N]``."""
    models = [copy.deepcopy(model) for model in data.models]
    if data.student is not None:
        models[data.student] = student
        return models, data.weights
    of_student = torch.full_like(data.weights[:1], 1 / max(1, len(models)))
    return [*models, student], torch.cat([data.weights, of_student])
