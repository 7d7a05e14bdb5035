"""The student that silos' moments give in closed form, against the densities they stand for."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.datasets import load_digits

from fedkd.data.images import Images
from fedkd.distillation.density.basis import Basis, make_basis
from fedkd.distillation.density.discriminant import lda_head_student
from fedkd.distillation.density.moments import Moments, merge_moments, moments_of, pool_moments
from fedkd.errors import FedKDError
from fedkd.models.build import Shape, build_model
from fedkd.models.state import State
from fedkd.registry import NUM_PATCH_FILTERS, PATCH_FEATURES
from fedkd.training.compute import Compute
from fedkd.training.evaluate import predict

DIGITS = load_digits()
PIXELS = torch.tensor(DIGITS.images * 15).to(torch.uint8)[:, None]
LABELS = torch.tensor(DIGITS.target).long()
SHAPE = Shape(10, 1, 8)


def digits(rows: torch.Tensor) -> Images:
    return Images(PIXELS[rows], LABELS[rows])


def told(data: Images, basis: Basis) -> Moments:
    found = moments_of(data, basis, num_classes=10, least=1)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def basis() -> Basis:
    found = make_basis(PIXELS[:200], dims=90, kind="patches", filters=NUM_PATCH_FILTERS, fine=True)
    assert found is not None
    return found


def logits(state: State) -> torch.Tensor:
    model = build_model(PATCH_FEATURES, SHAPE, seed=0)
    model.load_state_dict(state)
    return predict(model, PIXELS[1200:], compute=Compute()).double()


def uneven(rows: torch.Tensor) -> list[torch.Tensor]:
    """Two silos of two classes each and one of the rest."""
    of = LABELS[rows]
    return [rows[of < 2], rows[(of >= 2) & (of < 4)], rows[of >= 4]]


def test_logits_are_those_of_one_places_gaussians_however_images_are_shared_out(
    basis: Basis,
) -> None:
    rows = torch.arange(200, 1200)
    place = pool_moments([told(digits(rows), basis)])
    assert place is not None
    (joint,) = place.log_densities(basis.project(PIXELS[1200:]))
    assert joint is not None
    expected = torch.log_softmax(joint / 3, dim=1)
    for parts in (uneven(rows), [rows[0::2], rows[1::2]], [rows]):
        moments = [told(digits(part), basis) for part in parts]
        found = logits(lda_head_student([*moments, None], basis, SHAPE, scale=3.0))
        torch.testing.assert_close(torch.log_softmax(found, 1), expected, atol=2e-3, rtol=1e-3)
    right = (expected.argmax(1) == LABELS[1200:]).double().mean()
    assert float(right) > 0.93, "and they tell digits apart"


def test_merged_moments_are_those_of_all_images_together(basis: Basis) -> None:
    rows = torch.arange(200, 700)
    parts = [told(digits(part), basis) for part in uneven(rows)]
    merged, whole = merge_moments([parts[0], None, *parts[1:]]), told(digits(rows), basis)
    assert merged is not None
    assert torch.equal(merged.counts, whole.counts)
    torch.testing.assert_close(merged.means, whole.means, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(merged.second, whole.second, atol=1e-5, rtol=1e-5)
    assert merge_moments([None, None]) is None


def test_a_class_that_nobody_has_is_known_but_not_guessed(basis: Basis) -> None:
    rows = torch.arange(200, 1200)
    some = told(digits(rows[LABELS[rows] != 7]), basis)
    found = logits(lda_head_student([some], basis, SHAPE, scale=3.0))
    assert bool(torch.isfinite(found).all())
    assert not bool((found.argmax(1) == 7).any())


def test_scale_makes_it_less_sure_and_changes_no_class(basis: Basis) -> None:
    moments = [told(digits(torch.arange(200, 700)), basis)]
    sharp, soft = (
        logits(lda_head_student(moments, basis, SHAPE, scale=scale)) for scale in (1.0, 5.0)
    )
    torch.testing.assert_close(sharp / 5, soft, atol=1e-3, rtol=1e-3)
    assert math.isclose(float((sharp.argmax(1) == soft.argmax(1)).double().mean()), 1.0)


def test_what_it_cannot_be_made_of_is_told(basis: Basis) -> None:
    with pytest.raises(FedKDError, match="every silo is too small"):
        lda_head_student([None, None], basis, SHAPE, scale=3.0)
    with pytest.raises(FedKDError, match="20 distinct ones are needed"):
        lda_head_student([None], None, SHAPE, scale=3.0)
