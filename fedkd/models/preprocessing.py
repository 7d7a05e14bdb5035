"""Preprocessing inside a model: images in [0, 1] become what its network was trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedkd.config.backbone import Normalization
from fedkd.errors import UserError
from fedkd.models.state import State


@dataclass(frozen=True)
class Preprocessing:
    """Resizing, then (x - mean) / std.

    Attributes:
        mean: of each channel of the network's input.
        std: likewise, positive.
        size: height and width to which images are resized; None for as they are.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | None = None

    @property
    def is_identity(self) -> bool:
        """Whether images stay as they are, but for their number of channels."""
        return self.size is None and set(self.mean) == {0.0} and set(self.std) == {1.0}


PREPROCESS = "preprocess."
"""Prefix of the keys of a model's own mean and standard deviation in its state dict."""
IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def identity(channels: int, size: int | None = None) -> Preprocessing:
    """Return the preprocessing that changes no value."""
    return Preprocessing((0.0,) * channels, (1.0,) * channels, size)


def from_config(value: Normalization | str | None) -> Preprocessing | None:
    """Return what a study says; None for ``none`` and where it says nothing."""
    if isinstance(value, Normalization):
        return Preprocessing(tuple(value.mean), tuple(value.std), value.size)
    return IMAGENET if value == "imagenet" else None


class Preprocess(nn.Module):
    """A :class:`Preprocessing` as a module.

    Mean and standard deviation are buffers, so that a model carries its own wherever its state
    goes. Greyscale images become as many equal channels as the network takes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.size = preprocessing.size
        self.register_buffer("mean", torch.tensor(preprocessing.mean))
        self.register_buffer("std", torch.tensor(preprocessing.std))

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's input ``[N, C', S, S]`` for floats ``[N, C, H, W]`` in [0, 1]."""
        if self.size is not None and images.shape[-1] != self.size:
            images = functional.interpolate(
                images, (self.size, self.size), mode="bilinear", antialias=True
            )
        return (images - self.mean[:, None, None]) / self.std[:, None, None]


def check_channels(preprocessing: Preprocessing, in_channels: int) -> None:
    """Refuse images with another number of channels than the preprocessing takes."""
    expected = len(preprocessing.mean)
    if in_channels not in (1, expected):
        raise UserError(
            f"model.preprocessing: is for images of {expected} channels, but the data has "
            f"{in_channels}; give mean and std of each channel"
        )


def with_preprocessing(
    state: State, preprocessing: Preprocessing | None, study: Preprocessing | None
) -> State:
    """Return the state of a model with another mean and standard deviation.

    None stands for images as they are.

    Raises:
        UserError: the models have no preprocessing of their own, or one of another number of
            channels.
    """
    mean, std = (state.get(PREPROCESS + key) for key in ("mean", "std"))
    if mean is None or std is None:
        if _values(preprocessing) == _values(study):
            return state
        raise UserError(
            "model.preprocessing: the models of the study have none of their own; set "
            "model.preprocessing there, with model.train: all"
        )
    values = [(0.0,) * len(mean), (1.0,) * len(std)]
    if preprocessing is not None:
        values = [preprocessing.mean, preprocessing.std]
    if len(values[0]) != len(mean):
        raise UserError(
            f"model.preprocessing: is for {len(values[0])} channels, but the study's is for "
            f"{len(mean)}"
        )
    return state | {
        PREPROCESS + "mean": torch.tensor(values[0]),
        PREPROCESS + "std": torch.tensor(values[1]),
    }


def _values(preprocessing: Preprocessing | None) -> object:
    if preprocessing is None or preprocessing.is_identity:
        return None
    return preprocessing.mean, preprocessing.std


def same_preprocessing(states: list[State]) -> bool:
    """Whether models have the same preprocessing, so that an average of them is of one kind."""
    return all(
        torch.equal(state[key], states[0][key])
        for state in states
        for key in states[0]
        if key.startswith(PREPROCESS)
    )


def preprocessing_in(state: State, like: Preprocessing | None) -> Preprocessing | None:
    """Return the preprocessing of a model, by its state where the state has it."""
    mean, std = (state.get(PREPROCESS + key) for key in ("mean", "std"))
    if mean is None or std is None:
        return like
    size = None if like is None else like.size
    # The shortest decimals that are these floats of 32 bits.
    values = [tuple(float(str(value)) for value in each.numpy()) for each in (mean, std)]
    return Preprocessing(values[0], values[1], size)
