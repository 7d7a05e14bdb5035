"""Low-rank adapters of linear layers: Hu et al., "LoRA" (2106.09685), by the library peft."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from fedkd.errors import UserError
from fedkd.models.libraries import require

_SCALE = 2
"""alpha / rank: the change is ``_SCALE * B A``."""


def add_adapters(network: nn.Module, rank: int, targets: Sequence[str], head: str) -> list[str]:
    """Add adapters to a network in place, and return the names of the modules to train.

    Targets are names of layers, or how they end; without any, all linear layers but the head.
    The head is trained as a whole.

    Raises:
        UserError: there are no such layers, or peft cannot adapt them.
    """
    peft = require("peft", "model.train.lora")
    chosen = list(targets) or _linear_layers(network, head)
    if not chosen:
        raise UserError(
            f"model.train.lora: {type(network).__name__} has no linear layers beside its head; "
            "name other layers, such as convolutions, under model.train.lora.targets"
        )
    chosen_layers = _find_targets(network, chosen)
    config = peft.LoraConfig(r=rank, lora_alpha=_SCALE * rank, target_modules=chosen)
    try:
        peft.inject_adapter_in_model(config, network)
    except ValueError as error:
        kinds = sorted({type(layer).__name__ for layer in chosen_layers})
        raise UserError(
            f"model.train.lora.targets: {', '.join(chosen[:6])}: peft has no adapters for layers "
            f"of the kind {', '.join(kinds[:3])}; name {_examples(network)}"
        ) from error
    return [name for name, _ in network.named_modules() if _is_adapter(name)]


def _find_targets(network: nn.Module, targets: Sequence[str]) -> list[nn.Module]:
    """Return the layers that peft finds under the names; it ignores a name that is no layer's."""
    layers = []
    for target in targets:
        matched = [
            layer
            for name, layer in network.named_modules()
            if name == target or name.endswith(f".{target}")
        ]
        if not matched:
            raise UserError(
                f"model.train.lora.targets: {type(network).__name__} has no layer {target!r}; name "
                f"{_examples(network)}"
            )
        layers += matched
    return layers


def _examples(network: nn.Module) -> str:
    """Return names of layers that can be adapted, for a sentence."""
    names = [
        name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    return f"linear layers or convolutions, such as {', '.join(names[:4])}"


def _is_adapter(name: str) -> bool:
    """Whether a module holds an adapter's own weights: ``....lora_A`` and the like."""
    return name.rpartition(".")[2].startswith("lora_")


def _linear_layers(network: nn.Module, head: str) -> list[str]:
    """Return the linear layers that adapters can be added to.

    PyTorch's attention reads the weights of its output layer without calling it.
    """
    inside = [
        f"{name}."
        for name, module in network.named_modules()
        if isinstance(module, nn.MultiheadAttention)
    ]
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
        and name != head
        and not name.startswith(tuple(inside))
        and not _is_adapter(name.rpartition(".")[0])
    ]


def merge_adapters(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose adapters are added to the weights that they adapt."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged = copy.deepcopy(network)
    adapted: list[tuple[str, Any]] = [
        (name, module)
        for name, module in merged.named_modules()
        if isinstance(module, BaseTunerLayer)
    ]
    for name, module in adapted:
        module.merge()
        parent, _, child = name.rpartition(".")
        setattr(merged.get_submodule(parent), child, module.get_base_layer())
    return merged
