"""The networks and batches of the bench, for programs without fedkd."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

Workload = Mapping[str, np.ndarray]


def convolutions(side: int) -> nn.Module:
    """Two convolutions of ``side`` x ``side`` on 28 x 28 pixels, and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 16, side, padding=side // 2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, side, padding=side // 2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def resnet18() -> nn.Module:
    """ResNet-18 on grey images."""
    from torchvision.models import resnet18 as build

    network: nn.Module = build(weights=None, num_classes=10)
    network.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    return network


def mlp(features: int, classes: int) -> nn.Module:
    """Two hidden layers of 200 units."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(features, 200),
        nn.ReLU(),
        nn.Linear(200, 200),
        nn.ReLU(),
        nn.Linear(200, classes),
    )


class Frozen(nn.Module):
    """A network of which nothing but the last layer is trained."""

    def __init__(self, network: nn.Module, weights: str) -> None:
        super().__init__()
        network.load_state_dict(torch.load(weights, weights_only=True))
        self.head = nn.Linear(network.fc.in_features, 10)
        network.fc = nn.Identity()
        self.__dict__["body"] = network.eval().requires_grad_(requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        with torch.no_grad():
            features = self.__dict__["body"](images)
        return self.head(features)


def build(workload: Workload) -> nn.Module:
    """Return the network of a workload, whose state has the names of its start."""
    name = str(workload["network"])
    if name == "frozen":
        return Frozen(resnet18(), str(workload["weights"]))
    if name == "mlp":
        return mlp(workload["images"].shape[-1], int(workload["classes"]))
    return {"cnn": lambda: convolutions(3), "own-cnn": lambda: convolutions(5)}.get(
        name, resnet18
    )()


def start(workload: Workload) -> dict[str, Tensor]:
    """Return the state from which all begin."""
    prefix = "start."
    names = [key for key in workload if key.startswith(prefix)]
    return {key.removeprefix(prefix): torch.from_numpy(workload[key]) for key in names}


def floats(images: np.ndarray) -> Tensor:
    """Return examples as networks take them: pixels in [0, 1], all else as it is."""
    tensor = torch.from_numpy(images)
    return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor


def augmentation(workload: Workload):
    """Return the transform of an image, flipped and cropped after padding, or None."""
    if not workload["augment"]:
        return None
    from torchvision.transforms import v2

    size = workload["images"].shape[-1]
    return v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(size, padding=size // 8)])


class Examples(Dataset):
    """Examples in memory, changed at random where the workload says so."""

    def __init__(self, workload: Workload, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = floats(images), torch.from_numpy(labels)
        self.transform = augmentation(workload)

    def __len__(self) -> int:
        """Return their number."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one with its label."""
        image = self.images[index]
        return self.transform(image) if self.transform else image, self.labels[index]


def average(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of states; whole numbers are the first one's."""
    return {
        key: torch.stack([state[key] for state in states]).mean(0)
        if tensor.is_floating_point()
        else tensor
        for key, tensor in states[0].items()
    }
