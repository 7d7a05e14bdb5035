"""The local losses against numbers worked out by hand, and how they change training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn import functional

import fedkd.training.local
from fedkd.config import Rounds
from fedkd.data.images import Images, as_float
from fedkd.models.build import Shape, build_model
from fedkd.registry import LOCAL_LOSSES
from fedkd.training.compute import Compute
from fedkd.training.evaluate import evaluate, predict
from fedkd.training.local import (
    LocalTask,
    Objective,
    log_prior,
    not_true_loss,
    squared_distance,
    train_locally,
)
from fedkd.training.loop import train_supervised
from fedkd.training.losses import balanced_weights
from fedkd.training.optimizer import OptimizerSettings

NAMES = list(LOCAL_LOSSES)
CLASSES = 4


def images_of(*counts: int) -> Images:
    """Return images whose brightest quadrant is their class, so many of each class."""
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 80, (len(labels), 1, 8, 8), generator=generator, dtype=torch.uint8)
    for index, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        images[index, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 150
    return Images(images, labels)


UNEVEN = images_of(12, 5, 1, 0)


def task_of(name: str, data: Images = UNEVEN, model: nn.Module | None = None, **rounds: Any) -> Any:
    settings = Rounds(**{"local_loss": name, "lr": 0.05, "batch_size": 5, **rounds})
    model = model or build_model("mlp", Shape(CLASSES, 1, 8), seed=1)
    return LocalTask(model, data, CLASSES, settings, Compute())


def objective(name: str, data: Images = UNEVEN, **given: Any) -> Objective:
    made: Objective = LOCAL_LOSSES.load(name)(task_of(name, data, **given))
    return made


def train(name: str, data: Images = UNEVEN, **rounds: Any) -> tuple[float, dict[str, Tensor]]:
    task = task_of(name, data, **rounds)
    loss = train_locally(task, generator=torch.Generator().manual_seed(3))
    return loss, task.model.state_dict()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[key], second[key]) for key in first)


# Values by hand.


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[math.log(3), 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    found = objective("cross-entropy").loss(logits, [torch.tensor([0, 2])])
    assert float(found) == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("tau", "expected"),
    [
        # Equal logits, priors 4, 2, 2 and (for none) 1 in 9: -log of the share of prior_y^tau.
        (1.0, (math.log(9 / 4) + math.log(9 / 2)) / 2),
        (2.0, (math.log(25 / 16) + math.log(25 / 4)) / 2),
        (0.5, math.log(3 + 2 * math.sqrt(2)) - (math.log(2) + math.log(2) / 2) / 2),
    ],
)
def test_logit_adjusted_by_hand(tau: float, expected: float) -> None:
    made = objective("logit-adjusted", images_of(4, 2, 2, 0), tau=tau)
    found = made.loss(torch.zeros(2, 4), [torch.tensor([0, 1])])
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_an_absent_class_counts_as_one_image() -> None:
    shares = [3 / 5, 1 / 5, 1 / 5]
    expected = [math.log(share) for share in shares]
    assert log_prior(torch.tensor([3, 0, 1])).tolist() == pytest.approx(expected)
    logits = torch.zeros(1, CLASSES, requires_grad=True)
    made = objective("logit-adjusted", images_of(8, 0, 4, 0))
    made.loss(logits, [torch.tensor([0])]).backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([8 / 14 - 1, 1 / 14, 4 / 14, 1 / 14])


def test_with_even_classes_logit_adjustment_changes_nothing() -> None:
    logits = torch.randn(5, CLASSES, generator=torch.Generator().manual_seed(0))
    batch = [torch.tensor([0, 1, 2, 3, 0])]
    adjusted = objective("logit-adjusted", images_of(3, 3, 3, 3)).loss(logits, batch)
    torch.testing.assert_close(adjusted, functional.cross_entropy(logits, batch[0]))


def test_a_silo_of_one_class_still_learns_but_pushes_less() -> None:
    data, start = images_of(0, 8, 0, 0), build_model("mlp", Shape(CLASSES, 1, 8), seed=1)
    found = objective("logit-adjusted", data).loss(torch.zeros(1, CLASSES), [torch.tensor([1])])
    assert float(found) == pytest.approx(math.log(11 / 8), rel=1e-6)
    moved = [distance(train(name, data)[1]) for name in ("cross-entropy", "logit-adjusted")]
    assert 0 < moved[1] < moved[0] / 2
    assert not same(train("logit-adjusted", data)[1], start.state_dict())


def test_proximal_by_hand() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    made = objective("proximal", model=model, mu=0.5)
    logits, batch = torch.zeros(1, CLASSES), [torch.tensor([1])]
    assert float(made.loss(logits, batch).detach()) == pytest.approx(math.log(4), rel=1e-6)
    with torch.no_grad():
        model[1].weight[0, 0] += 3.0
        model[1].bias[2] -= 4.0
    loss = made.loss(logits, batch)
    assert float(loss.detach()) == pytest.approx(math.log(4) + 0.25 * 25, rel=1e-5)
    loss.backward()
    weight, bias = model[1].weight.grad, model[1].bias.grad
    assert float(weight[0, 0]) == pytest.approx(0.5 * 3.0, rel=1e-5)
    assert bias.tolist() == pytest.approx([0.0, 0.0, -0.5 * 4.0, 0.0], rel=1e-5)
    assert float(weight.abs().sum()) == pytest.approx(1.5, rel=1e-5)


def test_squared_distance_sums_over_all_tensors() -> None:
    one = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])]
    other = [torch.tensor([0.0, 0.0]), torch.tensor([[1.0]])]
    assert float(squared_distance(one, other)) == 9.0


def test_not_true_by_hand() -> None:
    """Without the label, old is (3/4, 1/4) and new (1/2, 1/2), whatever the label's logit."""
    old = torch.tensor([[math.log(3), 50.0, 0.0]])
    new = torch.tensor([[2.0, -9.0, 2.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    labels = torch.tensor([1])
    assert float(not_true_loss(new, old, labels, temperature=1.0)) == pytest.approx(expected)
    scaled = not_true_loss(3 * new, 3 * old, labels, temperature=3.0)
    assert float(scaled) == pytest.approx(9 * expected, rel=1e-5)
    made = objective("not-true", beta=0.4)
    loss = made.loss(new, [labels, old])
    cross_entropy = math.log(2 * math.exp(2) + math.exp(-9)) + 9
    assert float(loss) == pytest.approx(cross_entropy + 0.4 * expected, rel=1e-5)


def test_not_true_leaves_the_labels_logit_alone() -> None:
    new = torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(1), requires_grad=True)
    old = torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(6) % CLASSES
    not_true_loss(new, old, labels, temperature=2.0).backward()
    assert new.grad is not None
    true = functional.one_hot(labels, CLASSES).bool()
    assert bool((new.grad[true] == 0).all())
    assert bool((new.grad[~true] != 0).all())


@given(st.integers(0, 10_000), st.floats(0.5, 5))
def test_not_true_is_zero_on_equal_predictions_and_positive_elsewhere(
    seed: int, temperature: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    old, other = (torch.randn(5, CLASSES, generator=generator) * 3 for _ in "ab")
    labels = torch.arange(5) % CLASSES
    assert float(not_true_loss(old, old, labels, temperature=temperature)) < 1e-5
    assert float(not_true_loss(other, old, labels, temperature=temperature)) > 1e-3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("magnitude", [1e2, 1e4])
def test_huge_logits_give_finite_values_and_gradients(name: str, magnitude: float) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = (torch.randn(6, CLASSES, generator=generator).sign() * magnitude).requires_grad_()
    old = torch.randn(6, CLASSES, generator=generator).sign() * magnitude
    made = objective(name)
    loss = made.loss(logits, [torch.tensor([0, 1, 2, 0, 1, 2]), *([old] if made.extras else [])])
    loss.backward()
    assert math.isfinite(loss.item())
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


@pytest.mark.parametrize("name", NAMES)
def test_two_classes_and_a_single_image_suffice(name: str) -> None:
    model = build_model("mlp", Shape(2, 1, 8), seed=1)
    data = images_of(0, 1)
    settings = Rounds(local_loss=name, lr=0.05)
    task = LocalTask(model, data, 2, settings, Compute())
    assert math.isfinite(train_locally(task, generator=torch.Generator().manual_seed(0)))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values())


# What they do to training.


def test_cross_entropy_is_supervised_training_to_the_last_bit() -> None:
    model = build_model("mlp", Shape(CLASSES, 1, 8), seed=1)
    expected = train_supervised(
        model,
        UNEVEN,
        optimizer=OptimizerSettings(3, 5, 0.05, 0.8, 0.01),
        generator=torch.Generator().manual_seed(3),
        compute=Compute(),
    )
    loss, state = train("cross-entropy", local_epochs=3, momentum=0.8, weight_decay=0.01)
    assert loss == expected
    assert same(state, model.state_dict())


@pytest.mark.parametrize("name", NAMES[1:])
def test_every_other_loss_changes_training_and_repeats(name: str) -> None:
    plain = train("cross-entropy", local_epochs=2)[1]
    found = train(name, local_epochs=2, mu=1.0)
    again = train(name, local_epochs=2, mu=1.0)
    assert found[0] == again[0]
    assert same(found[1], again[1])
    assert not same(found[1], plain)


@pytest.mark.parametrize(("name", "off"), [("proximal", {"mu": 0.0}), ("not-true", {"beta": 0.0})])
def test_a_weight_of_zero_is_plain_cross_entropy(name: str, off: dict[str, float]) -> None:
    assert same(train(name, **off)[1], train("cross-entropy")[1])


@pytest.mark.parametrize(
    ("name", "key"),
    [("proximal", "mu"), ("not-true", "beta"), ("not-true", "tau"), ("logit-adjusted", "tau")],
)
def test_settings_reach_the_loss(name: str, key: str) -> None:
    assert not same(train(name, **{key: 0.5})[1], train(name, **{key: 2.0})[1])


@pytest.mark.parametrize("name", NAMES)
def test_label_smoothing_and_class_weights_by_hand(name: str) -> None:
    """At equal logits cross-entropy is log 4 for every label; the weights are 18 / (3 n_c)."""
    logits = torch.tensor([[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    batch = [torch.tensor([0, 2]), torch.zeros(2, CLASSES)]
    plain, smooth = (
        objective(name, mu=0.0, beta=0.0, label_smoothing=share).loss(logits, batch).detach()
        for share in (0.0, 0.2)
    )
    shift = log_prior(torch.tensor([12, 5, 1, 0])) if name == "logit-adjusted" else 0.0
    log_probabilities = (logits + shift).log_softmax(1)
    chosen = log_probabilities[[0, 1], [0, 2]]
    assert float(plain) == pytest.approx(-float(chosen.mean()), rel=1e-6)
    expected = -float((0.8 * chosen + 0.2 * log_probabilities.mean(1)).mean())
    assert float(smooth) == pytest.approx(expected, rel=1e-6)
    if name == "logit-adjusted":
        return
    made = objective(name, mu=0.0, beta=0.0, class_weights="balanced")
    weighted = made.loss(logits, batch).detach()
    weights = torch.tensor([18 / 36, 18 / 3])
    assert float(weighted) == pytest.approx(-float((weights * chosen).sum() / 6.5), rel=1e-6)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = torch.tensor([0, 0, 0, 2, 2, 3])
    expected = compute_class_weight("balanced", classes=np.array([0, 2, 3]), y=labels.numpy())
    found = balanced_weights(labels, 5)
    assert found.tolist() == pytest.approx([expected[0], 0, expected[1], expected[2], 0])
    shares = functional.one_hot(labels, 5).float()
    assert torch.equal(balanced_weights(shares, 5), found)


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_learns(name: str) -> None:
    data = images_of(10, 10, 10, 10)
    task = task_of(name, data, local_epochs=20)
    assert evaluate(task.model, data, compute=Compute()).accuracy < 0.7
    train_locally(task, generator=torch.Generator().manual_seed(0))
    assert evaluate(task.model, data, compute=Compute()).accuracy == 1.0


def distance(state: dict[str, Tensor]) -> float:
    start = build_model("mlp", Shape(CLASSES, 1, 8), seed=1).state_dict()
    return float(squared_distance(list(state.values()), list(start.values())))


def test_the_proximal_term_keeps_the_model_near_the_received_one() -> None:
    found = [distance(train("proximal", mu=mu, local_epochs=5)[1]) for mu in (0.0, 1.0, 10.0)]
    assert found[0] > 2 * found[1] > 4 * found[2] > 0


def test_not_true_keeps_what_the_received_model_thought_of_absent_classes() -> None:
    """Class 3 is in no image of the silo; its ranks against other wrong classes are kept."""
    drift = []
    labels = UNEVEN.labels
    for beta in (0.0, 5.0):
        model = build_model("mlp", Shape(CLASSES, 1, 8), seed=1)
        old = predict(model, UNEVEN.images, compute=Compute())
        task = task_of("not-true", model=model, beta=beta, local_epochs=10)
        train_locally(task, generator=torch.Generator().manual_seed(0))
        new = predict(model, UNEVEN.images, compute=Compute())
        drift.append(float(not_true_loss(new, old, labels, temperature=1.0)))
    assert drift[1] < drift[0] / 5


def test_the_received_model_predicts_once_and_stays_with_its_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through shuffling and batches, every image meets its own old prediction."""
    calls, met = [], []
    real_predict, real_loss = predict, not_true_loss

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(args[1])
        return real_predict(*args, **kwargs)

    def watched(logits: Tensor, old: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
        met.append((labels, old))
        return real_loss(logits, old, labels, temperature=temperature)

    monkeypatch.setattr(fedkd.training.local, "predict", counted)
    monkeypatch.setattr(fedkd.training.local, "not_true_loss", watched)
    model = build_model("mlp", Shape(CLASSES, 1, 8), seed=1)
    expected = real_predict(model, UNEVEN.images, compute=Compute())
    train("not-true", local_epochs=3)
    assert len(calls) == 1
    assert torch.equal(calls[0].images, UNEVEN.images)
    seen = [
        (int(label), row) for labels, old in met for label, row in zip(labels, old, strict=True)
    ]
    assert len(seen) == 3 * len(UNEVEN)
    known = {tuple(row.tolist()): int(y) for row, y in zip(expected, UNEVEN.labels, strict=True)}
    assert len(known) == len(UNEVEN), "every image has a prediction of its own"
    assert all(known[tuple(row.tolist())] == label for label, row in seen)


def test_the_received_model_predicts_without_dropout_and_trains_with_it() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, CLASSES))
    made: Objective = LOCAL_LOSSES.load("not-true")(task_of("not-true", model=model))
    plain = nn.Sequential(nn.Flatten(), model[2])
    torch.testing.assert_close(made.extras[0], plain(as_float(UNEVEN.images)).detach())
    train_locally(task_of("not-true", model=model), generator=torch.Generator().manual_seed(0))
    assert model.training
