"""Architectures of torchvision and timm, by their names there."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from fedkd.errors import UserError
from fedkd.suggestions import suggest
from fedkd.util.requirements import install_command

_AUXILIARY = ("googlenet", "inception_v3")
"""Models of torchvision that return auxiliary logits in training mode by default."""


def torchvision_builder(name: str) -> Callable[..., nn.Module]:
    """Return a function that builds the torchvision model of this name."""
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


def timm_builder(name: str) -> Callable[..., nn.Module]:
    """Return a function that builds the timm model of this name, with random weights.

    Raises:
        UserError: timm is not installed, or has no such model.
    """
    timm = require("timm", "model.arch: timm")
    if not timm.is_model(name):
        raise UserError(
            f"model.arch: timm has no model {name!r}{suggest(name, timm.list_models())}; "
            "`python -c 'import timm; print(timm.list_models())'` lists them"
        )

    def build(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
        options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels}
        settings = timm.get_pretrained_cfg(name)
        if settings is not None and settings.fixed_input_size:  # such as most transformers
            options["img_size"] = image_size
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
        return model

    return build


def require(package: str, what: str, *, extra: str = "models") -> Any:
    """Import a package of an extra of fedkd."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"{what} needs {package}, which is not installed: {install_command(extra)}"
        ) from error
