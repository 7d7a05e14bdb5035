"""The training loop and the metrics."""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, log_loss
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from fedkd.data.images import Images, as_float
from fedkd.models import patch_features as patch_features
from fedkd.models.build import Shape, build_model
from fedkd.models.state import copy_state, is_finite
from fedkd.training import loop as training
from fedkd.training.compute import Compute, batch_bounds, intra_op_threads
from fedkd.training.evaluate import evaluate, metrics, predict
from fedkd.training.loop import fit, train_supervised
from fedkd.training.optimizer import OptimizerSettings, Stepper, learning_rates


def make_images(size: int = 50, classes: int = 4, seed: int = 0) -> Images:
    """Return images whose brightest quadrant is their class."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 80, (size, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(size) % classes
    for index, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        images[index, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 150
    return Images(images, labels)


def train(
    *, seed: int = 0, lr: float = 0.05, epochs: int = 5, momentum: float = 0.9
) -> tuple[float, Tensor, int]:
    """Train a small model; return the loss, its weights and the number of epochs done."""
    model = build_model("mlp", Shape(4, 1, 8), seed=1)
    done: list[None] = []
    loss = train_supervised(
        model,
        make_images(),
        optimizer=OptimizerSettings(epochs, 7, lr, momentum),
        generator=torch.Generator().manual_seed(seed),
        compute=Compute(),
        on_epoch=lambda: done.append(None),
    )
    return loss, torch.cat([p.detach().flatten() for p in model.parameters()]), len(done)


@given(st.integers(1, 300), st.integers(1, 80))
def test_batches_cover_in_order_and_none_holds_one_sample(size: int, batch_size: int) -> None:
    bounds = batch_bounds(size, batch_size)
    assert [i for start, end in bounds for i in range(start, end)] == list(range(size))
    assert max(end - start for start, end in bounds) <= batch_size + 1
    if size > 1 and batch_size > 1:
        assert min(end - start for start, end in bounds) > 1


@pytest.mark.parametrize(
    ("size", "batch_size", "expected"),
    [
        (1, 4, [(0, 1)]),
        (4, 4, [(0, 4)]),
        (5, 4, [(0, 5)]),
        (6, 4, [(0, 4), (4, 6)]),
        (9, 4, [(0, 4), (4, 9)]),
    ],
)
def test_a_lone_last_sample_joins_the_batch_before(
    size: int, batch_size: int, expected: list[tuple[int, int]]
) -> None:
    assert batch_bounds(size, batch_size) == expected


@given(st.integers(0, 10_000), st.integers(2, 60), st.integers(2, 7))
def test_metrics_agree_with_scikit_learn(seed: int, size: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, classes, generator=generator) * 3
    labels = torch.randint(classes, (size,), generator=generator)
    found = metrics(logits, labels)
    predicted = logits.argmax(1)
    assert found.accuracy == pytest.approx(accuracy_score(labels, predicted), abs=1e-12)
    assert found.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-12)
    expected = log_loss(labels, logits.double().softmax(1), labels=list(range(classes)))
    assert found.loss == pytest.approx(expected, abs=1e-9)


def test_training_learns_and_evaluation_takes_uint8() -> None:
    model = build_model("mlp", Shape(4, 1, 8), seed=1)
    compute = Compute()
    before = evaluate(model, make_images(seed=5), compute=compute)
    loss = train_supervised(
        model,
        make_images(),
        optimizer=OptimizerSettings(20, 8, 0.05, 0.9),
        generator=torch.Generator().manual_seed(0),
        compute=compute,
    )
    after = evaluate(model, make_images(seed=5), compute=compute)
    assert before.accuracy < 0.6
    assert after.accuracy == 1.0
    assert loss < 0.1 < before.loss


def test_same_seed_same_bits_and_another_seed_others() -> None:
    first, second, other = train(seed=3), train(seed=3), train(seed=4)
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[1], other[1])


def test_training_stops_after_the_first_epoch_that_diverges() -> None:
    loss, weights, epochs = train(lr=1e8, epochs=50)
    assert not math.isfinite(loss)
    assert epochs < 50
    assert not bool(torch.isfinite(weights).all())


def test_loss_returned_is_the_mean_over_samples_of_the_last_epoch() -> None:
    """With a rate too small to move anything, it is the model's own loss on all samples."""
    data = make_images(size=23)
    model = build_model("mlp", Shape(4, 1, 8), seed=1)
    expected = evaluate(model, data, compute=Compute()).loss
    loss = train_supervised(
        model,
        data,
        optimizer=OptimizerSettings(2, 5, 1e-12),
        generator=torch.Generator().manual_seed(0),
        compute=Compute(),
    )
    assert loss == pytest.approx(expected, rel=1e-5)


def test_one_step_is_that_of_sgd_with_weight_decay() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    data = make_images(size=8)
    start = model[1].weight.detach().clone()
    logits = model(as_float(data.images))
    (gradient,) = torch.autograd.grad(
        nn.functional.cross_entropy(logits, data.labels), [model[1].weight]
    )
    train_supervised(
        model,
        data,
        optimizer=OptimizerSettings(1, 8, 0.5, weight_decay=0.1),
        generator=torch.Generator().manual_seed(0),
        compute=Compute(),
    )
    torch.testing.assert_close(
        model[1].weight.detach(), start - 0.5 * (gradient + 0.1 * start), atol=1e-6, rtol=1e-5
    )


def test_predictions_do_not_depend_on_the_batch_size_and_leave_dropout_out() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Dropout(0.5))
    images = make_images(size=11).images
    found = predict(model.train(), images, compute=Compute(), batch_size=4)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, predict(model, images, compute=Compute()))


@pytest.mark.parametrize("arch", ["cnn", "mlp", "resnet8"])
def test_predictions_do_not_depend_on_the_number_of_threads(arch: str) -> None:
    model, images = build_model(arch, Shape(4, 1, 8), seed=1), make_images(size=700).images
    found = []
    for threads in (1, 2, 3):
        with intra_op_threads(threads):
            found.append(predict(model, images, compute=Compute()))
            assert torch.get_num_threads() == threads
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_floats_and_pixels_train_alike() -> None:
    data, states = make_images(size=30), []
    for images in (data.images, as_float(data.images)):
        model = build_model("cnn", Shape(4, 1, 8), seed=1)
        fit(
            model,
            images,
            (data.labels,),
            lambda logits, rest: nn.functional.cross_entropy(logits, rest[0]),
            optimizer=OptimizerSettings(2, 8, 0.1, 0.9),
            generator=torch.Generator().manual_seed(0),
            compute=Compute(),
        )
        states.append(copy_state(model))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_bf16_runs_the_forward_pass_in_bf16_and_gives_fp32_logits() -> None:
    model = build_model("mlp", Shape(4, 1, 8), seed=1)
    images = make_images(size=6).images
    half = predict(model, images, compute=Compute(precision="bf16"))
    full = predict(model, images, compute=Compute())
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    assert torch.equal(half, half.bfloat16().float())


class Restless(nn.Module):
    """Draws in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1)) + torch.rand(4)


def test_predictions_of_a_model_that_always_draws_are_repeatable() -> None:
    model, images = Restless(), make_images(size=6).images
    first, second = (predict(model, images, compute=Compute()) for _ in "ab")
    assert torch.equal(first, second)


def test_threads_are_put_back_even_after_an_error() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        with intra_op_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert torch.get_num_threads() == before


def test_finiteness_looks_at_every_tensor() -> None:
    state = {"a": torch.zeros(3), "steps": torch.tensor(4)}
    assert is_finite(state)
    for bad in (math.nan, math.inf, -math.inf):
        assert not is_finite({**state, "b": torch.tensor([0.0, bad])})


SCHEDULES = {
    "constant": ({}, [0.4, 0.4, 0.4, 0.4]),
    "cosine": (
        {"schedule": "cosine"},
        [0.2 * (1 + math.cos(math.pi * step / 4)) for step in range(4)],
    ),
    "linear": ({"schedule": "linear"}, [0.4, 0.3, 0.2, 0.1]),
    "warm-up": ({"warmup": 0.75}, [0.1, 0.2, 0.3, 0.4]),
    "warm-up and cosine": (
        {"warmup": 0.5, "schedule": "cosine"},
        [0.4 / 3, 0.8 / 3, 0.4, 0.2],
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_learning_rate_follows_warm_up_and_schedule(name: str) -> None:
    keys, expected = SCHEDULES[name]
    settings = OptimizerSettings(1, 1, 0.4, **keys)
    assert list(learning_rates(settings, 4)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_three_steps_are_those_of_pytorch(name: str) -> None:
    """With a gradient clipped to norm 1: SGD and the Adams differ in what becomes of it."""

    def step(take: Any, weight: torch.nn.Parameter) -> None:
        for scale in (3.0, -1.0, 20.0):
            weight.grad = torch.full((4,), scale)
            take(weight)

    def clip(weight: torch.nn.Parameter) -> None:
        assert weight.grad is not None
        weight.grad /= weight.grad.norm().clamp_min(1.0)

    ours, theirs = (torch.nn.Parameter(torch.arange(4.0)) for _ in "ab")
    settings = OptimizerSettings(1, 1, 0.1, 0.8, weight_decay=0.05, optimizer=name, clip_norm=1.0)
    stepper = Stepper(torch.nn.ParameterList([ours]), settings, 3)
    step(lambda _: stepper.step(), ours)
    reference: torch.optim.Optimizer
    if name == "sgd":
        reference = torch.optim.SGD([theirs], lr=0.1, momentum=0.8, weight_decay=0.05)
    else:
        kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
        reference = kind([theirs], lr=0.1, betas=(0.8, 0.999), weight_decay=0.05)

    def take(weight: torch.nn.Parameter) -> None:
        clip(weight)
        reference.step()

    step(take, theirs)
    torch.testing.assert_close(ours.detach(), theirs.detach())
    assert not torch.equal(ours.detach(), torch.arange(4.0))


class TwoBranches(torch.nn.Module):
    """An embedding and two layers of which a batch may use only one."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(5, 3, sparse=sparse)
        self.first, self.second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)

    def forward(self, words: Tensor, *, both: bool) -> Tensor:
        found = self.words(words)
        scores = self.first(found) + self.second(found) if both else self.first(found)
        return cast(Tensor, scores)


@pytest.mark.parametrize(
    ("momentum", "decay", "schedule", "sparse"),
    [
        (0.0, 0.0, "constant", False),
        (0.9, 0.0, "cosine", False),
        (0.9, 0.01, "linear", False),
        (0.9, 0.0, "constant", True),
    ],
)
def test_sgd_has_the_bits_of_pytorch(
    momentum: float, decay: float, schedule: str, *, sparse: bool
) -> None:
    """Also for a layer that gets its first gradient late, and for sparse gradients."""
    settings = OptimizerSettings(1, 1, 0.3, momentum, weight_decay=decay, schedule=schedule)
    torch.manual_seed(0)
    ours = TwoBranches(sparse=sparse)
    theirs = copy.deepcopy(ours)
    stepper = Stepper(ours, settings, 4)
    reference = torch.optim.SGD(
        theirs.parameters(), lr=0.3, momentum=momentum, weight_decay=decay, foreach=True
    )
    rates: LRScheduler
    if schedule == "cosine":
        rates = CosineAnnealingLR(reference, 4)
    else:
        rates = LambdaLR(reference, lambda step: 1 - step / 4 if schedule == "linear" else 1.0)
    for number in range(4):
        for model, optimizer in ((ours, stepper), (theirs, reference)):
            optimizer.zero_grad()
            scores = model(torch.tensor([number, 1, 4]), both=number in {1, 3})
            scores.square().mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        rates.step()
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("epochs", [1, 3])
def test_fixed_filters_see_each_image_once_and_training_is_the_same(
    epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against training in which every batch goes through the whole model."""
    looked: list[int] = []
    see = patch_features.see

    def count(images: Tensor, kernels: Tensor, offset: Tensor) -> Tensor:
        looked.append(len(images))
        return see(images, kernels, offset)

    monkeypatch.setattr(patch_features, "see", count)
    training._fixed_features.cache.clear()

    def weights(seed: int = 1) -> tuple[Tensor, Tensor]:
        model = build_model("patch-features", Shape(4, 1, 8), seed=seed)
        train_supervised(
            model,
            make_images(),
            optimizer=OptimizerSettings(epochs, 7, 0.01, 0.9),
            generator=torch.Generator().manual_seed(0),
            compute=Compute(),
        )
        state = model.state_dict()
        return state["0.kernels"], state["1.weight"]

    kernels, once = weights()
    assert sum(looked) == 50 + 1, "and one image to know how wide features are"
    looked.clear()
    kept, again = weights()
    assert sum(looked) == 1, "the next round sees what the last one saw"
    assert torch.equal(once, again)
    assert torch.equal(kernels, kept)
    weights(seed=2)
    assert sum(looked) == 1 + 50 + 1, "other filters see something else"
    monkeypatch.setattr(training, "MAX_FEATURE_BYTES", 0)
    looked.clear()
    same, each_time = weights()
    assert sum(looked) == 50 * epochs + 1
    torch.testing.assert_close(once, each_time, atol=1e-5, rtol=1e-4)
    begun = build_model("patch-features", Shape(4, 1, 8), seed=1).state_dict()
    assert torch.equal(kernels, same)
    assert torch.equal(kernels, begun["0.kernels"]), "filters are not trained"
    assert not torch.equal(once, begun["1.weight"])
