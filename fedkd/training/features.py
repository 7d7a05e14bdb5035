"""Penultimate features: the input of a model's last linear layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedkd.errors import UserError
from fedkd.training.compute import Compute
from fedkd.training.evaluate import predict


def penultimate_features(model: nn.Module, images: Tensor, *, compute: Compute) -> Tensor:
    """Return the input of the linear layer that a model runs last.

    Args:
        model: on ``compute.device``; it is left in evaluation mode.
        images: uint8 ``[N, C, H, W]``.
        compute: device and precision.

    Returns:
        float32 ``[N, D]`` on the CPU.

    Raises:
        UserError: the model runs no linear layer, or none that gets one row per image.
    """
    last_input: list[Tensor] = []
    batches: list[Tensor] = []

    def record_input(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        last_input[:] = [inputs[0]]

    def collect(_: nn.Module, inputs: tuple[Any, ...], __: object) -> None:
        if not last_input or len(last_input[0]) != len(inputs[0]):
            raise UserError(
                "familiarity.basis: features are the input of a model's last linear layer, and "
                f"{type(model).__name__} has none that gets one row per image; use basis: pixels"
            )
        batches.append(last_input.pop().flatten(1).float().cpu())

    # The last layer by order of execution: a head may be defined before the body.
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_pre_hook(record_input) for module in linear]
    handles.append(model.register_forward_hook(collect))
    try:
        predict(model, images, compute=compute)
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(batches)
