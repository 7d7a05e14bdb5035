"""The training loop, on tensors in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Protocol, runtime_checkable

import torch
from cachetools import LRUCache, cached
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR

from fedkd.data.images import Images, content_hash
from fedkd.models.build import running
from fedkd.models.state import copy_state, state_hash
from fedkd.training.batches import float_batches, whole_or_view
from fedkd.training.compute import Compute, batch_bounds, is_channels_last
from fedkd.training.evaluate import predict
from fedkd.util.parallel import check_stopped
from fedkd.util.random_ops import DrawFrom, draws_at_random

Loss = Callable[[Tensor, Sequence[Tensor]], Tensor]
"""Maps logits ``[B, C]`` and a batch's further tensors to a scalar."""


@runtime_checkable
class HasFixedPart(Protocol):
    """A model with a part that nobody trains, which sees the images first.

    Features of the fixed part are computed only once for an image, however often it is trained on.
    """

    def split_fixed(self) -> tuple[nn.Module, nn.Module]:
        """Return the fixed part, and the rest, which maps its features to logits."""


@dataclass(frozen=True)
class Sgd:
    """Settings of stochastic gradient descent with momentum.

    ``schedule`` is ``constant``, or ``cosine``, which decays to zero over all steps (1608.03983,
    without restarts).
    """

    epochs: int
    batch_size: int
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "constant"


def fit(
    model: nn.Module,
    images: Tensor | Images,
    others: Sequence[Tensor],
    loss: Loss,
    *,
    sgd: Sgd,
    generator: torch.Generator,
    compute: Compute,
    on_epoch: Callable[[], None] | None = None,
    mix: Callable[[Sequence[Tensor]], list[Tensor]] | None = None,
) -> float:
    """Train ``model`` in place by SGD and return the mean loss of the last epoch.

    Training stops at the end of the first epoch whose loss is not finite. The returned loss is
    then not finite.

    Args:
        model: the model, on ``compute.device``.
        images: uint8 ``[N, C, H, W]``, converted to floats when they are needed; or floats. The
            output of the model's fixed part, if it has one, is computed once for uint8 images; see
            :class:`HasFixedPart`.
        others: tensors ``[N, ...]`` in the order of the images, such as labels or targets.
        loss: maps logits and the batch of ``others`` to the loss.
        sgd: settings of the optimiser.
        generator: sets the order of the samples and the noise of random layers.
        compute: device and precision.
        on_epoch: called after every epoch.
        mix: maps a batch's tensors, images first, to those to train on.
    """
    trainable = model
    if mix is None:
        trainable, images = _precompute_fixed_part(model, images, compute)
    model.train()
    optimiser = make_optimiser(model, sgd.lr, sgd.momentum, sgd.weight_decay)
    bounds = batch_bounds(len(images), sgd.batch_size)
    anneal = make_schedule(optimiser, sgd.schedule, sgd.epochs * len(bounds))
    noise = DrawFrom(generator) if draws_at_random(model) else contextlib.nullcontext()
    layout = torch.channels_last if is_channels_last(model) else torch.contiguous_format
    images = whole_or_view(images, layout)
    mean = float("nan")
    for _ in range(sgd.epochs):
        order = torch.randperm(len(images), generator=generator)
        total = torch.zeros((), device=compute.device)
        for batch, *rest in float_batches(
            images, others, order, bounds, layout=layout, device=compute.device
        ):
            check_stopped()
            size = len(batch)
            if mix:
                batch, *rest = mix([batch, *rest])
            optimiser.zero_grad()
            with noise, compute.autocast(), running(model):
                logits = trainable(batch)
            batch_loss = loss(logits.float(), rest)
            with running(model):
                batch_loss.backward()  # type: ignore[no-untyped-call]  # PyTorch's is untyped
            optimiser.step()
            anneal()
            total += batch_loss.detach() * size
        mean = float(total) / len(images)
        if on_epoch:
            on_epoch()
        if not torch.isfinite(total):
            break
    return mean


MAX_FEATURE_BYTES = 4 << 30
"""Maximum memory of the features of a model's fixed part; beyond it they are not precomputed."""
FEATURE_CACHE_BYTES = 1 << 30
"""Maximum memory of all features cached for later rounds with the same fixed part."""


def _precompute_fixed_part(
    model: nn.Module, images: Tensor | Images, compute: Compute
) -> tuple[nn.Module, Tensor | Images]:
    """Return the trainable part of a model, and its input: the fixed part's output, or images."""
    is_float = isinstance(images, Tensor) and images.is_floating_point()
    if not isinstance(model, HasFixedPart) or is_float:
        return model, images
    fixed, trainable = model.split_fixed()
    first = images[:1] if isinstance(images, Tensor) else images.pick(slice(0, 1))
    width = predict(fixed, first, compute=compute).numel()
    if len(images) * width * 4 > MAX_FEATURE_BYTES:
        return model, images
    return trainable, _fixed_features(fixed, images, compute)


def _feature_key(
    fixed: nn.Module, images: Tensor | Images, compute: Compute
) -> tuple[str, str, Compute]:
    return state_hash(copy_state(fixed)), content_hash(images), compute


@cached(
    LRUCache(FEATURE_CACHE_BYTES, getsizeof=lambda features: features.nbytes),
    key=_feature_key,
    lock=Lock(),
)
def _fixed_features(fixed: nn.Module, images: Tensor | Images, compute: Compute) -> Tensor:
    return predict(fixed, images, compute=compute)


def make_optimiser(
    model: nn.Module, lr: float, momentum: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """Return the optimiser of all training: SGD with momentum."""
    return torch.optim.SGD(
        model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, foreach=True
    )


def make_schedule(
    optimiser: torch.optim.Optimizer, name: str, num_steps: int
) -> Callable[[], None]:
    """Return the function to call after every optimiser step; see :class:`Sgd`."""
    if name == "cosine":
        return CosineAnnealingLR(optimiser, num_steps).step
    return lambda: None


def train_supervised(
    model: nn.Module,
    data: Images,
    *,
    sgd: Sgd,
    generator: torch.Generator,
    compute: Compute,
    on_epoch: Callable[[], None] | None = None,
) -> float:
    """Train ``model`` in place on labelled images with cross-entropy; see :func:`fit`."""
    return fit(
        model,
        data,
        (data.labels,),
        lambda logits, rest: functional.cross_entropy(logits, rest[0]),
        sgd=sgd,
        generator=generator,
        compute=compute,
        on_epoch=on_epoch,
    )
