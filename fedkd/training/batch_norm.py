"""BatchNorm in models that are averaged: which of their tensors it has, and new statistics.

The mean of running statistics is not the statistics of the mean model: activations of an average
differ from those of each model in scale and place.
"""

from __future__ import annotations

import contextlib

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedkd.data.images import Images, as_inputs
from fedkd.models.build import Shape, build_model, running
from fedkd.models.state import State, copy_state
from fedkd.training.compute import Compute, batch_bounds, intra_op_threads
from fedkd.util.parallel import check_stopped
from fedkd.util.random_ops import DrawFrom, draws_at_random

_BATCH_SIZE = 256


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers of a model by name, but those of a part that nobody trains."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    state = model.state_dict()
    return {
        name: layer
        for name, layer in layers.items()
        if all(f"{name}.{key}".removeprefix(".") in state for key in layer.state_dict())
    }


def batch_norm_keys(model: nn.Module) -> frozenset[str]:
    """Return the names of all BatchNorm tensors in the model's state dict, statistics included."""
    return frozenset(
        f"{name}.{key}" if name else key
        for name, layer in batch_norms(model).items()
        for key in layer.state_dict()
    )


def recalibrate(state: State, arch: str, shape: Shape, images: Images, compute: Compute) -> State:
    """Return a state with BatchNorm statistics that are computed anew on examples without labels.

    Every layer's statistics are the mean of those of batches of 256 examples, in order: Izmailov et
    al. 1803.05407, section 3.2. Other layers are in evaluation mode. A model without BatchNorm
    keeps its state.
    """
    model = build_model(arch, shape, seed=0).to(compute.device)
    layers = [layer for layer in batch_norms(model).values() if layer.track_running_stats]
    if not layers:
        return state
    model.load_state_dict(state)
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over batches
        layer.train()
    noise = (
        DrawFrom(torch.Generator().manual_seed(0))
        if draws_at_random(model)
        else contextlib.nullcontext()
    )
    with torch.no_grad(), noise, intra_op_threads(1), compute.autocast(), running(model):
        for start, end in batch_bounds(len(images), _BATCH_SIZE):
            check_stopped()
            model(as_inputs(images.pick(slice(start, end))).to(compute.device))
    return copy_state(model)
