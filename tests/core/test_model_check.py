"""What fails late is refused early: models that cannot predict, learn, or be exchanged."""

from __future__ import annotations

import pytest
import torch

from fedkd.errors import UserError
from fedkd.models.build import Shape, build_model
from fedkd.models.check import check_model, find_training_problem
from fedkd.models.state import copy_state, is_finite

SHAPE = Shape(4, 1, 8)

MODULE = """
import torch
from torch import nn
from torch.nn import functional


class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.body, self.head = nn.Linear(64, 16), nn.Linear(16, classes)

    def logits(self, x):
        return self.head(self.body(x.flatten(1)).relu())

    def forward(self, x):
        return self.logits(x)


def make(change=None, forward=None):
    def build(num_classes, in_channels, image_size):
        class Own(Net):
            pass
        if forward:
            Own.forward = forward
        net = Own(num_classes)
        return (change(net) or net) if change else net
    return build


def once_trained(make_output):
    def forward(self, x):
        z = self.logits(x)
        return make_output(z) if self.training else z
    return forward


plain = make()
aux = make(forward=once_trained(lambda z: (z, z)))
dictionary = make(forward=once_trained(lambda z: {"logits": z}))
always_dictionary = make(forward=lambda self, x: {"logits": self.logits(x)})
width = make(forward=once_trained(lambda z: z[:, :2]))
raises = make(forward=once_trained(lambda z: 1 / 0))
detached = make(forward=once_trained(lambda z: z.detach()))
whole = make(forward=lambda self, x: self.logits(x).argmax(1, keepdim=True).expand(-1, 4))
squeezed = make(forward=lambda self, x: self.logits(x).squeeze())


def batch_norm(num_classes, in_channels, image_size):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, num_classes)
    )


def lazy(num_classes, in_channels, image_size):
    return nn.Sequential(
        nn.Flatten(), nn.LazyLinear(16), nn.LazyBatchNorm1d(), nn.LazyLinear(num_classes)
    )


def never_reached(net):
    net.unused = nn.LazyLinear(3)


out_of_reach = make(never_reached)
frozen = make(lambda net: net.requires_grad_(False))
head_only = make(lambda net: net.body.requires_grad_(False) and None)


def buffer(name, value):
    return make(lambda net: net.register_buffer(name, value))


complex_buffer = buffer("turn", torch.ones(3, dtype=torch.complex64))
brain_buffer = buffer("scale", torch.ones(3, dtype=torch.bfloat16))
sparse_buffer = buffer("graph", torch.eye(3).to_sparse())
meta_buffer = buffer("scale", torch.ones(3, device="meta"))
masked = buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
unsaved = make(lambda net: net.register_buffer("t", torch.ones(1, dtype=torch.cfloat), False))


def with_extra(value):
    def change(net):
        type(net).get_extra_state = lambda self: value
        type(net).set_extra_state = lambda self, state: None
    return make(change)


extra = with_extra({"format": 2})
extra_tensor = with_extra(torch.tensor([2]))


def grows(self, x):
    if self.training:
        self.seen = nn.Parameter(torch.zeros(1))
    return self.logits(x)


growing = make(forward=grows)


class Tied(Net):
    def __init__(self):
        super().__init__()
        self.same = self.body


def tied(num_classes, in_channels, image_size):
    return Tied()
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("models")
    (folder / "checked_models.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield "checked_models:{}".format


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("aux", r"gives tuple for 2 examples .*, in training mode"),
        ("dictionary", r"gives dict for 2 examples .*, in training mode"),
        ("always_dictionary", r"gives dict for 2 examples where logits \(2, 4\) are expected"),
        ("width", r"gives \(2, 2\) .*, in training mode"),
        ("raises", "cannot be trained on a batch of 2: ZeroDivisionError"),
        ("detached", "cannot be trained on a batch of 2: RuntimeError"),
        ("whole", "gives torch.int64 where floating-point logits are expected"),
        ("squeezed", r"gives \(4,\) for 1 examples where logits \(1, 4\) are expected"),
        ("frozen", "has no weight that can be trained"),
        ("complex_buffer", "'turn' is torch.complex64"),
        ("brain_buffer", "'scale' is torch.bfloat16"),
        ("sparse_buffer", "'graph' is torch.float32, torch.sparse_coo"),
        ("extra", "'_extra_state' is a dict, not a tensor; let get_extra_state return a tensor"),
        ("meta_buffer", "'scale' is torch.float32, torch.strided, on meta"),
        ("growing", "changes the names or shapes of its state"),
        ("out_of_reach", "lazy layers that no forward pass reaches"),
    ],
)
def test_what_would_fail_in_a_run_is_refused(own, name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        check_model(own(name), SHAPE)
    assert str(caught.value).startswith(f"model.arch: {own(name)} ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["plain", "batch_norm", "lazy", "head_only", "masked", "unsaved", "extra_tensor", "tied"],
)
def test_what_can_be_trained_and_exchanged_passes(own, name: str) -> None:
    check_model(own(name), SHAPE)


@pytest.mark.parametrize("name", ["aux", "dictionary", "frozen", "raises"])
def test_a_teacher_need_not_be_trained(own, name: str) -> None:
    check_model(own(name), SHAPE, trained=False)


def test_batch_normalisation_cannot_be_trained_on_a_single_image(own) -> None:
    problem = find_training_problem(own("batch_norm"), SHAPE, 1)
    assert problem.startswith("cannot be trained on a batch of 1: ValueError: Expected more than 1")
    assert find_training_problem(own("batch_norm"), SHAPE, 2) == ""
    assert find_training_problem(own("plain"), SHAPE, 1) == ""
    assert "batch of 1" in find_training_problem("torchvision:resnet18", Shape(4, 1, 16), 1)


def test_lazy_layers_are_built_and_seeded(own) -> None:
    first, second, other = (copy_state(build_model(own("lazy"), SHAPE, seed=s)) for s in (1, 1, 2))
    assert first["1.weight"].shape == (16, 64)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["1.weight"], other["1.weight"])
    assert torch.equal(first["2.running_mean"], torch.zeros(16))


def test_checking_draws_nothing_from_the_global_generator(own) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    check_model(own("lazy"), SHAPE)
    assert torch.equal(torch.get_rng_state(), before)


def test_googlenet_is_built_without_its_auxiliary_outputs() -> None:
    assert find_training_problem("torchvision:googlenet", Shape(4, 1, 32), 2) == ""


def test_infinite_numbers_may_stay_where_an_untrained_model_has_them(own) -> None:
    like = copy_state(build_model(own("masked"), SHAPE, seed=0))
    state = copy_state(build_model(own("masked"), SHAPE, seed=1))
    assert not is_finite(state)
    assert is_finite(state, like)
    for key, value in (("head.bias", torch.inf), ("mask", torch.inf), ("mask", torch.nan)):
        changed = {**state, key: state[key].clone()}
        changed[key].view(-1)[1 if key == "mask" else 0] = value
        assert not is_finite(changed, like), key
    like["mask"][0, 1] = state["mask"][0, 1] = torch.nan
    assert is_finite(state, like)
