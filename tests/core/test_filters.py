"""Filters learnt from patches, against patches cut out and seen one by one."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

from fedkd.data.images import as_float
from fedkd.distillation.density.basis import PatchBasis, make_basis
from fedkd.distillation.density.filters import FILTERS, FilterBank, learn_filters


def digits(count: int) -> Tensor:
    return torch.tensor(load_digits().images[:count] * 15).to(torch.uint8)[:, None]


def pictures(count: int, channels: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    shape = (count, channels, side, side)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def seen_one_by_one(bank: FilterBank, images: Tensor) -> Tensor:
    filters, _, side, _ = bank.kernels.shape
    split = functional.unfold(as_float(images), side).double()
    spread = (split.var(1, keepdim=True) + 0.01).sqrt()
    normal = (split - split.mean(1, keepdim=True)) / spread
    response = bank.kernels.reshape(filters, -1).double() @ normal + bank.offset.double()[:, None]
    places = images.shape[-1] - side + 1
    maps = torch.cat([(response - 0.25).clamp_min(0), (-response - 0.25).clamp_min(0)], 1)
    maps = maps.reshape(len(images), -1, places, places)
    return functional.adaptive_avg_pool2d(maps, 3).flatten(1).sqrt()


@pytest.mark.parametrize(("channels", "side", "patch"), [(1, 8, 3), (3, 28, 6), (1, 40, 6)])
def test_convolutions_see_what_normalised_patches_say(channels: int, side: int, patch: int) -> None:
    images = pictures(40, channels, side)
    bank = learn_filters(images)
    assert bank.kernels.shape == (FILTERS, channels, patch, patch)
    found = bank.features(images)
    assert found.shape == (40, 2 * FILTERS * 9)
    torch.testing.assert_close(found.double(), seen_one_by_one(bank, images), atol=2e-4, rtol=1e-3)


def test_as_many_filters_as_are_asked_for() -> None:
    assert learn_filters(digits(40), 7).kernels.shape == (7, 1, 3, 3)
    basis = make_basis(digits(40), dims=5, kind="patches", filters=7)
    assert isinstance(basis, PatchBasis)
    assert basis.features(digits(2)).shape == (2, 2 * 7 * 9)


def test_the_same_images_give_the_same_filters_with_any_number_of_threads() -> None:
    from fedkd.training.compute import intra_op_threads

    banks = []
    for threads in (1, 1, 2):
        with intra_op_threads(threads):
            banks.append(learn_filters(digits(100)))
    assert torch.equal(banks[0].kernels, banks[1].kernels)
    torch.testing.assert_close(banks[0].kernels, banks[2].kernels, atol=1e-2, rtol=1e-2)


def test_a_flat_image_is_seen_as_such() -> None:
    bank = learn_filters(digits(100))
    flat = torch.full((1, 1, 8, 8), 200, dtype=torch.uint8)
    assert bool(torch.isfinite(bank.features(flat)).all())
    assert torch.allclose(bank.features(flat), bank.features(flat - 150), atol=1e-5), (
        "brightness counts not"
    )


def test_nearest_neighbours_in_patches_know_classes_better_than_in_pixels() -> None:
    images, labels = digits(1500), torch.tensor(load_digits().target[:1500])
    right = {}
    for kind in ("pixels", "patches"):
        basis = make_basis(images[:300], dims=50, kind=kind)
        assert basis is not None
        own, asked = basis.project(images[:100]), basis.project(images[100:])
        nearest = torch.cdist(asked, own).argmin(1)
        right[kind] = float((labels[:100][nearest] == labels[100:]).double().mean())
    assert right["patches"] > right["pixels"]


def test_no_basis_of_patches_without_enough_images_or_any_difference() -> None:
    assert make_basis(digits(19), dims=5, kind="patches") is None
    assert make_basis(digits(1).expand(30, 1, 8, 8), dims=5, kind="patches") is None
    assert isinstance(make_basis(digits(20), dims=5, kind="patches"), PatchBasis)


@pytest.mark.parametrize(
    ("kernels", "offset"),
    [((4, 1, 3, 2), (4,)), ((4, 1, 3, 3), (5,)), ((4, 1, 3, 3), (4, 1)), ((4, 9), (4,))],
)
def test_what_is_no_filter_bank_is_refused(
    kernels: tuple[int, ...], offset: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"\[K, C, p, p\] and \[K\] are expected"):
        FilterBank(torch.zeros(kernels), torch.zeros(offset))
