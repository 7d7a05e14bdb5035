"""From an architecture's name to a model, initialised from a seed of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fedkd.errors import UserError, describe_exhaustion
from fedkd.registry import ARCHITECTURES
from fedkd.suggestions import suggest
from fedkd.user_code import calling, hash_files
from fedkd.util.random_ops import DrawFrom

_NAME = "_fedkd_architecture"
"""Where a model keeps the name of an architecture that is not built in; copies of it do too."""
_AUXILIARY = ("googlenet", "inception_v3")
"""Models of torchvision that return auxiliary logits in training mode by default."""


@dataclass(frozen=True)
class Shape:
    """What an architecture is built for."""

    num_classes: int
    in_channels: int
    image_size: int


def build_model(arch: str, shape: Shape, *, seed: int) -> nn.Module:
    """Build ``arch``, its random initialisation drawn from ``seed`` alone.

    Convolutions of the built-in and of torchvision's architectures lie in memory channels last,
    in which they train in about two thirds of the time. A user's function keeps the layout that
    it chose: under another one its ``view`` of a convolution's output might fail.

    Raises:
        UserError: the architecture cannot be found or does not fit these images.
    """
    function = _find(arch)
    with DrawFrom(torch.Generator().manual_seed(seed)):
        model = _build(function, arch, shape)
        _initialise(model, arch, shape)
    if arch not in ARCHITECTURES:
        model.__dict__[_NAME] = arch
    if not ARCHITECTURES.is_own(arch):
        model.to(memory_format=torch.channels_last)
    return model


def running(model: nn.Module) -> AbstractContextManager[None]:
    """Return the context of a model's forward or backward pass.

    What another than a built-in architecture raises in it becomes a
    :class:`fedkd.errors.UserCodeError`.
    """
    arch = model.__dict__.get(_NAME)
    return calling("architecture", arch) if arch else nullcontext()


def _initialise(model: nn.Module, arch: str, shape: Shape) -> None:
    """Give lazy layers, whose weights wait for a first input, their shapes and weights.

    Raises:
        UserError: some have none afterwards.
    """
    if not any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        return
    reason = ""
    images = torch.zeros(2, shape.in_channels, shape.image_size, shape.image_size)
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(images)
    except Exception as error:
        if describe_exhaustion(error):
            raise
        reason = f": {error}"
    model.train(training)
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise UserError(f"model.arch: {arch} has lazy layers that no forward pass reaches{reason}")


def _build(function: Callable[..., Any], arch: str, shape: Shape) -> nn.Module:
    try:
        model = function(
            num_classes=shape.num_classes,
            in_channels=shape.in_channels,
            image_size=shape.image_size,
        )
    except Exception as error:
        if describe_exhaustion(error):
            raise
        raise UserError(
            f"model.arch: {arch} cannot be built for {shape.in_channels} x {shape.image_size} x "
            f"{shape.image_size} images and {shape.num_classes} classes: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model.arch: {arch} returned {type(model).__name__}, not a torch.nn.Module"
        )
    return model


def count_bytes(arch: str, shape: Shape) -> int:
    """Return how many bytes the weights of ``arch`` take, without taking them.

    For built-in and torchvision's architectures, whose shape an untrusted file may give.

    Raises:
        UserError: the architecture cannot be found or does not fit these images.
    """
    with torch.device("meta"):
        model = _build(_find(arch), arch, shape)
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def arch_fingerprint(arch: str, files: Sequence[str] = ()) -> str:
    """Return a hash of what an architecture's name stands for, for cache keys.

    For a user's function it is the text that :func:`fedkd.user_code.fingerprint` finds.

    Args:
        arch: the architecture.
        files: further ones that the user's code reads (``model.files``).
    """
    read = f"+{hash_files(files)}" if files else ""
    if arch in ARCHITECTURES:
        return arch + read
    if ARCHITECTURES.is_own(arch):
        return ARCHITECTURES.fingerprint(arch) + read
    import torchvision

    return f"{arch}@{torchvision.__version__}{read}"


def _find(arch: str) -> Callable[..., Any]:
    prefix, name = ARCHITECTURES.split(arch)
    function = ARCHITECTURES.load(arch)
    return function(name) if prefix else function


def torchvision_builder(name: str) -> Callable[..., nn.Module]:
    """Return a function that builds the torchvision model of this name.

    Raises:
        UserError: there is none.
    """
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise UserError(
            f"model.arch: torchvision has no model {name!r}{suggest(name, names)}; "
            "`python -c 'import torchvision; print(torchvision.models.list_models())'` lists them"
        )

    def build(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
        extra = {"image_size": image_size} if name.startswith("vit_") else {}
        if name in _AUXILIARY:
            extra = {"aux_logits": False, "init_weights": True}
        model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **extra)
        if in_channels != 3:
            _widen_first_convolution(model, in_channels)
        return model

    return build


def _widen_first_convolution(model: nn.Module, in_channels: int) -> None:
    """Replace the convolution that sees the image by one for ``in_channels`` channels."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            parent = model.get_submodule(name.rpartition(".")[0])
            new = nn.Conv2d(
                in_channels,
                module.out_channels,
                kernel_size=_pair(module.kernel_size),
                stride=_pair(module.stride),
                padding=module.padding
                if isinstance(module.padding, str)
                else _pair(module.padding),
                bias=module.bias is not None,
            )
            setattr(parent, name.rpartition(".")[2], new)
            return
    raise ValueError("it has no convolution over three channels to adapt")


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    height, width = values
    return height, width
