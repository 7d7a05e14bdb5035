"""Convolutions are channels last wherever that changes nothing, as the values show."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedkd.models.build import Shape, build_model
from fedkd.training.compute import is_channels_last

NETS = """
import torch
from torch import nn
from torch.nn import functional


class Net(nn.Module):
    def __init__(self, num_classes, in_channels, image_size):
        super().__init__()
        self.first = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * image_size**2, num_classes)

    def maps(self, x):
        return self.norm(self.second(functional.dropout(self.first(x), 0.5, self.training)))

    def forward(self, x):
        return self.head(self.maps(x).relu().flatten(1))


class View(Net):
    def forward(self, x):
        return self.head(self.maps(x).view(len(x), -1))


class ViewInTraining(Net):
    def forward(self, x):
        x = self.maps(x)
        return self.head(x.view(len(x), -1) if self.training else x.flatten(1))


class ByMemory(Net):
    def forward(self, x):
        x = self.maps(x)
        return self.head(x.as_strided((len(x), x[0].numel()), (x[0].numel(), 1)))


class Single(Net):
    def forward(self, x):
        return super().forward(x.float())


def plain(num_classes, in_channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))
"""


@pytest.mark.parametrize(
    ("name", "agrees"),
    [
        ("Net", True),
        ("Single", True),
        ("View", False),
        ("ViewInTraining", False),
        ("ByMemory", False),
        ("plain", False),
    ],
)
def test_a_users_convolutions_are_channels_last_where_that_changes_nothing(
    name: str,
    agrees: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("nets")
    (folder / "layoutnets.py").write_text(NETS)
    monkeypatch.syspath_prepend(folder)
    model = build_model(f"layoutnets:{name}", Shape(3, 2, 6), seed=1)
    assert is_channels_last(model) == agrees
    logits = model(torch.rand(2, 2, 6, 6))
    assert isinstance(model, nn.Module)
    assert logits.shape == (2, 3)
    logits.sum().backward()
