"""Model checkpoints as safetensors, read as the untrusted input that they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fedkd.errors import UserError
from fedkd.util.files import replacing

State = dict[str, Tensor]


def copy_state(model: nn.Module) -> State:
    """Return a detached copy of the model's state dict on the CPU, in C order."""
    return {
        key: tensor.detach().to("cpu", copy=True).contiguous()
        for key, tensor in model.state_dict().items()
    }


def state_hash(state: State) -> str:
    """Hash a model's tensors, names included."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(f"{key}{state[key].dtype}{tuple(state[key].shape)}".encode())
        digest.update(state[key].contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_state(path: Path, state: State, metadata: Mapping[str, str] | None = None) -> None:
    """Write a state dict, atomically, with what the file's header should say besides."""
    with replacing(path) as temporary:
        # Tensors that share storage are refused by safetensors; clones share none.
        owned = {key: tensor.clone().contiguous() for key, tensor in state.items()}
        # Written by Python: safetensors' own writer hides what is wrong with a disk.
        temporary.write_bytes(save(owned, dict(metadata) if metadata else None))


def load_state(path: Path, like: State, *, what: str = "checkpoint") -> State:
    """Read a state dict that must fit ``like``: same keys, shapes and types.

    Args:
        path: a ``.safetensors`` file.
        like: the state dict of the architecture that the file is meant for.
        what: how to name the file in an error.

    Raises:
        UserError: the file is missing, unreadable or of another architecture.
    """
    if not path.is_file():
        raise UserError(f"{what}: {path} does not exist")
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{what}: {path} is no readable safetensors file: {error}; write one by "
            "safetensors.torch.save_model(model, path)"
        ) from error
    problem = mismatch(state, like)
    if problem:
        raise UserError(f"{what}: {path} does not fit the architecture: {problem}")
    return {key: state[key] for key in like}


def mismatch(state: State, like: State) -> str:
    """Say in a phrase how ``state`` differs from ``like`` in keys, shapes or types, or ``""``."""
    missing = [key for key in like if key not in state]
    extra = [key for key in state if key not in like]
    if missing:
        return f"{len(missing)} of {len(like)} tensors are missing, {missing[0]!r} among them"
    if extra:
        return f"{len(extra)} tensors are not the model's, {extra[0]!r} among them"
    for key, tensor in like.items():
        found = state[key]
        if found.shape != tensor.shape:
            return f"{key!r} is {list(found.shape)} where the model has {list(tensor.shape)}"
        if found.dtype != tensor.dtype:
            return f"{key!r} is {found.dtype} where the model has {tensor.dtype}"
    return ""


def average_states(states: list[State], weights: list[float]) -> State:
    """Average state dicts of one architecture, in the order given.

    Sums run in float64, so that averaging equal states gives that state to the last bit. Integer
    buffers (such as BatchNorm's counter) keep their type: the mean is rounded. Booleans are the
    first state's.

    Args:
        states: at least one state dict; all have the same keys, shapes and types.
        weights: one positive weight each; they need not sum to one.
    """
    total = sum(weights)
    average: State = {}
    for key, first in states[0].items():
        if first.dtype is torch.bool:
            average[key] = first.clone()
            continue
        summed = torch.zeros(first.shape, dtype=torch.float64)
        for state, weight in zip(states, weights, strict=True):
            summed.add_(state[key], alpha=weight / total)
        if not first.dtype.is_floating_point:
            summed.round_()
        average[key] = summed.to(first.dtype)
    return average
