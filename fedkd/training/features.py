"""Penultimate features: the input of a model's last linear layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedkd.data.images import Images
from fedkd.errors import UserError
from fedkd.models.partial import kept_features
from fedkd.training.compute import Compute
from fedkd.training.evaluate import predict


def penultimate_features(model: nn.Module, images: Tensor, *, compute: Compute) -> Tensor:
    """Return the input of the linear layer that a model runs last; see :func:`penultimate`.

    Raises:
        UserError: the model runs no linear layer, or none that gets one row per example.
    """
    found = penultimate(model, images, compute=compute)
    if found is None:
        raise UserError(
            "familiarity.basis: features are the input of a model's last linear layer, and "
            f"{type(model).__name__} has none that gets one row per example; use basis: pixels"
        )
    return found[0]


def penultimate(
    model: nn.Module, images: Tensor | Images, *, compute: Compute
) -> tuple[Tensor, nn.Linear] | None:
    """Return the input of the linear layer that a model runs last, and the layer.

    The model, on ``compute.device``, is left in evaluation mode.

    Returns:
        float32 ``[N, D]`` on the CPU, and the layer; None for a model that runs no linear layer, or
        none that gets one row per example.
    """
    model.eval()
    kept = kept_features(model, images, device=compute.device, precision=compute.precision)
    return _record(*(kept or (model, images)), compute)


def _record(
    model: nn.Module, images: Tensor | Images, compute: Compute
) -> tuple[Tensor, nn.Linear] | None:
    last: list[tuple[nn.Linear, Tensor]] = []
    batches: list[tuple[nn.Linear, Tensor] | None] = []

    def record_input(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(layer, nn.Linear):
            last[:] = [(layer, inputs[0])]

    def collect(_: nn.Module, inputs: tuple[Any, ...], __: object) -> None:
        layer, rows = last.pop() if last else (None, None)
        if layer is None or rows is None or len(rows) != len(inputs[0]):
            batches.append(None)
        else:
            batches.append((layer, rows.flatten(1).float().cpu()))

    # The last layer by order of execution: a head may be defined before the body.
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_pre_hook(record_input) for module in linear]
    handles.append(model.register_forward_hook(collect))
    try:
        predict(model, images, compute=compute)
    finally:
        for handle in handles:
            handle.remove()
    known = [batch for batch in batches if batch is not None]
    if not known or len(known) < len(batches):
        return None
    return torch.cat([rows for _, rows in known]), known[0][0]
