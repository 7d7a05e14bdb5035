"""From an architecture's name to a model, initialised from a seed of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fedkd.data.images import Kind
from fedkd.errors import UserError, raise_exhaustion
from fedkd.models.assemble import assembly, fixed_part
from fedkd.models.backbone import Backbone, Trained
from fedkd.models.external import ExternalModel, check_installed
from fedkd.models.fixed import FixedPart
from fedkd.models.layout import agrees_channels_last, has_convolutions
from fedkd.models.preprocessing import Preprocessing
from fedkd.registry import ANY_INPUT, ARCHITECTURES, HUGGING_FACE, is_external
from fedkd.user_code import calling, hash_files
from fedkd.util.cache import installed
from fedkd.util.random_ops import DrawFrom

_NAME = "_fedkd_architecture"
"""Where a model keeps the name of an architecture that is not built in; copies of it do too."""
_LIBRARIES = {"torchvision": "torchvision", "timm": "timm", "hf": "transformers"}
"""Prefixes of architectures, to the packages whose version decides what their names stand for."""


NOUNS = {"image": "images", "table": "rows", "text": "texts", "tensor": "tensors"}


@dataclass(frozen=True)
class Shape:
    """What an architecture is built for.

    Attributes:
        num_classes: C.
        in_channels: of the images.
        image_size: their height and width in pixels.
        backbone: pre-trained weights, preprocessing and the part that is trained; None for
            networks as they are, from random weights.
        kind: what an example is; ``in_channels`` and ``image_size`` are 0 where it is no image.
        inputs: shape of an example that is no image, such as ``(F,)`` of a table.
    """

    num_classes: int
    in_channels: int
    image_size: int
    backbone: Backbone | None = None
    kind: Kind = "image"
    inputs: tuple[int, ...] = ()

    @classmethod
    def of(cls, num_classes: int, kind: Kind, inputs: Sequence[int]) -> Shape:
        """Return what models are built for where an example of a kind has the shape ``inputs``."""
        if kind == "image":
            return cls(num_classes, inputs[0], inputs[-1])
        return cls(num_classes, 0, 0, None, kind, tuple(inputs))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of an example: ``(C, H, W)`` of an image."""
        if self.kind == "image":
            return self.in_channels, self.image_size, self.image_size
        return self.inputs

    def zeros(self, count: int) -> torch.Tensor:
        """Return ``count`` blank examples as models take them, ``[count, ...]``."""
        dtype = torch.int64 if self.kind == "text" else torch.float32
        return torch.zeros(count, *self.input_shape, dtype=dtype)

    def __str__(self) -> str:
        """Such as ``images of 1 x 8 x 8``."""
        return f"{NOUNS[self.kind]} of {' x '.join(map(str, self.input_shape))}"

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What the study's models do to images before their networks get them."""
        return None if self.backbone is None else self.backbone.preprocessing

    @property
    def merged(self) -> Shape:
        """What the final model of a run is built for: the same, but that adapters are merged."""
        if self.backbone is None or self.backbone.trained.kind != "lora":
            return self
        return replace(self, backbone=replace(self.backbone, trained=Trained()))

    @property
    def sizes(self) -> dict[str, Any]:
        """What a model's card says of it: three numbers for images."""
        if self.kind != "image":
            return {"num_classes": self.num_classes, "kind": self.kind, "inputs": [*self.inputs]}
        return {
            "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "image_size": self.image_size,
        }


def build_model(arch: str, shape: Shape, *, seed: int) -> nn.Module:
    """Build ``arch``, its random initialisation drawn from ``seed`` alone.

    Convolutions lie in memory channels last, in which they train in about two thirds of the time,
    unless another architecture than a built-in or torchvision's computes something else so.

    Raises:
        UserError: the architecture cannot be found or does not fit these images.
    """
    if is_external(arch):
        return ExternalModel(arch, shape.num_classes)
    make = _maker(arch, shape)
    with DrawFrom(torch.Generator().manual_seed(seed)):
        model = make()
    if arch not in ARCHITECTURES:
        model.__dict__[_NAME] = arch
    if _is_channels_last(arch, shape, model):
        model.to(memory_format=torch.channels_last)
    return model


def rebuild(arch: str, shape: Shape, state: Mapping[str, Any], device: str = "cpu") -> nn.Module:
    """Build ``arch`` with the weights of a state dict."""
    model = build_model(arch, shape, seed=0)
    model.load_state_dict(state)
    return model.to(device)


def _is_channels_last(arch: str, shape: Shape, model: nn.Module) -> bool:
    if shape.kind != "image" or not has_convolutions(model):
        return False
    if arch in ARCHITECTURES or arch.startswith("torchvision:"):
        return True
    return _agrees(arch, ARCHITECTURES.load(arch), shape)


@lru_cache(maxsize=64)
def _agrees(arch: str, function: object, shape: Shape) -> bool:  # noqa: ARG001 -- part of the key
    """Whether an architecture, as its function is now, agrees in both layouts."""
    with DrawFrom(torch.Generator().manual_seed(0)):
        model = _maker(arch, shape)()
    images = torch.rand((2, *shape.input_shape), generator=torch.Generator().manual_seed(0))
    return agrees_channels_last(model, images)


def build_fixed_part(shape: Shape) -> FixedPart | None:
    """Return the study's pre-trained network without its head; None if it has no weights.

    Raises:
        UserError: weights or preprocessing do not fit the architecture.
    """
    backbone = shape.backbone
    if backbone is None or not backbone.is_pretrained:
        return None
    return fixed_part(
        backbone,
        _bare_builder(backbone.arch, shape),
        in_channels=shape.in_channels,
        image_size=shape.image_size,
    )


def _bare_builder(arch: str, shape: Shape) -> Callable[[int, int], nn.Module]:
    """Return a function of channels and image size that builds the network alone."""
    function = _find(arch if shape.backbone is None else shape.backbone.arch_here(arch))

    def build(in_channels: int, image_size: int) -> nn.Module:
        wanted = replace(shape, in_channels=in_channels, image_size=image_size)
        network = _build(function, arch, wanted)
        _initialise(network, arch, wanted)
        return network

    return build


def _maker(arch: str, shape: Shape) -> Callable[[], nn.Module]:
    """Return a function that makes a model with random numbers of the current generator."""
    build, backbone = _bare_builder(arch, shape), shape.backbone
    if backbone is None or not backbone.prepares(arch):
        return partial(build, shape.in_channels, shape.image_size)
    return assembly(
        backbone, arch, build, in_channels=shape.in_channels, image_size=shape.image_size
    )


def running(model: nn.Module) -> AbstractContextManager[None]:
    """Return the context of a model's forward or backward pass.

    What another than a built-in architecture raises in it becomes a
    :class:`fedkd.errors.UserCodeError`.
    """
    arch = model.__dict__.get(_NAME)
    return calling("architecture", arch) if arch else nullcontext()


def _initialise(model: nn.Module, arch: str, shape: Shape) -> None:
    """Give lazy layers, whose weights wait for a first input, their shapes and weights."""
    if not any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        return
    reason = ""
    images = shape.zeros(2)
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(images)
    except Exception as error:
        raise_exhaustion(error)
        reason = f": {error}"
    model.train(training)
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise UserError(f"model.arch: {arch} has lazy layers that no forward pass reaches{reason}")


def _build(function: Callable[..., Any], arch: str, shape: Shape) -> nn.Module:
    given: dict[str, object] = {"shape": shape.inputs}
    if shape.kind == "image":
        given = {"in_channels": shape.in_channels, "image_size": shape.image_size}
    elif not ARCHITECTURES.is_own(arch) and not (
        arch.startswith(HUGGING_FACE) if shape.kind == "text" else arch in ANY_INPUT
    ):
        known = "hf:FOLDER" if shape.kind == "text" else " or ".join(ANY_INPUT)
        raise UserError(
            f"model.arch: {arch} does not take {NOUNS[shape.kind]}, but the study's examples are "
            f"{shape}; use {known}, or an architecture of your own"
        )
    try:
        model = function(num_classes=shape.num_classes, **given)
    except Exception as error:
        raise_exhaustion(error)
        raise UserError(
            f"model.arch: {arch} cannot be built for {shape} and {shape.num_classes} classes: "
            f"{error}"
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
    function, backbone = _find(arch), shape.backbone
    if backbone is not None and (preprocessing := backbone.preprocessing) is not None:
        size = preprocessing.size or shape.image_size
        shape = replace(shape, in_channels=len(preprocessing.mean), image_size=size)
    with torch.device("meta"):
        model = _build(function, arch, shape)
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def arch_fingerprint(arch: str, files: Sequence[str] = (), backbone: Backbone | None = None) -> str:
    """Return a hash of what an architecture's name stands for, for cache keys.

    For a user's function it is the text that :func:`fedkd.user_code.fingerprint` finds, with
    further files that it reads (``model.files``).
    """
    read = f"+{hash_files(files)}" if files else ""
    if backbone is not None and backbone.prepares(arch):
        read += f"+{json.dumps(backbone.key, sort_keys=True)}"
    if is_external(arch):
        return f"{arch}@{check_installed(arch, arch).__version__}"
    if arch in ARCHITECTURES:
        return arch + read
    if ARCHITECTURES.is_own(arch):
        return ARCHITECTURES.fingerprint(arch) + read
    library = _LIBRARIES[arch.partition(":")[0]]
    return f"{arch}@{installed(library)[library]}{read}"


def _find(arch: str) -> Callable[..., Any]:
    prefix, name = ARCHITECTURES.split(arch)
    function = ARCHITECTURES.load(arch)
    return function(name) if prefix else function
