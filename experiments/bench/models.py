"""Models of a user's own: of different sizes, and with larger convolutions."""

from __future__ import annotations

from torch import nn


def _wide(width: int, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_channels * image_size**2, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, num_classes),
    )


def wide_100(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Two hidden layers of 100 units: 0.09 million parameters on 28 x 28 pixels."""
    return _wide(100, num_classes, in_channels, image_size)


def wide_1000(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Two hidden layers of 1,000 units: 1.8 million parameters."""
    return _wide(1000, num_classes, in_channels, image_size)


def wide_3000(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Two hidden layers of 3,000 units: 11.4 million parameters."""
    return _wide(3000, num_classes, in_channels, image_size)


def _stack(megabytes: int, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Layers of 17 MB, or of 67 MB in models of 500 MB and more, each with its normalization."""
    width = 2048 if megabytes < 500 else 4096
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(in_channels * image_size**2, width)]
    for _ in range(round(megabytes * 1e6 / (4 * width**2))):
        layers += [nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(width, num_classes))


def stack_50(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """A deep network of 50 MB."""
    return _stack(50, num_classes, in_channels, image_size)


def stack_100(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """A deep network of 101 MB."""
    return _stack(100, num_classes, in_channels, image_size)


def stack_300(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """A deep network of 302 MB."""
    return _stack(300, num_classes, in_channels, image_size)


def stack_1000(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """A deep network of 1,008 MB."""
    return _stack(1000, num_classes, in_channels, image_size)


def two_convolutions(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Two convolutions of 5 x 5, as a user writes them."""
    side = image_size // 4
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * side * side, 128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    )
