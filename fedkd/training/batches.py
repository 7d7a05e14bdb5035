"""Batches of examples: pixels are uint8 in memory or in a mapped file, floats only when used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from fedkd.data.images import Images, as_inputs
from fedkd.training.augment import Augment

_FLOAT_BYTES = 64 << 20
"""Most bytes of floats that are made at a time; a small silo's whole epoch is less."""


def whole_or_view(images: Tensor | Images, layout: torch.memory_format) -> Tensor | Images:
    """Return a view as it is, and else one tensor in a memory layout."""
    if isinstance(images, Images):
        if images.rows is not None:
            return images
        images = images.images
    return images.contiguous(memory_format=layout) if images.ndim == 4 else images.contiguous()


def float_batches(
    images: Tensor | Images,
    others: Sequence[Tensor],
    order: Tensor,
    bounds: Sequence[tuple[int, int]],
    *,
    layout: torch.memory_format,
    device: str,
    augment: Augment | None = None,
) -> Iterator[list[Tensor]]:
    """Yield the batches of an epoch on a device: what the model takes, then the other tensors.

    Args:
        images: examples of any kind, of :func:`whole_or_view`.
        others: tensors ``[N, ...]``.
        order: of the examples, int64 ``[N]``.
        bounds: where each batch begins and ends in ``order``.
        layout: of the memory of images.
        device: of all that is yielded.
        augment: changes uint8 images, one or several batches at a time.
    """
    size = 4 * images[:1].numel() if isinstance(images, Tensor) else 4 * images.stored[:1].numel()
    for some in _group(bounds, max(1, _FLOAT_BYTES // max(1, size))):
        first = some[0][0]
        chosen = order[first : some[-1][1]]
        picked = images[chosen] if isinstance(images, Tensor) else images.pick(chosen)
        if augment is not None:
            picked = augment(picked)
        floats = as_inputs(picked)
        if isinstance(images, Images) or augment is not None:
            floats = floats.contiguous(memory_format=layout) if floats.ndim == 4 else floats
        tensors = [_move(floats, device), *(_move(other[chosen], device) for other in others)]
        for start, end in some:
            yield [tensor[start - first : end - first] for tensor in tensors]


def _move(tensor: Tensor, device: str) -> Tensor:
    """Return a tensor on a device; the copy to a GPU does not wait for what it computes."""
    if device.startswith("cuda"):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def uint8_batches(images: Tensor | Images, size: int) -> list[Callable[[], Tensor]]:
    """Return a function for each batch of at most ``size`` examples, in order, that returns it."""
    if isinstance(images, Tensor) or images.rows is None:
        whole = images if isinstance(images, Tensor) else images.images
        return [partial(_itself, batch) for batch in torch.split(whole, size)]
    starts = range(0, len(images), size)
    return [partial(images.pick, slice(start, start + size)) for start in starts]


def _itself(batch: Tensor) -> Tensor:
    return batch


def _group(bounds: Sequence[tuple[int, int]], most: int) -> Iterator[list[tuple[int, int]]]:
    """Yield batches that follow one another, at least one and at most ``most`` samples a time."""
    some: list[tuple[int, int]] = []
    for start, end in bounds:
        if some and end - some[0][0] > most:
            yield some
            some = []
        some.append((start, end))
    if some:
        yield some
