"""Whether a model computes the same with its convolutions channels last, in which they are faster.

The answer follows from values alone, never from timing, so that it is the same in every process
and on every host. Values are compared in float64, where layouts differ by rounding of 1e-15 and
nothing is near the bound; a model that runs in float32 alone is compared in that.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fedkd.errors import raise_exhaustion
from fedkd.util.random_ops import DrawFrom

TOLERANCE = 1e-5
"""Most that an output or gradient may differ, relative to the largest of its tensor above 1."""


def has_convolutions(model: nn.Module) -> bool:
    """Whether a model has weights on which the layout of images bears."""
    return any(parameter.dim() == 4 for parameter in model.parameters())


def agrees_channels_last(model: nn.Module, images: Tensor) -> bool:
    """Whether logits and gradients are the same in both layouts, and training runs in both.

    Images are floats ``[N, C, H, W]``. Values are compared in evaluation mode: in training mode a
    random layer draws in the order of memory.
    """
    for dtype in (torch.float64, torch.float32):
        expected = _compute(model, images.to(dtype), torch.contiguous_format)
        if expected is None:
            continue
        given = _compute(model, images.to(dtype), torch.channels_last)
        return given is not None and all(map(_agree, expected, given))
    return False


def _compute(model: nn.Module, images: Tensor, layout: torch.memory_format) -> list[Tensor] | None:
    """Return the logits and gradients of a copy of a model; None if it does not run."""
    results: list[Tensor] = []
    try:
        model = copy.deepcopy(model).to(images.dtype).to(memory_format=layout)
        for training in (False, True):  # training changes statistics of BatchNorm
            model.train(training).zero_grad()
            with DrawFrom(torch.Generator().manual_seed(0)):
                logits = model(images.contiguous(memory_format=layout))
                logits.square().sum().backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            results = results or [logits.detach(), *(g.clone() for g in gradients)]
    except Exception as error:  # of any architecture, which is checked elsewhere
        raise_exhaustion(error)
        return None
    return results


def _agree(one: Tensor, other: Tensor) -> bool:
    bound = TOLERANCE * max(1.0, float(one.abs().max()) if one.numel() else 0.0)
    return one.shape == other.shape and bool(((one - other).abs() <= bound).all())
