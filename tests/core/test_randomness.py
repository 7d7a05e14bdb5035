"""Random layers draw from the generator they are given, whatever other threads do."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from fedkd.models.build import Shape, build_model
from fedkd.registry import ARCHITECTURES
from fedkd.training.compute import Compute, intra_op_threads
from fedkd.training.evaluate import _one_each, predict
from fedkd.training.loop import fit
from fedkd.training.optimizer import OptimizerSettings
from fedkd.util.random_ops import DrawFrom, _device_of, draws_at_random


class Noisy(nn.Module):
    """Draws in three ways: a layer, a functional, and ``torch.rand``, which takes no generator."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 24)
        self.drop = nn.Dropout(0.4)
        self.last = nn.Linear(24, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.drop(functional.relu(self.first(images.flatten(1))))
        hidden = functional.dropout(hidden, 0.2, training=self.training)
        return self.last(hidden * torch.rand(24) + 0.1 * torch.rand_like(hidden))


def train(seed: int, start: threading.Barrier | None = None) -> Tensor:
    """Train a noisy model from fixed weights and return all its weights."""
    fixed = torch.Generator().manual_seed(0)
    with DrawFrom(fixed):
        model = Noisy()
    images = torch.rand(60, 1, 4, 4, generator=fixed)
    labels = torch.arange(60) % 3
    if start is not None:
        start.wait()
    fit(
        model,
        images,
        (labels,),
        lambda logits, rest: functional.cross_entropy(logits, rest[0]),
        optimizer=OptimizerSettings(epochs=3, batch_size=8, lr=0.1),
        generator=torch.Generator().manual_seed(seed),
        compute=Compute(),
    )
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_parallel_threads_give_what_each_gives_alone() -> None:
    alone = [train(seed) for seed in range(4)]
    for _ in range(2):
        start = threading.Barrier(4)
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(train, range(4), [start] * 4))
        for together, expected in zip(found, alone, strict=True):
            assert torch.equal(together, expected)
    assert not torch.equal(alone[0], alone[1]), "the noise must matter"


def test_training_ignores_and_keeps_the_global_generator() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(train(0), first)


DRAWS = {
    "rand": lambda: torch.rand(5),
    "randn": lambda: torch.randn(5),
    "randperm": lambda: torch.randperm(50),
    "randint": lambda: torch.randint(1000, (5,)),
    "rand_like": lambda: torch.rand_like(torch.zeros(5)),
    "bernoulli": lambda: torch.bernoulli(torch.full((40,), 0.5)),
    "multinomial": lambda: torch.multinomial(torch.ones(50), 5),
    "normal": lambda: torch.normal(torch.zeros(5), 1.0),
    "uniform_": lambda: torch.empty(5).uniform_(),
    "dropout": lambda: functional.dropout(torch.ones(40), 0.5),
    "kaiming": lambda: nn.init.kaiming_normal_(torch.empty(4, 4)),
    "linear": lambda: nn.Linear(4, 4).weight.detach(),
    "rrelu": lambda: functional.rrelu(-torch.ones(9), training=True),
}


@pytest.mark.parametrize("name", DRAWS)
def test_every_way_to_draw_follows_the_generator(name: str) -> None:
    def draw(seed: int, global_seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        with DrawFrom(torch.Generator().manual_seed(seed)):
            drawn = DRAWS[name]()
        assert torch.equal(torch.get_rng_state(), before)
        return drawn

    assert torch.equal(draw(3, 10), draw(3, 11))
    assert not torch.equal(draw(3, 10), draw(4, 10))


def test_a_generator_given_by_the_caller_is_respected() -> None:
    expected = torch.rand(5, generator=torch.Generator().manual_seed(9))
    with DrawFrom(torch.Generator().manual_seed(1)):
        found = torch.rand(5, generator=torch.Generator().manual_seed(9))
    assert torch.equal(found, expected)


def test_a_gpu_has_a_generator_of_its_own_that_is_seeded_from_the_one_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is no GPU here; what stands for its generators counts how they are seeded."""
    made = []

    class OnGpu:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def manual_seed(self, seed: int) -> OnGpu:
            made.append((str(self.device), seed))
            return self

    def draw() -> list[torch.Generator]:
        mode = DrawFrom(torch.Generator().manual_seed(5))
        devices = map(torch.device, ("cuda:0", "cpu", "cuda:1", "cuda:0", "meta"))
        with monkeypatch.context() as patch:
            patch.setattr(torch, "Generator", OnGpu)
            return [mode._generator_on(device) for device in devices]

    first, own, second, again, meta = draw()
    assert first is again
    assert own is meta
    assert (str(first.device), str(second.device)) == ("cuda:0", "cuda:1")
    seeds = list(made)
    assert len({seed for _, seed in seeds}) == 2
    draw()
    assert made == seeds * 2
    assert _device_of((1, torch.zeros(1, device="meta")), {}) == torch.device("meta")
    assert _device_of((), {"device": "cuda:1"}) == torch.device("cuda:1")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_built_in_models_draw_nothing(arch: str) -> None:
    assert not draws_at_random(build_model(arch, Shape(10, 1, 8), seed=0))


class SilentLinear(nn.Linear):
    """A subclass, whose forward could do anything."""


class SilentNet(nn.Module):
    """A user's module made of plain layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


@pytest.mark.parametrize(
    "model",
    [
        nn.Dropout(),
        nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)),
        nn.Sequential(nn.Sequential(nn.Identity(), nn.RReLU())),
        nn.TransformerEncoderLayer(4, 2),
        Noisy(),
        SilentNet(),
        SilentLinear(2, 2),
        nn.Sequential(SilentLinear(2, 2)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_what_may_draw_is_known(model: nn.Module) -> None:
    assert draws_at_random(model)


@pytest.mark.parametrize("name", ["resnet18", "regnet_y_400mf", "shufflenet_v2_x0_5"])
def test_models_of_torchvision_that_count_as_plain_call_nothing_that_draws(name: str) -> None:
    model = torchvision.models.get_model(name)
    assert not draws_at_random(model)
    state = torch.get_rng_state()
    model(torch.zeros(2, 3, 32, 32))
    assert torch.equal(torch.get_rng_state(), state)
    assert {*dict(model.named_buffers())} <= {*model.state_dict()}


def test_plain_layers_draw_nothing() -> None:
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.AvgPool2d(2))
    assert not draws_at_random(nn.Sequential(plain, nn.Flatten(), nn.Linear(2, 2)))


class Remembering(nn.Module):
    """Keeps its features on itself between two layers, as some models do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(16, 512), nn.Linear(512, 3)
        self.features = torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        self.features = self.body(images.flatten(1)).relu()
        return self.head(self.features)


class Locked(Remembering):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.parametrize("make", [Noisy, Remembering, Locked])
def test_predictions_do_not_depend_on_the_number_of_threads(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    images = torch.randint(0, 256, (1500, 1, 4, 4), dtype=torch.uint8)
    logits = []
    for threads in (1, 4, 4):
        with intra_op_threads(threads):
            logits.append(predict(model, images, compute=Compute()))
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    assert model.training is False


def test_a_model_that_may_keep_something_is_not_shared_by_threads() -> None:
    assert len({id(each) for each in _one_each(Remembering(), 4, shared=False)}) == 4
    assert len(_one_each(Locked(), 4, shared=False)) == 1
