"""Objectives: how a student is scored while settings are searched, with labels and without.

Test data are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedkd.config import Study
from fedkd.data.images import Images
from fedkd.errors import UserError
from fedkd.federation.metric_check import check_metric_is_defined
from fedkd.federation.simulated_teachers import SimulatedTeachers
from fedkd.registry import METRICS, MetricName, metric_key
from fedkd.training.compute import Compute
from fedkd.training.evaluate import all_metrics, predict
from fedkd.util.correlation import spearman
from fedkd.util.seeding import torch_generator

Judge = Literal["validation", "transfer-labels", "committee"]

HELD_OUT = 0.2
"""Share of the transfer set that scores students without validation data. Ours."""
LEAST_HELD_OUT = 10

_SAYS: dict[Judge, str] = {
    "validation": "mean {metric} on the labelled validation data",
    "transfer-labels": "mean {metric} on a labelled fifth of the transfer set that is held out",
    "committee": "expected accuracy on a fifth of the transfer set that is held out, if all "
    "label-free weightings of the teachers together were right about it; no label is used",
}


def describe_judge(judge: Judge, metric: MetricName) -> str:
    """Say what scores are; without labels they are expected accuracies, whatever the metric."""
    return _SAYS[judge].format(metric=METRICS[metric])


@dataclass(frozen=True)
class Objective:
    """Evaluation examples, with a target distribution over classes for each.

    Attributes:
        images: examples ``[N, ...]``.
        target: ``[N, K]``, rows summing to one; with labels, one-hot.
        rows: which of the transfer examples the student may learn from; None for all.
        metric: of the score, where the target is of labels.
    """

    images: Tensor
    target: Tensor
    rows: Tensor | None = None
    metric: str = "accuracy"

    def score(self, student: nn.Module, compute: Compute) -> float:
        """Return the mean target of the predicted classes, in [0, 1]; with labels, the metric.

        A metric that is not defined for a student, such as one with infinite logits, is 0.
        """
        logits = predict(student, self.images, compute=compute)
        if self.metric != "accuracy":
            values = all_metrics(logits, self.target.argmax(1)).values
            return values[metric_key(self.metric)] or 0.0
        predicted = logits.argmax(1)
        return float(self.target.double().gather(1, predicted[:, None]).mean())


def choose_judge(study: Study, *, proxy: bool) -> Judge:
    """Return the best objective that the study has; if ``proxy``, one without validation data."""
    if study.data.validation > 0 and not proxy:
        return "validation"
    return "transfer-labels" if study.data.transfer.labelled else "committee"


def make_objective(teachers: SimulatedTeachers, judge: Judge) -> Objective:
    """Prepare the objective of one seed.

    Raises:
        UserError: the transfer set is too small to hold a part of it out, or the labels do not
            define the study's metric.
    """
    if judge == "validation":
        validation = teachers.federation.split.validation
        return _labelled(teachers, validation, "validation examples")
    learnt, held_out = split_transfer(len(teachers.transfer), teachers.federation.seed)
    if judge == "transfer-labels":
        held = teachers.transfer.take(held_out)
        return replace(_labelled(teachers, held, "held-out transfer examples"), rows=learnt)
    return Objective(teachers.transfer.images[held_out], committee(teachers)[held_out], learnt)


def split_transfer(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return which transfer examples a student learns from and which score it, ascending.

    Raises:
        UserError: there are too few examples.
    """
    held_out = round(HELD_OUT * size)
    if held_out < LEAST_HELD_OUT:
        raise UserError(
            f"data.transfer.size: {size} examples are too few to hold out a fifth for tuning "
            f"without validation data; {round(LEAST_HELD_OUT / HELD_OUT)} are needed, or set "
            "data.validation"
        )
    order = torch.randperm(size, generator=torch_generator(seed, "tuning-held-out"))
    return order[held_out:].sort().values, order[:held_out].sort().values


def committee(teachers: SimulatedTeachers) -> Tensor:
    """Return the mean prediction of all label-free weightings on the transfer set, ``[N, K]``.

    A score without labels must mean the same in every trial. Agreement with the trial's own
    ensemble does not: a poor ensemble may be easier to imitate. So all trials have one target: the
    mean over weightings of the teachers' pooled probabilities at temperature 1, whatever the
    trial's own weighting, pooling and temperature. Only the student's most probable class counts,
    so that a sharper student gains nothing. With ``teachers: densities`` the target is that of the
    densities.
    """
    predictions = []
    for weighting in label_free_weightings(teachers):
        settings = teachers.own.model_copy(
            update={"weighting": weighting, "pooling": "probs", "temperature": 1.0}
        )
        predictions.append(teachers.ensemble(settings).target.double())
    return torch.stack(predictions).mean(0)


def label_free_weightings(teachers: SimulatedTeachers) -> list[str]:
    """Return the weightings that can be tried here and need no label."""
    if teachers.own.rests_on_densities:
        return ["familiarity"]
    known = ["equal", "size", "confidence", "class-prior", "consensus"]
    return [*known, "familiarity"] if teachers.has_basis() else known


def agreement(
    scores: Sequence[float], accuracies: Sequence[float]
) -> dict[str, float | int | None]:
    """Measure how well choosing by scores without validation labels does, over the same trials.

    Returns:
        ``trials``; ``spearman``, the rank correlation, None where either is constant or there are
        fewer than three trials; ``regret``, by how much the accuracy of the choice by scores
        falls short of the best of the trials.
    """
    if not scores:
        return {"trials": 0, "spearman": None, "regret": None}
    chosen = max(range(len(scores)), key=lambda index: (scores[index], -index))
    return {
        "trials": len(scores),
        "spearman": spearman(scores, accuracies),
        "regret": round(max(accuracies) - accuracies[chosen], 6),
    }


def _labelled(teachers: SimulatedTeachers, data: Images, what: str) -> Objective:
    """Return an objective on labelled examples; ``what`` names them."""
    federation = teachers.federation
    metric, num_classes = federation.study.metric, federation.shape.num_classes
    check_metric_is_defined(metric, data.labels, num_classes, federation.split.classes, what)
    return Objective(data.images, functional.one_hot(data.labels, num_classes), metric=metric)
