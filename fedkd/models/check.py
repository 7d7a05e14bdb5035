"""Checks of a model before a study runs: prediction, training, and the exchange of its state."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedkd.errors import UserError, one_line, raise_exhaustion
from fedkd.models.build import Shape, build_model
from fedkd.models.external import check_installed
from fedkd.registry import is_external
from fedkd.util.random_ops import DrawFrom

_EXCHANGED = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.bool),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    }
)
"""Types of tensors that NumPy, and so Flower's messages, can hold and averages can be made of."""


def check_model(arch: str, shape: Shape, *, trained: bool = True) -> None:
    """Build ``arch`` and check predictions, training and state, on images of noise.

    Raises:
        UserError: it does not turn examples into one logit for each class, cannot be trained on a
            batch of two, or has a state that cannot be exchanged.
    """
    if is_external(arch):
        check_installed(arch, f"model.per_silo: {arch}")
        if shape.kind == "text" and arch != "onnx":
            raise UserError(f"model.per_silo: {arch} takes rows of numbers, not tokens of texts")
        return
    model = build_model(arch, shape, seed=0)
    if problem := _find_state_problem(model):
        raise UserError(f"model.arch: {arch} {problem}")
    try:
        model.load_state_dict(model.state_dict())
    except Exception as error:  # a module may read its state by code of its own
        raise_exhaustion(error)
        raise UserError(
            f"model.arch: {arch} does not load the state that it gives: {_reason(error)}"
        ) from error
    model.eval()
    for count in (2, 1):
        if problem := _find_output_problem(model, shape, count):
            raise UserError(f"model.arch: {arch} {problem}")
    if not trained:
        return
    if problem := _train_once(model, shape, 2):
        raise UserError(f"model.arch: {arch} {problem}")


def find_training_problem(arch: str, shape: Shape, batch_size: int) -> str:
    """Return why ``arch`` cannot be trained on batches of so many examples, or ``""``.

    One forward and one backward pass show it: auxiliary outputs, batch normalisation of a single
    example and the like do not occur in evaluation mode.
    """
    if is_external(arch):
        return ""  # its library trains it
    return _train_once(build_model(arch, shape, seed=0), shape, batch_size)


def _train_once(model: nn.Module, shape: Shape, batch_size: int) -> str:
    before = {key: tensor.shape for key, tensor in model.state_dict().items()}
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return "has no weight that can be trained: all have requires_grad = False"
    for parameter in model.parameters():
        if parameter.requires_grad:  # of a large model, all gradients are as large
            parameter.register_post_accumulate_grad_hook(_forget_gradient)  # type: ignore[no-untyped-call]
    model.train()
    labels = torch.zeros(batch_size, dtype=torch.int64)
    try:
        with DrawFrom(torch.Generator().manual_seed(0)):
            logits = model(_images(shape, batch_size))
        if problem := _find_misfit(logits, (batch_size, shape.num_classes)):
            return f"{problem}, in training mode; its forward must return the logits alone"
        functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # it is the user's code
        raise_exhaustion(error)
        return f"cannot be trained on a batch of {batch_size}: {_reason(error)}"
    if {key: tensor.shape for key, tensor in model.state_dict().items()} != before:
        return "changes the names or shapes of its state when it is trained"
    return ""


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _find_output_problem(model: nn.Module, shape: Shape, count: int) -> str:
    """Return what is wrong with the logits in evaluation mode, or ``""``."""
    try:
        with torch.no_grad(), DrawFrom(torch.Generator().manual_seed(0)):
            logits = model(_images(shape, count))
    except Exception as error:  # it is the user's code
        raise_exhaustion(error)
        return f"does not take {count} {shape}: {_reason(error)}"
    return _find_misfit(logits, (count, shape.num_classes))


def _find_misfit(logits: object, expected: tuple[int, int]) -> str:
    if isinstance(logits, Tensor) and tuple(logits.shape) == expected:
        if logits.is_floating_point():
            return ""
        return f"gives {logits.dtype} where floating-point logits are expected"
    given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    return f"gives {given} for {expected[0]} examples where logits {expected} are expected"


def _find_state_problem(model: nn.Module) -> str:
    """Return which part of the state dict is not a plain tensor of real numbers, or ``""``."""
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            return (
                f"has a state of which {key!r} is a {type(value).__name__}, not a tensor; let "
                "get_extra_state return a tensor, or leave it out"
            )
        dense = value.layout == torch.strided and not value.is_quantized and not value.is_meta
        if value.dtype not in _EXCHANGED or not dense:
            return (
                f"has a state of which {key!r} is {value.dtype}, {value.layout}, on "
                f"{value.device}; only dense real tensors are exchanged: leave a constant out by "
                "register_buffer(..., persistent=False), or hold it in such tensors"
            )
    return ""


def _images(shape: Shape, count: int) -> Tensor:
    if shape.kind == "text":
        return shape.zeros(count)
    return torch.rand((count, *shape.input_shape), generator=torch.Generator().manual_seed(0))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
