"""The training loop, on tensors in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Protocol, runtime_checkable

import torch
from cachetools import LRUCache, cached
from torch import Tensor, nn
from torch.nn import functional

from fedkd.data.images import Images, as_inputs, content_hash
from fedkd.models.build import running
from fedkd.models.partial import FeaturesModel, kept_features
from fedkd.models.state import copy_state, state_hash
from fedkd.training.augment import Augment
from fedkd.training.batches import float_batches, whole_or_view
from fedkd.training.compute import Compute, batch_bounds, is_channels_last
from fedkd.training.evaluate import predict
from fedkd.training.losses import LabelLoss
from fedkd.training.optimizer import OptimizerSettings, Stepper
from fedkd.util.parallel import check_stopped
from fedkd.util.random_ops import DrawFrom, draws_at_random

Loss = Callable[[Tensor, Sequence[Tensor]], Tensor]
"""Maps logits ``[B, C]`` and a batch's further tensors to a scalar."""


@runtime_checkable
class HasFixedPart(Protocol):
    """A model with a part that nobody trains, which sees the examples first.

    Features of the fixed part are computed once for an example, however often it is trained on.
    """

    def split_fixed(self) -> tuple[nn.Module, nn.Module]:
        """Return the fixed part, and the rest, which maps its features to logits."""


def fit(
    model: nn.Module,
    images: Tensor | Images,
    others: Sequence[Tensor],
    loss: Loss,
    *,
    optimizer: OptimizerSettings,
    generator: torch.Generator,
    compute: Compute,
    on_epoch: Callable[[], object] | None = None,
    augment: Augment | None = None,
    mix: Callable[[Sequence[Tensor]], list[Tensor]] | None = None,
) -> float:
    """Train ``model`` in place and return the mean loss of the last epoch.

    Training stops at the end of the first epoch whose loss is not finite. The returned loss is
    then not finite.

    Args:
        model: the model, on ``compute.device``.
        images: examples of any kind; pixels are converted to floats when they are needed. The
            output of the model's fixed part, if it has one, is computed once for uint8 images that
            are neither augmented nor mixed; see :class:`HasFixedPart`.
        others: tensors ``[N, ...]`` in the order of the examples, such as labels or targets.
        loss: maps logits and the batch of ``others`` to the loss.
        optimizer: settings of the optimizer.
        generator: sets the order of the samples and the noise of random layers.
        compute: device and precision.
        on_epoch: called after every epoch; training ends where it returns True.
        augment: maps uint8 images to those to train on.
        mix: maps a batch's tensors, float examples first, to those to train on.
    """
    trainable = model
    if mix is None and augment is None:
        trainable, images = _precompute_fixed_part(model, images, compute)
    model.train()
    bounds = batch_bounds(len(images), optimizer.batch_size)
    stepper = Stepper(model, optimizer, optimizer.epochs * len(bounds))
    noise = DrawFrom(generator) if draws_at_random(model) else contextlib.nullcontext()
    layout = torch.channels_last if is_channels_last(trainable) else torch.contiguous_format
    images = whole_or_view(images, layout)
    mean = float("nan")
    for _ in range(optimizer.epochs):
        order = torch.randperm(len(images), generator=generator)
        total = torch.zeros((), device=compute.device)
        for batch, *rest in float_batches(
            images, others, order, bounds, layout=layout, device=compute.device, augment=augment
        ):
            check_stopped()
            size = len(batch)
            if mix:
                batch, *rest = mix([batch, *rest])
            stepper.zero_grad()
            with noise, compute.autocast(), running(model):
                logits = trainable(batch)
            batch_loss = loss(logits.float(), rest)
            with running(model):
                batch_loss.backward()  # type: ignore[no-untyped-call]  # PyTorch's is untyped
            stepper.step()
            total += batch_loss.detach() * size
        mean = float(total) / len(images)
        if (on_epoch and on_epoch() is True) or not torch.isfinite(total):
            break
    return mean


def floats_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return examples as models take them, but images as they are where features are kept."""
    return images if isinstance(model, FeaturesModel) else as_inputs(images)


MAX_FEATURE_BYTES = 4 << 30
"""Maximum memory of the features of a model's fixed part; beyond it they are not precomputed."""
FEATURE_CACHE_BYTES = 1 << 30
"""Maximum memory of all features cached for later rounds with the same fixed part."""


def _precompute_fixed_part(
    model: nn.Module, images: Tensor | Images, compute: Compute
) -> tuple[nn.Module, Tensor | Images]:
    """Return the trainable part of a model, and its input: the fixed part's output, or examples."""
    kept = kept_features(model, images, device=compute.device, precision=compute.precision)
    if kept is not None or isinstance(model, FeaturesModel):
        return kept or (model, images)
    is_float = isinstance(images, Tensor) and images.is_floating_point()
    if not isinstance(model, HasFixedPart) or is_float:
        return model, images
    fixed, trainable = model.split_fixed()
    first = images[:1] if isinstance(images, Tensor) else images.pick(slice(0, 1))
    width = predict(fixed, first, compute=compute).numel()
    if len(images) * width * 4 > MAX_FEATURE_BYTES:
        return model, images
    return trainable, _fixed_features(fixed, images, compute)


@cached(
    LRUCache(FEATURE_CACHE_BYTES, getsizeof=lambda features: features.nbytes),
    key=lambda fixed, images, how: (state_hash(copy_state(fixed)), content_hash(images), how),
    lock=Lock(),
)
def _fixed_features(fixed: nn.Module, images: Tensor | Images, compute: Compute) -> Tensor:
    return predict(fixed, images, compute=compute)


def train_supervised(
    model: nn.Module,
    data: Images,
    *,
    optimizer: OptimizerSettings,
    generator: torch.Generator,
    compute: Compute,
    on_epoch: Callable[[], object] | None = None,
    augment: Augment | None = None,
    cross_entropy: LabelLoss = functional.cross_entropy,
) -> float:
    """Train ``model`` in place on labelled examples with cross-entropy; see :func:`fit`."""
    return fit(
        model,
        data,
        (data.labels,),
        lambda logits, rest: cross_entropy(logits, rest[0]),
        optimizer=optimizer,
        generator=generator,
        compute=compute,
        on_epoch=on_epoch,
        augment=augment,
    )
