"""What a model sees in an image: the features from which its last layer tells the class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedkd.errors import UserError
from fedkd.training.compute import Compute
from fedkd.training.evaluate import predict


def penultimate_features(model: nn.Module, images: Tensor, *, compute: Compute) -> Tensor:
    """Return what goes into the linear layer that a model runs last.

    Args:
        model: on ``compute.device``; it is left in evaluation mode.
        images: uint8 ``[N, C, H, W]``.
        compute: device and precision.

    Returns:
        float32 ``[N, D]`` on the CPU.

    Raises:
        UserError: the model runs no linear layer, or none that sees one row an image.
    """
    latest: list[Tensor] = []
    batches: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        latest[:] = [inputs[0]]

    def keep(_: nn.Module, inputs: tuple[Any, ...], __: object) -> None:
        if not latest or len(latest[0]) != len(inputs[0]):
            raise UserError(
                "familiarity.basis: features are what goes into a model's last linear layer, and "
                f"{type(model).__name__} has none that sees a row an image; use basis: pixels"
            )
        batches.append(latest.pop().flatten(1).float().cpu())

    # By order of execution, not of definition: a head may be defined before the body.
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_pre_hook(note) for module in linear]
    handles.append(model.register_forward_hook(keep))
    try:
        predict(model, images, compute=compute)
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(batches)
