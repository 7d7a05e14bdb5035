"""Pooled moments: the densities of one place, however the images are shared out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor
from torch.distributions import MultivariateNormal

from fedkd.data.images import Images
from fedkd.distillation.density.basis import NOTHING_KNOWN, Basis, make_basis
from fedkd.distillation.density.moments import Moments, moments_of, pool_moments

DIGITS = load_digits()
PIXELS = torch.tensor(DIGITS.images * 15).to(torch.uint8)[:, None]
LABELS = torch.tensor(DIGITS.target).long()


class Plain(Basis):
    """Pixels as they are: what is projected can be written down by hand."""

    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1).double()


def plain(dims: int) -> Plain:
    return Plain(torch.zeros(dims), torch.eye(dims))


def images(points: list[list[int]], labels: list[int]) -> Images:
    return Images(
        torch.tensor(points, dtype=torch.uint8)[:, None, None, :], torch.tensor(labels).long()
    )


def digits(rows: Tensor) -> Images:
    return Images(PIXELS[rows], LABELS[rows])


def told(data: Images, basis: Basis, classes: int = 10, least: int = 1) -> Moments:
    found = moments_of(data, basis, num_classes=classes, least=least)
    assert found is not None
    return found


def test_moments_by_hand() -> None:
    """Two images of class 0, three of class 2, one of class 1 that is kept back."""
    own = images([[1, 3], [3, 5], [0, 2], [2, 2], [4, 2], [9, 9]], [0, 0, 2, 2, 2, 1])
    found = told(own, plain(2), classes=3, least=2)
    assert found.counts.tolist() == [2, 0, 3]
    assert found.means.tolist() == [[2.0, 4.0], [0.0, 0.0], [2.0, 2.0]]
    second = [[(1 + 9 + 0 + 4 + 16) / 5, (3 + 15 + 0 + 4 + 8) / 5]]
    second.append([second[0][1], (9 + 25 + 4 + 4 + 4) / 5])
    assert found.second.tolist() == [pytest.approx(row) for row in second]
    within = [[(1 + 1 + 4 + 0 + 4) / 5, 2 / 5], [2 / 5, 2 / 5]]
    assert found.within.tolist() == [pytest.approx(row, abs=1e-6) for row in within]


def test_a_silo_with_too_few_of_every_class_tells_nothing() -> None:
    own = images([[1, 3], [3, 5], [0, 2]], [0, 1, 2])
    assert moments_of(own, plain(2), num_classes=3, least=2) is None
    assert pool_moments([None, None]) is None


def test_pooled_densities_against_pytorchs_multivariate_normal() -> None:
    generator = torch.Generator().manual_seed(0)
    silos = []
    for classes in ([0, 2], [2], [1, 1, 0]):
        labels = torch.tensor(classes).repeat(10)
        pixels = torch.randint(0, 9, (len(labels), 1, 1, 3), generator=generator)
        silos.append(Images(pixels.to(torch.uint8), labels))
    basis = plain(3)
    found = pool_moments([told(silo, basis, 3) for silo in silos])
    assert found is not None
    points = torch.randn(7, 3, generator=generator, dtype=torch.float64) * 3
    joint = found.log_densities(points)
    size = sum(len(silo) for silo in silos)
    groups = {
        (m, k): basis.features(silo.images[silo.labels == k])
        for m, silo in enumerate(silos)
        for k in silo.labels.unique().tolist()
    }
    spare = size - len(groups)
    within = sum((g - g.mean(0)).T @ (g - g.mean(0)) for g in groups.values()) / spare
    shrinkage = max(0.1, 3 / (3 + spare))
    sigma = (1 - shrinkage) * within + shrinkage * torch.eye(3, dtype=torch.float64)
    for (m, k), group in groups.items():
        expected = MultivariateNormal(group.mean(0), sigma).log_prob(points)
        expected = expected + math.log(len(group) / len(silos[m]))
        assert joint[m] is not None
        torch.testing.assert_close(joint[m][:, k], expected, atol=1e-4, rtol=1e-5)
    assert joint[1] is not None
    assert joint[1][:, [0, 1]].eq(NOTHING_KNOWN).all()


@given(seed=st.integers(0, 1000), silos=st.integers(1, 6))
def test_sums_of_silos_are_those_of_one_place(seed: int, silos: int) -> None:
    """However images are shared out, counts, class sums and second moments add up to the same."""
    generator = torch.Generator().manual_seed(seed)
    basis = make_basis(PIXELS[:100], dims=8)
    assert basis is not None
    owner = torch.randint(0, silos, (300,), generator=generator)
    parts = [told(digits(torch.nonzero(owner == m).flatten()), basis) for m in owner.unique()]
    whole = told(digits(torch.arange(300)), basis)
    counts = torch.stack([part.counts for part in parts]).sum(0)
    assert torch.equal(counts, whole.counts)
    sums = sum(part.means.double() * part.counts[:, None] for part in parts)
    torch.testing.assert_close(sums / counts[:, None], whole.means.double(), atol=1e-5, rtol=1e-5)
    second = sum(part.second.double() * part.counts.sum() for part in parts) / 300
    torch.testing.assert_close(second, whole.second.double(), atol=1e-4, rtol=1e-4)


def test_silos_of_two_classes_together_know_all_ten() -> None:
    """No silo alone could tell its classes from the others'; pooled moments in patches can."""
    basis = make_basis(PIXELS[:300], dims=500, kind="patches", fine=True)
    assert basis is not None
    assert len(basis.components) == 150, "half of the transfer images"
    rows = torch.arange(300, 1300)
    asked = torch.arange(1300, 1797)
    silos = [digits(rows[(LABELS[rows] // 2) == m]) for m in range(5)]
    found = pool_moments([told(silo, basis, least=5) for silo in silos])
    assert found is not None
    joint = torch.stack(
        [d for d in found.log_densities(basis.project(PIXELS[asked])) if d is not None]
    )
    predicted = joint.logsumexp(0).argmax(1)
    assert float((predicted == LABELS[asked]).double().mean()) > 0.9
    assert float((joint.logsumexp(2).argmax(0) == LABELS[asked] // 2).double().mean()) > 0.9


def test_a_silo_that_tells_nothing_keeps_its_place() -> None:
    own = images([[1, 3], [3, 5], [0, 2], [2, 2]], [0, 0, 1, 1])
    found = pool_moments([None, told(own, plain(2), classes=2)])
    assert found is not None
    first, second = found.log_densities(torch.zeros(3, 2, dtype=torch.float64))
    assert first is None
    assert second is not None
    assert second.shape == (3, 2)


def test_large_silos_are_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedkd.distillation.density import moments

    basis = plain(64)
    whole = told(digits(torch.arange(200)), basis)
    monkeypatch.setattr(moments, "PROJECTION_BATCH", 7)
    parts = told(digits(torch.arange(200)), basis)
    torch.testing.assert_close(parts.second, whole.second)
    torch.testing.assert_close(parts.means, whole.means)


@pytest.mark.parametrize("kind", ["pixels", "patches"])
def test_no_image_reaches_beyond_the_bound(kind: str) -> None:
    basis = make_basis(PIXELS[:100], dims=30, kind=kind)
    assert basis is not None
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 2, (200, 1, 8, 8), generator=generator).to(torch.uint8) * 255
    for asked in (PIXELS[:500], noise, 255 - PIXELS[:100]):
        assert float(basis.project(asked).norm(dim=1).max()) <= basis.max_norm


def test_the_bound_grows_with_the_basis() -> None:
    basis = make_basis(PIXELS[:100], dims=30)
    assert basis is not None
    doubled = replace(basis, components=2 * basis.components)
    assert doubled.max_norm == pytest.approx(2 * basis.max_norm, rel=1e-5)
