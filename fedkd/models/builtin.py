"""The built-in architectures. None has batch statistics, so averaging their weights is sound.

All take images ``[N, in_channels, image_size, image_size]`` in [0, 1] to logits ``[N, C]``;
``mlp`` and ``linear`` take other floats ``[N, *shape]`` too, such as the columns of a table.
Pooling comes before the activation: the greatest of four values is the same either way, bit for
bit, and so are gradients, with a quarter of the activations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def cnn(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Two convolutions and two linear layers: 16 and 32 maps, 128 units."""
    side = image_size // 4
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * side * side, 128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    )


def lenet5(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """LeCun et al. 1998 with ReLU and max pooling; images under 16 pixels keep their border."""
    padding = 2 if image_size < 16 else 0
    side = (image_size // 2 + 2 * padding - 4) // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(6, 16, 5, padding=padding),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * side * side, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )


def linear(
    num_classes: int, in_channels: int = 0, image_size: int = 0, *, shape: Sequence[int] = ()
) -> nn.Module:
    """Logistic regression: one linear layer."""
    features = math.prod(shape or (in_channels, image_size, image_size))
    return nn.Sequential(nn.Flatten(), nn.Linear(features, num_classes))


def mlp(
    num_classes: int, in_channels: int = 0, image_size: int = 0, *, shape: Sequence[int] = ()
) -> nn.Module:
    """Two hidden layers of 200 units, the "2NN" of McMahan et al. 1602.05629."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape or (in_channels, image_size, image_size)), 200),
        nn.ReLU(),
        nn.Linear(200, 200),
        nn.ReLU(),
        nn.Linear(200, num_classes),
    )


class _Block(nn.Module):
    """A residual block of He et al. 1512.03385 with GroupNorm for BatchNorm."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(8, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(8, channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = functional.relu(self.norm1(self.conv1(inputs)))
        hidden = self.norm2(self.conv2(hidden))
        return functional.relu(hidden + self.shortcut(inputs))


class _ResNet8(nn.Module):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.norm = nn.GroupNorm(8, 16)
        self.blocks = nn.Sequential(_Block(16, 16, 1), _Block(16, 32, 2), _Block(32, 64, 2))
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.blocks(functional.relu(self.norm(self.stem(images))))
        logits: Tensor = self.head(torch.mean(hidden, dim=(2, 3)))
        return logits


def resnet8(num_classes: int, in_channels: int, image_size: int) -> nn.Module:  # noqa: ARG001 -- one signature for all
    """Three residual blocks of 16, 32 and 64 maps, GroupNorm, global average pooling."""
    return _ResNet8(num_classes, in_channels)
