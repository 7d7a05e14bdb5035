"""Metrics are those of scikit-learn; what labels do not define is None or refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    roc_auc_score,
)

from fedkd.config import Study
from fedkd.errors import UserError
from fedkd.federation.federation import Federation
from fedkd.federation.metric_check import check_metric_is_defined, constant_metrics
from fedkd.federation.simulated_teachers import SimulatedTeachers
from fedkd.registry import METRICS, metric_key
from fedkd.training.class_sums import ClassSums
from fedkd.training.evaluate import all_metrics
from fedkd.tuning.objective import describe_judge, make_objective


def draw(seed: int, size: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw logits, of which some are the same for several images, and labels of every class."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, classes, generator=generator) * 2
    logits = logits[torch.randint(max(2, size // 2), (size,), generator=generator)]
    labels = torch.randint(classes, (size,), generator=generator)
    labels[:classes] = torch.arange(classes)
    return logits, labels


@given(st.integers(0, 10_000), st.integers(7, 60), st.integers(3, 7))
def test_several_classes_agree_with_scikit_learn(seed: int, size: int, classes: int) -> None:
    logits, labels = draw(seed, size, classes)
    found = all_metrics(logits, labels).values
    shares, predicted = logits.double().softmax(1).numpy(), logits.argmax(1)
    one_hot = np.eye(classes)[labels]
    expected = {
        "accuracy": float((predicted == labels).double().mean()),
        "balanced_accuracy": balanced_accuracy_score(labels, predicted),
        "macro_f1": f1_score(labels, predicted, average="macro"),
        "auroc": roc_auc_score(labels, shares, multi_class="ovr", average="macro"),
        "average_precision": average_precision_score(one_hot, shares, average="macro"),
    }
    assert list(found) == list(map(metric_key, METRICS))
    assert found == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 10_000), st.integers(2, 60))
def test_of_two_classes_the_second_is_positive(seed: int, size: int) -> None:
    logits, labels = draw(seed, size, 2)
    found = all_metrics(logits, labels).values
    score = (logits[:, 1] - logits[:, 0]).numpy()
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, score), abs=1e-12)
    expected = average_precision_score(labels, score)
    assert found["average_precision"] == pytest.approx(expected, abs=1e-12)


def test_two_classes_rank_beyond_the_precision_of_probabilities() -> None:
    logits = torch.tensor([[0.0, 50.0], [0.0, 60.0], [0.0, 70.0]])
    assert all_metrics(logits, torch.tensor([0, 1, 1])).values["auroc"] == 1


@pytest.mark.parametrize("spoil", ["class absent", "nan", "infinite"])
def test_what_cannot_be_ranked_is_none(spoil: str) -> None:
    logits, labels = draw(0, 20, 3)
    if spoil == "class absent":
        labels[labels == 2] = 1
    else:
        logits[3, 1] = math.nan if spoil == "nan" else math.inf
    values = all_metrics(logits, labels).values
    assert values["auroc"] is values["average_precision"] is None
    assert None not in (values["accuracy"], values["balanced_accuracy"], values["macro_f1"])


def test_sums_of_two_data_sets_are_those_of_both_together() -> None:
    logits, labels = draw(4, 50, 5)
    predicted = logits.argmax(1)
    parts = [ClassSums.of(predicted[rows], labels[rows], 5) for rows in (slice(20), slice(20, 50))]
    assert parts[0] + parts[1] == ClassSums.of(predicted, labels, 5)


@given(st.integers(0, 10_000), st.integers(4, 40), st.integers(2, 4))
def test_no_constant_prediction_is_better_than_what_is_told(
    seed: int, size: int, classes: int
) -> None:
    _, labels = draw(seed, size, classes)
    by_class = []
    for label in range(classes):
        logits = torch.zeros(size, classes)
        logits[:, label] = 1
        by_class.append(all_metrics(logits, labels).values)
    told = constant_metrics(labels, classes)
    for key, value in told.items():
        assert value == pytest.approx(max(values[key] or 0 for values in by_class), abs=1e-12)


def test_without_images_nothing_is_told() -> None:
    assert set(constant_metrics(torch.tensor([], dtype=torch.int64), 3).values()) == {None}


def test_a_metric_that_labels_do_not_define_is_refused() -> None:
    labels = torch.tensor([0, 0, 2])
    for metric in ("accuracy", "balanced-accuracy", "macro-f1"):
        check_metric_is_defined(metric, labels, 3, (), "test images")
    with pytest.raises(UserError, match=r"metric: auroc .* none of class b; use balanced-accuracy"):
        check_metric_is_defined("auroc", labels, 3, ("a", "b", "c"), "test images")
    with pytest.raises(UserError, match="none of class 1; use"):
        check_metric_is_defined("average-precision", labels, 3, (), "validation images")


def test_tuning_scores_students_by_the_metric(make_study: Any, cache_dir: Any) -> None:
    class Fixed(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :10]

    for metric in METRICS:
        study: Study = make_study({"metric": metric, "data/validation": 0.3})
        federation = Federation.load(study, 0, cache_dir)
        objective = make_objective(SimulatedTeachers(federation, "fedkd"), "validation")
        validation = federation.split.validation
        logits = validation.images.float().div(255).flatten(1)[:, :10]
        expected = all_metrics(logits, validation.labels).values[metric_key(metric)]
        assert objective.score(Fixed(), federation.compute) == pytest.approx(expected)
    assert describe_judge("validation", "auroc") == "mean AUROC on the labelled validation data"
    assert "expected accuracy" in describe_judge("committee", "auroc")
