"""Penultimate features, against models whose insides are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedkd.data.images import as_float
from fedkd.errors import UserError
from fedkd.models.build import Shape, build_model
from fedkd.training.compute import Compute
from fedkd.training.features import penultimate_features

CPU = Compute()


def pictures(count: int, channels: int = 1, side: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (count, channels, side, side)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


class HeadFirst(nn.Module):
    """Its head is defined before its body, and dropout and an unused layer lie about."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)
        self.drop = nn.Dropout(0.9)
        self.body = nn.Linear(64, 5)
        self.unused = nn.Linear(7, 7)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.drop(torch.relu(self.body(images.flatten(1)))))


class Patches(nn.Module):
    """Its only linear layer sees rows of pixels, several an image."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.rows(images.reshape(-1, 8)).reshape(len(images), -1, 3).mean(1)


@pytest.mark.parametrize("arch", ["mlp", "cnn", "lenet5", "resnet8"])
def test_the_head_makes_the_logits_of_the_features(arch: str) -> None:
    model = build_model(arch, Shape(4, 1, 8), seed=1)
    images = pictures(1100)  # more than a batch
    features = penultimate_features(model, images, compute=CPU)
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    assert features.shape == (1100, head.in_features)
    with torch.no_grad():
        torch.testing.assert_close(head(features), model(as_float(images)))


def test_the_layer_that_runs_last_counts_not_the_one_defined_last() -> None:
    model, images = HeadFirst(), pictures(6)
    found = penultimate_features(model, images, compute=CPU)
    with torch.no_grad():
        expected = torch.relu(model.body(as_float(images).flatten(1)))
    torch.testing.assert_close(found, expected)


def test_no_hook_stays_behind() -> None:
    model = HeadFirst()
    penultimate_features(model, pictures(2), compute=CPU)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    "model",
    [nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()), Patches()],
    ids=["no linear layer", "several rows an image"],
)
def test_a_model_without_such_a_layer_is_refused_in_words(model: nn.Module) -> None:
    with pytest.raises(UserError, match=r"basis: features are the input of .* use basis: pixels"):
        penultimate_features(model, pictures(2), compute=CPU)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
