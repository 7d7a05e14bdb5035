"""The figures that describe a federation, against cases whose answer is plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedkd.federation.describe import describe, label_skew
from fedkd.federation.federation import Federation


def test_equal_mixes_have_no_skew_whatever_their_sizes() -> None:
    counts = torch.tensor([[10, 20], [1, 2]], dtype=torch.float64)
    assert label_skew(counts) == pytest.approx(0.0, abs=1e-7)


def test_two_silos_of_one_class_each_by_hand() -> None:
    """Mix (1, 0) against (0.5, 0.5): JS = H(3/4) - H(1/2) / 2 = 0.8113 - 0.5 bits."""
    counts = torch.tensor([[5, 0], [0, 5]], dtype=torch.float64)
    assert label_skew(counts) == pytest.approx(0.311278**0.5, rel=1e-5)


def test_a_simulated_federation_is_described(make_study: Any, tmp_path: Path) -> None:
    found = describe(Federation.load(make_study({}), 0, tmp_path))
    assert found["silos"] == 3
    assert found["images"] == 150
    assert 0 < found["label_skew"] < 1
    assert found["size_skew"] > 0
    assert found["native"]
    assert not found["labelled"]
    assert found["gap"] == pytest.approx(found["best"] - found["average"], abs=1e-4)
    assert found["teachers"] <= found["best"]


def test_without_validation_data_accuracies_are_unknown(make_study: Any, tmp_path: Path) -> None:
    found = describe(Federation.load(make_study({"data/validation": 0}), 0, tmp_path))
    assert {found[key] for key in ("teachers", "best", "average", "gap")} == {None}
