"""Gain, forgetting and complementary knowledge against counts by hand, and what must hold."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedkd.results.diagnostics import accuracy_for_mix, complementary_knowledge, flips

LABELS = torch.tensor([0, 0, 0, 1, 1])
BEFORE = torch.tensor([0, 1, 1, 1, 0])
AFTER = torch.tensor([1, 0, 0, 1, 0])


def test_flips_by_hand() -> None:
    found = flips(BEFORE, AFTER, LABELS, 3)
    assert (found["gain"], found["forgetting"], found["delta"]) == (0.4, 0.2, 0.2)
    assert found["per_class"]["gain"] == [pytest.approx(2 / 3, abs=1e-6), 0.0, None]
    assert found["per_class"]["forgetting"] == [pytest.approx(1 / 3, abs=1e-6), 0.0, None]


def test_complementary_knowledge_by_hand() -> None:
    """The student errs on 1, 2 and 4; of these the teacher gets 1 and 2 right."""
    assert complementary_knowledge(BEFORE, AFTER, LABELS) == 0.4
    assert complementary_knowledge(BEFORE, BEFORE, LABELS) == 0.0


def test_accuracy_for_a_silos_own_mix() -> None:
    """Class 0 is right in one of three, class 1 in one of two; the silo has three to one."""
    expected = 0.75 / 3 + 0.25 / 2
    assert accuracy_for_mix(BEFORE, LABELS, [3, 1, 0]) == pytest.approx(expected, abs=1e-6)
    assert accuracy_for_mix(BEFORE, LABELS, [0, 0, 5]) is None


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 6))
def test_gain_less_forgetting_is_the_change_of_accuracy(seed: int, size: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels, before, after = torch.randint(0, classes, (3, size), generator=generator)
    found = flips(before, after, labels, classes)
    change = float((after == labels).double().mean() - (before == labels).double().mean())
    assert found["delta"] == pytest.approx(change, abs=2e-6)
    assert found["gain"] == complementary_knowledge(before, after, labels)
    back = flips(after, before, labels, classes)
    assert (back["gain"], back["forgetting"]) == (found["forgetting"], found["gain"])


def test_logits_do_as_well_as_classes() -> None:
    one_hot = torch.nn.functional.one_hot(BEFORE, 3).float()
    assert flips(one_hot, AFTER, LABELS, 3) == flips(BEFORE, AFTER, LABELS, 3)
