"""Augmentation: what it changes, from whom it draws, and what is refused."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fedkd.config import Rounds
from fedkd.data.images import Images
from fedkd.errors import UserCodeError, UserError
from fedkd.models.build import Shape, build_model
from fedkd.models.state import copy_state, state_hash
from fedkd.registry import AUGMENTATIONS
from fedkd.training.augment import check_augmentation, make_augmentation
from fedkd.training.compute import Compute
from fedkd.training.local import LocalTask, train_locally
from fedkd.training.loop import fit
from fedkd.training.optimizer import OptimizerSettings

NAMES = [name for name in AUGMENTATIONS if name != "none"]


def pictures(channels: int = 3, size: int = 16, count: int = 6) -> Tensor:
    """Return smooth pictures, of which no two pixels' neighbourhoods are alike."""
    ramp = torch.arange(size * size).reshape(size, size) * 255 // (size * size)
    shifts = torch.arange(count * channels).reshape(count, channels, 1, 1) * 7
    return ((ramp + shifts) % 256).to(torch.uint8)


def augmented(name: str, images: Tensor, seed: int = 0) -> Tensor:
    augment = make_augmentation(name, torch.Generator().manual_seed(seed))
    assert augment is not None
    return augment(images)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_change_each_in_its_own_way(name: str, channels: int) -> None:
    images = pictures(channels)[:1].repeat(24, 1, 1, 1)
    before = images.clone()
    changed = augmented(name, images)
    assert changed.dtype == torch.uint8
    assert changed.shape == images.shape
    assert torch.equal(images, before)
    assert len({image.numpy().tobytes() for image in changed}) > 4


@pytest.mark.parametrize("name", NAMES)
def test_the_generator_alone_decides_in_every_thread(name: str) -> None:
    images = pictures()
    expected = [augmented(name, images, seed) for seed in range(4)]
    torch.manual_seed(99)
    random.seed(99)
    state = torch.random.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda seed: augmented(name, images, seed), range(4)))
    assert all(torch.equal(one, other) for one, other in zip(expected, again, strict=True))
    assert not torch.equal(expected[0], expected[1])
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is left alone"


def test_flip_and_crop_move_pixels_and_invent_none() -> None:
    images = pictures(1, 16, 1).repeat(40, 1, 1, 1)
    changed = augmented("flip-crop", images)
    rows = {tuple(row) for row in images[0, 0].tolist()}
    rows |= {row[::-1] for row in rows}
    padded = {(0, 0, *row, 0, 0) for row in rows} | {(0,) * 20}
    windows = {row[start : start + 16] for row in padded for start in range(5)}
    assert all(tuple(row) in windows for image in changed for row in image[0].tolist())
    flipped = sum(int(image[0, 8, 4] > image[0, 8, 11]) for image in changed)
    assert 8 < flipped < 32


def test_every_epoch_trains_on_images_drawn_anew() -> None:
    seen: list[Tensor] = []

    def watch(images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        seen.append(augmented("flip-crop", images, len(seen)))
        return seen[-1]

    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 2))
    inputs: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    fit(
        model,
        pictures(),
        (torch.tensor([0, 1] * 3),),
        lambda logits, rest: nn.functional.cross_entropy(logits, rest[0]),
        optimizer=OptimizerSettings(2, 3, 0.1),
        generator=torch.Generator().manual_seed(0),
        compute=Compute(),
        augment=watch,
    )
    assert len(seen) == 2
    batches = [batch for epoch in seen for batch in epoch.split(3)]
    assert all(torch.equal(i * 255, b.float()) for i, b in zip(inputs, batches, strict=True))


def test_a_round_is_augmented_and_repeats_to_the_bit() -> None:
    data = Images(pictures(), torch.tensor([0, 1] * 3))

    def trained(augment: str, arch: str) -> str:
        model = build_model(arch, Shape(2, 3, 16), seed=1)
        settings = Rounds(augment=augment, batch_size=3, local_epochs=2)
        task = LocalTask(model, data, 2, settings, Compute())
        train_locally(task, generator=torch.Generator().manual_seed(0))
        return state_hash(copy_state(model))

    hashes = [trained(name, "mlp") for name in AUGMENTATIONS]
    assert hashes == [trained(name, "mlp") for name in AUGMENTATIONS]
    assert len(set(hashes)) == len(AUGMENTATIONS)
    plain, changed = (trained(name, "patch-features") for name in ("none", "flip-crop"))
    assert plain != changed, "no fixed features of images that change"


OWN = """
import torch

def brighten(images):
    shift = torch.randint(0, 50, (len(images), 1, 1, 1))
    return (images.int() + shift).clamp(max=255).to(torch.uint8)

def floats(images):
    return images / 255

def shorter(images):
    return images[:1]

def broken(images):
    raise RuntimeError("no such filter")
"""


def test_a_users_function_is_one_too_and_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "myaugment.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    first, again = (augmented("myaugment:brighten", pictures(), 5) for _ in "ab")
    assert torch.equal(first, again)
    assert not torch.equal(first, pictures())
    check_augmentation("myaugment:brighten", 3, 16)
    with pytest.raises(UserError, match=r"floats returned torch.float32 .*, not uint8 images"):
        check_augmentation("myaugment:floats", 3, 16)
    with pytest.raises(UserError, match=r"shorter returned torch.uint8 \[1, 3, 16, 16\]"):
        check_augmentation("myaugment:shorter", 3, 16)
    with pytest.raises(UserCodeError, match="broken raised RuntimeError: no such filter"):
        check_augmentation("myaugment:broken", 3, 16)


def test_colour_operations_need_one_channel_or_three() -> None:
    check_augmentation("flip-crop", 4, 16)
    check_augmentation("none", 4, 16)
    with pytest.raises(UserError, match="images of 1 or 3 channels, but these have 4"):
        check_augmentation("randaugment", 4, 16)
