"""The basis and the densities, against formulas worked out in another way."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor
from torch.distributions import MultivariateNormal

from fedkd.data.images import Images
from fedkd.distillation.density.basis import (
    NOTHING_KNOWN,
    Basis,
    FeatureBasis,
    make_basis,
    make_feature_basis,
)
from fedkd.distillation.density.estimators import (
    LEAST_DISTANCE,
    background_log_density,
    density_bound,
    gaussian_log_density,
    knn_log_density,
    log_densities,
)
from fedkd.models.build import Shape, build_model
from fedkd.training.compute import Compute
from fedkd.training.features import penultimate_features

DIGITS = load_digits()


def digits(start: int, stop: int) -> Images:
    pixels = torch.tensor(DIGITS.images[start:stop] * 15).to(torch.uint8)[:, None]
    return Images(pixels, torch.tensor(DIGITS.target[start:stop]).long())


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def digit_basis(dims: int = 12, size: int = 200) -> Basis:
    basis = make_basis(digits(0, size).images, dims=dims)
    assert basis is not None
    return basis


@pytest.mark.parametrize("dims", [1, 12, 500])
def test_the_basis_whitens_the_transfer_set(dims: int) -> None:
    basis = digit_basis(dims)
    points = basis.project(digits(0, 200).images)
    kept = points.shape[1]
    assert kept == min(dims, kept)
    assert kept <= 64
    torch.testing.assert_close(points.mean(0), torch.zeros(kept).double(), atol=1e-4, rtol=0)
    covariance = torch.cov(points.T).reshape(kept, kept)
    torch.testing.assert_close(covariance, torch.eye(kept).double(), atol=2e-3, rtol=0)


def test_components_come_in_order_with_their_signs_fixed() -> None:
    basis = digit_basis()
    rows = basis.components
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    assert bool((largest > 0).all())
    # A whitened row has the length 1 / sqrt(eigenvalue): the first eigenvalue is the largest.
    lengths = rows.norm(dim=1)
    assert bool((lengths[1:] >= lengths[:-1]).all())
    mirrored = make_basis(255 - digits(0, 200).images, dims=12)
    assert mirrored is not None
    torch.testing.assert_close(mirrored.components, rows, atol=1e-3, rtol=1e-3)


def test_small_eigenvalues_are_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(40, 1, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.randint(0, 256, (40,), generator=generator)
    images[:, 0, 0, 1] = torch.randint(0, 2, (40,), generator=generator)
    basis = make_basis(images, dims=50)
    assert basis is not None
    assert basis.components.shape == (1, 64)


@pytest.mark.parametrize("size", [1, 19])
def test_too_few_images_give_no_basis(size: int) -> None:
    assert make_basis(digits(0, size).images, dims=5) is None


def test_twenty_images_are_enough_but_not_twenty_equal_ones() -> None:
    assert make_basis(digits(0, 20).images, dims=500).components.shape[0] <= 19
    assert make_basis(digits(0, 1).images.repeat(30, 1, 1, 1), dims=5) is None


def test_large_images_are_pooled_to_32_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (25, 3, 48, 48), generator=generator, dtype=torch.uint8)
    basis = make_basis(images, dims=4)
    assert basis is not None
    assert basis.side == 32
    assert basis.mean.shape == (3 * 32 * 32,)
    assert basis.project(images).shape == (25, 4)


def test_gaussian_joint_against_pytorchs_multivariate_normal() -> None:
    own, points = draw(0, 40, 3) * 2, draw(1, 6, 3)
    labels = torch.tensor([0] * 10 + [2] * 25 + [4] * 5)
    joint = gaussian_log_density(own, labels, points, num_classes=5)
    groups = {k: own[labels == k] for k in (0, 2, 4)}
    within = sum((g - g.mean(0)).T @ (g - g.mean(0)) for g in groups.values()) / (40 - 3)
    shrinkage = max(0.1, 3 / (3 + 40 - 3))
    sigma = (1 - shrinkage) * within + shrinkage * torch.eye(3, dtype=torch.float64)
    for k, group in groups.items():
        expected = MultivariateNormal(group.mean(0), sigma).log_prob(points)
        torch.testing.assert_close(joint[:, k], expected + math.log(len(group) / 40))
    assert joint[:, [1, 3]].eq(NOTHING_KNOWN).all()


def test_shrinkage_grows_where_samples_are_few_and_counts_duplicates_once() -> None:
    """Eight copies of four points in three dimensions: l = 3 / (3 + 4 - 1) = 0.5."""
    own = draw(0, 4, 3).repeat(8, 1)
    points = draw(1, 5, 3)
    joint = gaussian_log_density(own, torch.zeros(32).long(), points, num_classes=1)
    centred = own - own.mean(0)
    sigma = 0.5 * centred.T @ centred / 31 + 0.5 * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(joint[:, 0], MultivariateNormal(own.mean(0), sigma).log_prob(points))


def test_knn_by_hand() -> None:
    """Points at 1, 2, 4, 8 from the origin in two dimensions; k = 2."""
    own = torch.tensor([[1.0, 0], [0, 2], [-4, 0], [0, -8]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1])
    origin = torch.zeros(1, 2, dtype=torch.float64)
    joint = knn_log_density(own, labels, origin, num_classes=3, k=2)
    total = 2 * 2.0**-2 / 4
    share = (2.0**-2) / (2.0**-2 + 8.0**-2)
    assert joint[0, 0].exp().item() == pytest.approx(total * share)
    assert joint[0, 1].exp().item() == pytest.approx(total * (1 - share))
    assert joint[0, 2].item() < -1e8
    assert joint.logsumexp(1).exp().item() == pytest.approx(total)


def test_knn_takes_all_points_where_there_are_fewer_than_k() -> None:
    own = draw(0, 3, 2)
    few = knn_log_density(own, torch.zeros(3).long(), draw(1, 4, 2), num_classes=1, k=50)
    assert torch.equal(
        few, knn_log_density(own, torch.zeros(3).long(), draw(1, 4, 2), num_classes=1, k=3)
    )


@given(
    seed=st.integers(0, 10_000),
    size=st.integers(5, 40),
    dims=st.integers(1, 8),
    spread=st.sampled_from([0.0, 1e-6, 0.1, 1.0, 50.0]),
    kind=st.sampled_from(["gaussian", "knn"]),
    k=st.integers(1, 8),
)
def test_no_honest_silo_exceeds_the_bound(
    seed: int, size: int, dims: int, spread: float, kind: str, k: int
) -> None:
    own = draw(seed, size, dims) * spread
    labels = torch.arange(size) % 3
    points = torch.cat([own[:3], draw(seed + 1, 4, dims)])
    if kind == "gaussian":
        joint = gaussian_log_density(own, labels, points, num_classes=4)
    else:
        joint = knn_log_density(own, labels, points, num_classes=4, k=k)
    bound = density_bound(kind, dims)
    assert bool(torch.isfinite(joint).all())
    assert float(joint.logsumexp(1).max()) <= bound + 1e-9 * max(1.0, abs(bound))


def test_the_bounds_are_reached_by_the_densest_data() -> None:
    own = torch.zeros(2000, 2, dtype=torch.float64)
    own[:1000] += 1e-9 * draw(0, 1000, 2)
    joint = gaussian_log_density(own, torch.zeros(2000).long(), own[:1], num_classes=1)
    assert joint.item() == pytest.approx(density_bound("gaussian", 2), abs=1e-3)
    assert density_bound("knn", 2) == pytest.approx(-2 * math.log(LEAST_DISTANCE))


def test_the_background_is_a_standard_normal() -> None:
    points = draw(3, 7, 4)
    expected = MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double()).log_prob(points)
    torch.testing.assert_close(background_log_density(points), expected)


@pytest.mark.parametrize("kind", ["gaussian", "knn"])
def test_a_silos_own_kind_is_familiar_to_it(kind: str) -> None:
    basis, pool = digit_basis(20), digits(200, 900)
    images = digits(900, 1000)
    threes, eights = (pool.take(torch.nonzero(pool.labels == k)[:, 0]) for k in (3, 8))
    found = [
        log_densities(silo, images.images, basis, kind=kind, neighbours=5, num_classes=10)
        for silo in (threes, eights)
    ]
    three, eight = (joint.logsumexp(1) for joint in found)
    assert float((three > eight)[images.labels == 3].double().mean()) > 0.8
    assert float((three > eight)[images.labels == 8].double().mean()) < 0.2


@pytest.mark.parametrize("kind", ["gaussian", "knn"])
def test_a_silo_of_under_five_images_has_no_density(kind: str) -> None:
    def densities(size: int) -> Tensor | None:
        return log_densities(
            digits(0, size),
            digits(50, 60).images,
            digit_basis(),
            kind=kind,
            neighbours=5,
            num_classes=10,
        )

    assert densities(4) is None
    joint = densities(5)
    assert joint is not None
    assert joint.shape == (10, 10)
    assert joint.dtype == torch.float64


# The basis of features.


def feature_basis(dims: int = 12, size: int = 200) -> FeatureBasis | None:
    model = build_model("cnn", Shape(10, 1, 8), seed=5)
    return make_feature_basis(digits(0, size).images, model, dims=dims, compute=Compute())


@pytest.mark.parametrize("dims", [1, 12, 500])
def test_the_basis_of_features_whitens_what_the_model_sees(dims: int) -> None:
    basis = feature_basis(dims)
    assert basis is not None
    images = digits(0, 200).images
    points = basis.project(images)
    kept = len(basis.components)
    assert points.shape == (200, kept)
    assert points.dtype == torch.float64
    assert basis.mean.shape == (128,)
    torch.testing.assert_close(points.mean(0), torch.zeros(kept).double(), atol=1e-4, rtol=0)
    covariance = torch.cov(points.T).reshape(kept, kept)
    torch.testing.assert_close(covariance, torch.eye(kept).double(), atol=2e-3, rtol=0)


def test_the_components_of_features_are_their_principal_axes() -> None:
    """Against the eigenvectors of the covariance, found in another way."""
    basis = feature_basis(3)
    assert basis is not None
    features = penultimate_features(basis.model, digits(0, 200).images, compute=Compute()).double()
    values, vectors = torch.linalg.eigh(torch.cov(features.T))
    for row, value, axis in zip(
        basis.components.double(), values.flip(0), vectors.T.flip(0), strict=False
    ):
        assert row.norm().item() == pytest.approx(float(value) ** -0.5, rel=1e-4)
        assert abs(float(row / row.norm() @ axis)) == pytest.approx(1, abs=1e-5)
        assert float(row[row.abs().argmax()]) > 0


def test_no_basis_of_features_without_enough_images_or_any_difference() -> None:
    assert feature_basis(size=19) is None
    assert feature_basis(size=20) is not None
    dead = build_model("cnn", Shape(10, 1, 8), seed=5)
    with torch.no_grad():
        dead[7].bias.fill_(-1e3)  # no unit before the last layer ever fires
    images = digits(0, 50).images
    assert make_feature_basis(images, dead, dims=5, compute=Compute()) is None
    with torch.no_grad():
        dead[7].bias.fill_(math.inf)
    assert make_feature_basis(images, dead, dims=5, compute=Compute()) is None


@pytest.mark.parametrize("kind", ["gaussian", "knn"])
def test_densities_in_features_keep_the_bound_and_know_their_own(kind: str) -> None:
    basis, pool, images = feature_basis(20), digits(200, 900), digits(900, 1000)
    assert basis is not None
    bound = density_bound(kind, len(basis.components))
    own = []
    for k in (3, 8):
        silo = pool.take(torch.nonzero(pool.labels == k)[:, 0])
        joint = log_densities(silo, images.images, basis, kind=kind, neighbours=5, num_classes=10)
        assert joint is not None
        assert float(joint.logsumexp(1).max()) <= bound
        own.append(joint.logsumexp(1))
    assert float((own[0] > own[1])[images.labels == 3].double().mean()) > 0.8
    assert float((own[0] > own[1])[images.labels == 8].double().mean()) < 0.2
    background = background_log_density(basis.project(images.images))
    assert background.shape == (100,)
