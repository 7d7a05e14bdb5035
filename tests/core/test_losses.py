"""The distillation loss against numbers worked out by hand, PyTorch's own, and what must hold."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from fedkd.training.losses import kd_loss

TEMPERATURES = [0.5, 1.0, 4.0, 20.0]

# Student logits, teacher probabilities, label, and by hand KL(target || student) and CE.
FIVE_POINTS = [
    ((math.log(3), 0.0), (0.5, 0.5), 0, 0.5 * math.log(4 / 3), math.log(4 / 3)),
    ((0.0, 0.0), (1.0, 0.0), 0, math.log(2), math.log(2)),
    ((0.0, 0.0), (0.5, 0.5), 1, 0.0, math.log(2)),
    ((math.log(9), 0.0), (0.1, 0.9), 1, 0.8 * math.log(9), math.log(10)),
    ((0.0, math.log(4)), (0.0, 1.0), 0, math.log(5 / 4), math.log(5)),
]
LOGITS = torch.tensor([point[0] for point in FIVE_POINTS])
TARGET = torch.tensor([point[1] for point in FIVE_POINTS])
LABELS = torch.tensor([point[2] for point in FIVE_POINTS])
MEAN_KL = (0.1438410362 + 0.6931471806 + 0.0 + 1.7577796619 + 0.2231435513) / 5
MEAN_CE = (0.2876820724 + 0.6931471806 + 0.6931471806 + 2.3025850930 + 1.6094379124) / 5


def draw(seed: int, size: int = 6, classes: int = 5, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, classes, generator=generator) * scale


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_five_points_by_hand(temperature: float) -> None:
    """Logits of T z at temperature T give the student of z at 1; the loss grows by T^2."""
    assert sum(point[3] for point in FIVE_POINTS) / 5 == pytest.approx(MEAN_KL, abs=1e-9)
    assert sum(point[4] for point in FIVE_POINTS) / 5 == pytest.approx(MEAN_CE, abs=1e-9)
    found = kd_loss(LOGITS * temperature, TARGET, temperature=temperature)
    assert float(found) == pytest.approx(MEAN_KL * temperature**2, rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_labels_weigh_in(weight: float) -> None:
    found = kd_loss(LOGITS, TARGET, LABELS, weight=weight)
    assert float(found) == pytest.approx((1 - weight) * MEAN_CE + weight * MEAN_KL, rel=1e-5)


def test_cross_entropy_is_taken_at_temperature_one() -> None:
    found = kd_loss(LOGITS, TARGET, LABELS, temperature=4.0, weight=0.0)
    assert float(found) == pytest.approx(MEAN_CE, rel=1e-5)


def test_without_labels_the_weight_does_not_matter() -> None:
    assert float(kd_loss(LOGITS, TARGET, weight=0.25)) == pytest.approx(MEAN_KL, rel=1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_agrees_with_pytorch_in_value_and_gradient(temperature: float) -> None:
    target = torch.softmax(draw(1) / temperature, dim=1)
    logits, same = (draw(2).requires_grad_() for _ in "ab")
    found = kd_loss(logits, target, temperature=temperature)
    log_student = functional.log_softmax(same / temperature, dim=1)
    expected = functional.kl_div(log_student, target, reduction="batchmean") * temperature**2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    found.backward()
    expected.backward()
    torch.testing.assert_close(logits.grad, same.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("magnitude", [1e2, 1e4])
def test_huge_logits_give_finite_values_and_gradients(temperature: float, magnitude: float) -> None:
    logits = (draw(3, scale=1.0).sign() * magnitude).requires_grad_()
    target = torch.softmax(draw(4, scale=1.0).sign() * magnitude / temperature, dim=1)
    labels = torch.arange(6) % 5
    loss = kd_loss(logits, target, labels, temperature=temperature, weight=0.5)
    loss.backward()
    assert math.isfinite(loss.item())
    assert loss.item() >= 0
    assert bool(torch.isfinite(logits.grad).all())


@given(st.integers(0, 10_000), st.sampled_from(TEMPERATURES))
def test_zero_on_equal_logits_and_positive_elsewhere(seed: int, temperature: float) -> None:
    logits = draw(seed)
    equal = kd_loss(logits, torch.softmax(logits / temperature, 1), temperature=temperature)
    assert abs(float(equal)) < 1e-6 * max(1.0, temperature**2)
    other = torch.softmax(draw(seed + 1) / temperature, 1)
    assert float(kd_loss(logits, other, temperature=temperature)) > 0.01


def test_near_convergence_rounding_makes_no_loss_negative_and_hides_no_gradient() -> None:
    """At T = 100 a rounding of 1e-7 is multiplied by 10,000."""
    unrounded, losses = [], []
    for seed in range(50):
        logits = draw(seed, classes=10, scale=1.0)
        target = torch.softmax(logits / 100, 1)
        student = (logits + 1e-3 * draw(seed + 1, classes=10, scale=1.0)).requires_grad_()
        log_student = torch.log_softmax(student.detach() / 100, 1)
        formula = (torch.special.xlogy(target, target) - target * log_student).sum(1).mean()
        unrounded.append(float(formula))
        loss = kd_loss(student, target, temperature=100.0)
        loss.backward()
        losses.append(loss.item())
        assert student.grad is not None
        assert float(student.grad.abs().max()) > 0
    assert min(unrounded) < 0  # else this test shows nothing
    assert min(losses) == 0


@given(
    st.integers(0, 10_000),
    st.sampled_from(TEMPERATURES),
    st.floats(-50, 50, width=32),
)
def test_a_shift_of_the_logits_changes_nothing(seed: int, temperature: float, shift: float) -> None:
    logits, target = draw(seed), torch.softmax(draw(seed + 1), 1)
    labels = torch.arange(6) % 5
    shifts = torch.linspace(-1, 1, 6)[:, None] * shift
    first = kd_loss(logits, target, labels, temperature=temperature, weight=0.5)
    second = kd_loss(logits + shifts, target, labels, temperature=temperature, weight=0.5)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_half_precision_logits_are_computed_in_fp32() -> None:
    assert kd_loss(LOGITS.bfloat16(), TARGET).dtype == torch.float32


def golden_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Return fixed student and teacher logits, and labels, that need no random generator."""
    grid = torch.arange(20, dtype=torch.float64).reshape(4, 5)
    return torch.sin(grid) * 3, torch.cos(grid * 0.7) * 4, torch.tensor([0, 3, 1, 4])


def test_golden_values(golden: Path) -> None:
    """The values were computed once in float64 by NumPy, from the formula itself."""
    student, teacher, labels = golden_inputs()
    cases = json.loads((golden / "losses.json").read_text())
    assert len(cases) == 8
    for case in cases:
        target = torch.softmax(teacher / case["temperature"], 1).float()
        found = kd_loss(
            student.float(),
            target,
            labels if case["labelled"] else None,
            temperature=case["temperature"],
            weight=case["weight"],
        )
        assert float(found) == pytest.approx(case["loss"], rel=2e-6), case
