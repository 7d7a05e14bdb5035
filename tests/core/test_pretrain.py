"""Pre-training: the early stop, and the settings that reach it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fedkd.config import Pretraining
from fedkd.data.images import Images
from fedkd.models.build import Shape, build_model
from fedkd.models.state import State, copy_state
from fedkd.training import pretrain as module
from fedkd.training.compute import Compute
from fedkd.training.evaluate import Metrics
from fedkd.training.pretrain import EarlyStop, pretrain


def noise(size: int = 40) -> Images:
    """Return images without anything to learn, so that the loss on others only rises."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Images(images, torch.arange(size) % 2)


def train(data: Images, **settings: Any) -> State:
    model = build_model("mlp", Shape(2, 1, 8), seed=1)
    pretrain(
        model,
        data,
        Pretraining(**{"lr": 0.1, "batch_size": 8, **settings}),
        num_classes=2,
        generator=torch.Generator().manual_seed(3),
        compute=Compute(),
    )
    return copy_state(model)


def same(first: State, second: State) -> bool:
    return all(torch.equal(first[key], second[key]) for key in first)


def test_the_best_epoch_is_kept_and_training_ends_after_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses = iter([0.9, 0.5, 0.7, 0.5, float("nan"), 0.1])
    measured: list[State] = []

    def measure(model: nn.Module, data: Images, *, compute: Compute) -> Metrics:
        assert len(data) == 8
        measured.append(copy_state(model))
        return Metrics(0.0, next(losses), 0.0)

    monkeypatch.setattr(module, "evaluate", measure)
    found = train(noise(), epochs=50, patience=3, validation=0.2)
    assert len(measured) == 5, "an equal loss and one that is not finite are no improvement"
    assert same(found, measured[1])
    assert not same(found, measured[4])


def test_held_out_images_are_not_trained_on_and_decide_when_to_end() -> None:
    data = noise()
    stopped = train(data, epochs=60, patience=2, validation=0.5)
    assert same(stopped, train(data, epochs=60, patience=2, validation=0.5))
    assert not same(stopped, train(data, epochs=60))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    images = data.images.clone()
    images[order[:20]] = 0
    blank = Images(images, data.labels)
    one, other = (train(each, epochs=1, patience=5, validation=0.5) for each in (data, blank))
    assert same(one, other), "the first epoch sees none of them"


def test_a_silo_too_small_to_hold_out_an_image_trains_for_all_epochs() -> None:
    data = noise(4)
    assert same(train(data, epochs=4, patience=1, validation=0.1), train(data, epochs=4))


def test_a_stop_without_a_finite_epoch_leaves_the_model_as_it_is() -> None:
    model = build_model("mlp", Shape(2, 1, 8), seed=1)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    stop = EarlyStop(model, noise(), 1, Compute())
    assert stop()
    assert model.training
    stop.restore()
    assert bool(torch.isnan(next(model.parameters())).all())


@pytest.mark.parametrize(
    "changed",
    [
        {"optimizer": "adam"},
        {"optimizer": "adamw"},
        {"warmup": 0.5},
        {"schedule": "linear"},
        {"clip_norm": 0.01},
        {"weight_decay": 0.1},
        {"label_smoothing": 0.3},
        {"class_weights": "balanced"},
        {"augment": "flip-crop"},
    ],
)
def test_settings_reach_training(changed: dict[str, Any]) -> None:
    data = Images(noise().images, (torch.arange(40) % 5 == 0).long())
    assert not same(train(data, epochs=2, **changed), train(data, epochs=2))
