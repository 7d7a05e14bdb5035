"""Architectures: built in, torchvision's, and the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fedkd.errors import UserError
from fedkd.models.build import Shape, arch_fingerprint, build_model
from fedkd.models.check import check_model
from fedkd.registry import ARCHITECTURES, is_external

NETWORKS = [name for name in ARCHITECTURES if not is_external(name)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 28, 32])
@pytest.mark.parametrize("arch", NETWORKS)
def test_built_ins_map_images_to_logits(arch: str, side: int, channels: int) -> None:
    shape = Shape(7, channels, side)
    logits = build_model(arch, shape, seed=0)(torch.rand(2, channels, side, side))
    assert logits.shape == (2, 7)
    assert bool(torch.isfinite(logits).all())
    check_model(arch, shape)


@pytest.mark.parametrize("arch", NETWORKS)
def test_weights_depend_on_the_seed_alone(arch: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        model = build_model(arch, Shape(4, 1, 8), seed=seed)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = weights(5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(weights(5), first)
    assert not torch.equal(weights(6), first)


def activation_first(model: nn.Sequential) -> nn.Sequential:
    """Return the same layers, each pooling after the activation, as networks are mostly drawn."""
    layers = list(model)
    for index, layer in enumerate(model):
        if isinstance(layer, nn.MaxPool2d):
            layers[index : index + 2] = [model[index + 1], layer]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("arch", ["cnn", "lenet5"])
def test_pooling_before_the_activation_changes_no_bit(arch: str) -> None:
    model = build_model(arch, Shape(10, 1, 28), seed=0)
    assert isinstance(model, nn.Sequential)
    images = torch.rand(8, 1, 28, 28)
    images[:, :, :9] = 0  # flat parts, where the four values of a window are alike
    found = []
    for order in (model, activation_first(model)):
        order.zero_grad()
        logits = order(images)
        logits.square().sum().backward()
        found.append([logits.detach(), *(p.grad for p in model.parameters())])
    assert len(found[0]) > 5
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "channels"), [("resnet18", 1), ("resnet18", 3), ("squeezenet1_1", 2)]
)
def test_torchvision_models_take_any_number_of_channels(name: str, channels: int) -> None:
    shape = Shape(5, channels, 32)
    check_model(f"torchvision:{name}", shape)
    model = build_model(f"torchvision:{name}", shape, seed=0)
    convolution = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    assert convolution.in_channels == channels


def test_a_changed_first_convolution_is_seeded_too() -> None:
    first, second = (build_model("torchvision:resnet18", Shape(5, 1, 32), seed=3) for _ in "ab")
    assert torch.equal(first.conv1.weight, second.conv1.weight)


def test_unknown_torchvision_model_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"no model 'resnet81' \(did you mean 'resnet18'"):
        build_model("torchvision:resnet81", Shape(5, 3, 32), seed=0)


@pytest.mark.parametrize(
    "name", ["cnn", "torchvision:anything", "module:function", "a.b.c:make_it"]
)
def test_names_of_the_right_form_pass_without_being_imported(name: str) -> None:
    assert ARCHITECTURES.check(name) == name


@pytest.mark.parametrize("name", ["cnm", "torchvision", "a.b", "a b:c", "a:b.c", ":f", ""])
def test_names_of_no_known_form_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"package\.module:function"):
        ARCHITECTURES.check(name)


USER_MODULE = """
import torch
from torch import nn

not_a_function = 3

def net(num_classes, in_channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size ** 2, num_classes))

def no_module(num_classes, in_channels, image_size):
    return "a model"

def wrong_width(num_classes, in_channels, image_size):
    return net(num_classes + 1, in_channels, image_size)

def wrong_input(num_classes, in_channels, image_size):
    return net(num_classes, in_channels, image_size + 1)

def raises(num_classes, in_channels, image_size):
    raise RuntimeError("no such size")

def other_arguments(classes):
    return nn.Linear(1, classes)

class Tuple(nn.Module):
    def __init__(self, num_classes, in_channels, image_size):
        super().__init__()
    def forward(self, images):
        return images, images
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"user_models_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_a_users_function_is_built_and_seeded(user_module: str) -> None:
    arch, shape = f"{user_module}:net", Shape(4, 2, 8)
    check_model(arch, shape)
    first, second = (build_model(arch, shape, seed=2) for _ in "ab")
    assert torch.equal(first[1].weight, second[1].weight)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("no_module", "returned str, not a torch.nn.Module"),
        ("wrong_width", r"gives \(2, 5\) for 2 examples where logits \(2, 4\)"),
        ("wrong_input", "does not take 2 images of 1 x 8 x 8"),
        ("raises", "cannot be built .* no such size"),
        ("other_arguments", "cannot be built .* unexpected keyword"),
        ("Tuple", "gives tuple"),
        ("not_a_function", "is not a function or class"),
        ("missing", "cannot be imported"),
    ],
)
def test_a_users_function_that_does_not_fit_is_refused(
    user_module: str, function: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_model(f"{user_module}:{function}", Shape(4, 1, 8))
    assert str(caught.value).startswith(("model.arch: ", "architecture "))


def test_a_missing_module_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be imported: No module named"):
        build_model("no_such_module_anywhere:net", Shape(4, 1, 8), seed=0)


def test_fingerprints_tell_architectures_apart(
    user_module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = arch_fingerprint(f"{user_module}:net")
    assert before == arch_fingerprint(f"{user_module}:net")
    assert before != arch_fingerprint(f"{user_module}:raises")
    path = tmp_path / f"{user_module}.py"
    path.write_text(USER_MODULE + "\n# edited\n")
    assert arch_fingerprint(f"{user_module}:net") != before
    assert arch_fingerprint("cnn") != arch_fingerprint("mlp")
    assert "resnet18" in arch_fingerprint("torchvision:resnet18")
