"""Networks with pre-trained weights and a new head, wrapped as the study says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from fedkd.errors import UserError, one_line
from fedkd.models.adapters import add_adapters
from fedkd.models.backbone import Backbone, Trained
from fedkd.models.fixed import FixedPart
from fedkd.models.partial import HeadModel, PartlyTrainedModel, PreparedModel, SplitModel
from fedkd.models.preprocessing import Preprocess, check_channels
from fedkd.models.pretrained import load_weights
from fedkd.models.split import split_at
from fedkd.models.state import State, fit_names, mismatch
from fedkd.util.random_ops import DrawFrom

_SEQUENCES = (nn.Sequential, nn.ModuleList)
Build = Callable[[int, int], nn.Module]
"""Takes the number of channels and the height of a network's input to the network."""


@dataclass(frozen=True)
class _Template:
    """A network with its weights, where its head is, and the height of its input."""

    network: nn.Module
    head: str
    input_size: int


def assembly(
    backbone: Backbone, arch: str, build: Build, *, in_channels: int, image_size: int
) -> Callable[[], nn.Module]:
    """Return a function that makes a model, its random numbers from the current generator.

    Weights are read before that function is called, and only once in a process.

    Raises:
        UserError: weights, head or preprocessing do not fit the architecture.
    """
    preprocessing = backbone.preprocessing
    if preprocessing is not None:
        check_channels(preprocessing, in_channels)
        in_channels = len(preprocessing.mean)
        image_size = preprocessing.size or image_size
    if arch == backbone.arch and backbone.is_pretrained:
        template = _template(_untrained(backbone), _Once(build, arch), in_channels, image_size)
        return partial(_with_new_head, backbone, template)

    def bare() -> nn.Module:
        network = build(in_channels, image_size)
        return network if preprocessing is None else PreparedModel(preprocessing, network)

    return bare


def _with_new_head(backbone: Backbone, template: _Template) -> nn.Module:
    """Return a model with the template's weights and a random head."""
    preprocessing, trained = backbone.preprocessing, backbone.trained
    head = _new_head(template)
    if trained.kind == "head":
        state: State = dict(template.network.state_dict())
        return HeadModel(_fixed_part(_untrained(backbone), template), head, state, template.head)
    network = copy.deepcopy(template.network)
    _set(network, template.head, head)
    if trained.kind == "all":
        return network if preprocessing is None else PreparedModel(preprocessing, network)
    if trained.kind == "last":
        first, names = _last_blocks(network, trained.number, template.head)
        model = (preprocessing, network, tuple(names))
        parts = split_at(network, first, _blocks(network, ""))
        fixed = _first_blocks(_untrained(backbone), template, first)
        trained_modules = {network.get_submodule(name) for name in names}
        if parts is None or fixed is None or trained_modules & set(parts[0].modules()):
            return PartlyTrainedModel(*model)
        return SplitModel(fixed, parts[1].to(memory_format=torch.channels_last), *model)
    names = add_adapters(network, trained.number, trained.targets, template.head)
    return PartlyTrainedModel(preprocessing, network, (*names, template.head), merges=True)


class _Once:
    """A function that builds a network, equal to another one of the same architecture."""

    def __init__(self, build: Build, arch: str) -> None:
        self.build, self._arch = build, arch

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Once) and other._arch == self._arch

    def __hash__(self) -> int:
        return hash(self._arch)


def _untrained(backbone: Backbone) -> Backbone:
    """Return what decides the network alone, whatever part of it is trained."""
    return replace(backbone, trained=Trained(), others=())


@lru_cache(maxsize=4)
def _template(backbone: Backbone, once: _Once, in_channels: int, image_size: int) -> _Template:
    """Build a network and load its weights, all but its head's, once."""
    # Weights that are not loaded are those of the head, which is replaced.
    with DrawFrom(torch.Generator().manual_seed(0)):
        network = once.build(in_channels, image_size)
    head = _find_head(network, backbone.arch, in_channels, image_size)
    if backbone.weights and backbone.arch_here(backbone.arch) == backbone.arch:
        _load(network, head, backbone)
    return _Template(network, head, image_size)


def _load(network: nn.Module, head: str, backbone: Backbone) -> None:
    state = load_weights(backbone.arch, backbone.weights)
    whole = dict(network.state_dict())
    state, _ = fit_names(state, whole)
    body = {key: t for key, t in whole.items() if not key.startswith(f"{head}.")}
    given = {key: t for key, t in state.items() if not key.startswith(f"{head}.")}
    given = {key: t.to(body[key].dtype) if key in body else t for key, t in given.items()}
    if problem := mismatch(given, body):
        raise UserError(
            f"model.weights: the weights {backbone.weights} are not those of {backbone.arch}: "
            f"{problem}"
        )
    network.load_state_dict(given, strict=False)


def _find_head(network: nn.Module, arch: str, in_channels: int, image_size: int) -> str:
    """Return the name of the linear layer whose output is the network's."""
    outputs: list[tuple[str, tuple[int, ...], object]] = []

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _, inputs, output: outputs.append((name, tuple(inputs[0].shape), output))

    layers = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)]
    handles = [module.register_forward_hook(record(name)) for name, module in layers]
    # Of examples that are no images, texts alone have pre-trained networks.
    examples = torch.zeros(2, in_channels, image_size, image_size)
    examples = examples if image_size else torch.zeros(2, 1, dtype=torch.int64)
    what = f"images of {image_size} pixels" if image_size else "texts"
    try:
        with torch.no_grad():
            logits = network.eval()(examples)
    except Exception as error:  # of any architecture
        raise UserError(f"model.arch: {arch} does not take {what}: {one_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    for name, shape, output in reversed(outputs):
        if output is logits and len(shape) == 2:
            return name
    raise UserError(
        f"model.arch: the last layer of {arch} is not a linear layer on one row per image, so that "
        "it cannot be given a new head for model.weights"
    )


def _new_head(template: _Template) -> nn.Linear:
    old = template.network.get_submodule(template.head)
    if not isinstance(old, nn.Linear):
        raise TypeError(f"{template.head} is not a linear layer")
    return nn.Linear(old.in_features, old.out_features, bias=old.bias is not None)


def _set(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def fixed_part(backbone: Backbone, build: Build, *, image_size: int, in_channels: int) -> FixedPart:
    """Return the pre-trained network without its head, the same whatever part is trained.

    Raises:
        UserError: weights, head or preprocessing do not fit the architecture.
    """
    if (preprocessing := backbone.preprocessing) is not None:
        check_channels(preprocessing, in_channels)
        in_channels, image_size = len(preprocessing.mean), preprocessing.size or image_size
    template = _template(_untrained(backbone), _Once(build, backbone.arch), in_channels, image_size)
    return _fixed_part(_untrained(backbone), template)


@lru_cache(maxsize=4)
def _fixed_part(backbone: Backbone, template: _Template) -> FixedPart:
    network = copy.deepcopy(template.network)
    _set(network, template.head, nn.Identity())
    key = f"{backbone.features_hash} {template.input_size}"
    return _with_preprocessing(backbone, network, key)


def _with_preprocessing(backbone: Backbone, network: nn.Module, key: str) -> FixedPart:
    network.to(memory_format=torch.channels_last)
    if backbone.preprocessing is None:
        return FixedPart(network, key)
    return FixedPart(nn.Sequential(Preprocess(backbone.preprocessing), network), key)


@lru_cache(maxsize=4)
def _first_blocks(backbone: Backbone, template: _Template, first: str) -> FixedPart | None:
    """Return the part of a network before a block; None where it cannot be taken apart."""
    network = copy.deepcopy(template.network)
    parts = split_at(network, first, _blocks(network, ""))
    key = f"{backbone.features_hash} {template.input_size} before {first}"
    return None if parts is None else _with_preprocessing(backbone, parts[0], key)


def _last_blocks(network: nn.Module, number: int, head: str) -> tuple[str, list[str]]:
    """Return the N-th last block, and all modules from there on, in the order of definition.

    A block is a module with parts that stands in a sequence of modules and is in no other block.
    """
    blocks = list(_blocks(network, ""))
    if len(blocks) < number:
        raise UserError(
            f"model.train.last: {number} blocks are requested, but {type(network).__name__} has "
            f"{len(blocks)}; use fewer, or model.train: head or all"
        )
    first = blocks[-number]
    order = [name for name, module in network.named_modules() if _is_leaf(module)]
    start = next(i for i, name in enumerate(order) if f"{name}.".startswith(f"{first}."))
    return first, [*order[start:], *([] if head in order[start:] else [head])]


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None or any(
        True for _ in module.parameters(recurse=False)
    )


def _blocks(module: nn.Module, prefix: str) -> list[str]:
    found = []
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        has_parts = next(child.children(), None) is not None
        if has_parts and isinstance(module, _SEQUENCES) and not isinstance(child, _SEQUENCES):
            found.append(path)
        elif has_parts:
            found += _blocks(child, f"{path}.")
    return found
