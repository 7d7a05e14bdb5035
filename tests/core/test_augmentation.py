"""MixedInputs of images, and what is known of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedkd.distillation.augmentation import MixedInputs, mix_images, shift_images


def pictures(count: int, height: int = 8, width: int = 8, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (count, channels, height, width)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def drawn(images: Tensor, count: int, seed: int = 0) -> MixedInputs:
    return mix_images(images, count, torch.Generator().manual_seed(seed))


def test_every_image_is_blended_as_often() -> None:
    found = drawn(pictures(5), 4)
    assert found.images.shape == (20, 1, 8, 8)
    assert found.images.dtype == torch.uint8
    assert found.first.tolist() == [0, 1, 2, 3, 4] * 4
    for turn in range(4):
        assert sorted(found.second[5 * turn : 5 * turn + 5].tolist()) == [0, 1, 2, 3, 4]
    assert bool(((found.share >= 0) & (found.share <= 1)).all())


def test_mixed_images_are_between_the_two() -> None:
    images = pictures(6)
    found = drawn(images, 1)
    share = found.share[:, None, None, None]
    expected = share * images[found.first] + (1 - share) * images[found.second]
    assert float((found.images.double() - expected).abs().max()) <= 0.501


def test_cut_images_take_each_pixel_from_one_of_the_two_in_the_share_that_is_told() -> None:
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 8, 8) * 40
    found = drawn(images, 2)
    for row in range(6, 12):
        first, second = found.first[row], found.second[row]
        of_first = found.images[row] == images[first]
        assert bool((of_first | (found.images[row] == images[second])).all())
        if first != second:
            assert float(of_first.double().mean()) == pytest.approx(float(found.share[row]))


def test_a_part_that_is_cut_out_is_a_rectangle() -> None:
    images = torch.stack([torch.zeros(1, 20, 20), torch.full((1, 20, 20), 255)]).to(torch.uint8)
    some = 0
    for seed in range(20):
        found = drawn(images, 2, seed)
        hidden = found.images[2, 0] == 255
        if found.second[2] == 1 and bool(hidden.any()):
            rows, columns = hidden.any(1), hidden.any(0)
            assert torch.equal(hidden, rows[:, None] & columns)
            some += 1
    assert some > 3


def test_large_images_move_a_little_and_small_ones_not() -> None:
    """With itself, an image blends to itself, if nothing has moved."""
    assert torch.equal(drawn(pictures(1), 1).images, pictures(1))
    image = pictures(1, 30, 44)
    seen = set()
    for seed in range(200):
        moved = drawn(image, 1, seed).images[0, 0]
        for down in range(-2, 3):
            for right in range(-3, 4):
                inner = image[0, 0, 2 + down : 28 + down, 3 + right : 41 + right]
                if torch.equal(moved[2:28, 3:41], inner):
                    seen.add((down, right))
    assert len(seen) == 5 * 7


def test_the_same_seed_gives_the_same_blends() -> None:
    images = pictures(9, 28, 28, 3)
    assert torch.equal(drawn(images, 3).images, drawn(images, 3).images)
    assert not torch.equal(drawn(images, 3).images, drawn(images, 3, seed=1).images)


def test_what_is_known_of_images_is_told_of_blends_in_their_shares() -> None:
    found = MixedInputs(
        pictures(2), torch.tensor([0, 1]), torch.tensor([1, 1]), torch.tensor([0.25, 0.4]).double()
    )
    values = torch.tensor([[1.0, 0.0], [5.0, 8.0]], dtype=torch.float64)
    torch.testing.assert_close(
        found.interpolate(values), torch.tensor([[4.0, 6.0], [5.0, 8.0]], dtype=torch.float64)
    )
    torch.testing.assert_close(
        found.interpolate(values[:, 0]), torch.tensor([4.0, 5.0], dtype=torch.float64)
    )


def test_moved_images_are_blended_with_none() -> None:
    images = pictures(4, 28, 28)
    found = shift_images(images, 3, torch.Generator().manual_seed(0))
    assert found.images.shape == (12, 1, 28, 28)
    known = torch.rand(4, 5)
    assert torch.equal(found.interpolate(known), known.repeat(3, 1))
    still = 0
    for row, image in zip(found.first.tolist(), found.images, strict=True):
        inner = image[:, 2:26, 2:26]
        seen = images[row].unfold(1, 24, 1).unfold(2, 24, 1).flatten(1, 2)
        assert bool((seen == inner[:, None]).flatten(2).all(2).any())
        still += int(torch.equal(image, images[row]))
    assert still < 12
