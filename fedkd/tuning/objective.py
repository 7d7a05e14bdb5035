"""Exams: how a student is marked while settings are searched, with labels and without.

Test data have no place here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedkd.config import Study
from fedkd.errors import UserError
from fedkd.federation.simulated_teachers import SimulatedTeachers
from fedkd.training.compute import Compute
from fedkd.training.evaluate import predict
from fedkd.util.correlation import spearman
from fedkd.util.seeding import torch_generator

Judge = Literal["validation", "transfer-labels", "committee"]

HELD_OUT = 0.2
"""Share of the transfer set that marks students where no validation data do. Ours."""
LEAST_HELD_OUT = 10

SAYS: dict[Judge, str] = {
    "validation": "mean accuracy on the labelled validation data",
    "transfer-labels": "mean accuracy on a labelled fifth of the transfer set that is held out",
    "committee": "expected accuracy on a fifth of the transfer set that is held out, if all "
    "label-free weightings of the teachers together were right about it; no label is seen",
}


@dataclass(frozen=True)
class Objective:
    """Images, and what each class is worth as an answer.

    Attributes:
        images: uint8 ``[N, C, H, W]``.
        worth: ``[N, K]``, rows summing to one: the label's class is worth 1, or each class as
            much as it is probable.
        rows: which of the transfer images the student may learn from; None for all.
    """

    images: Tensor
    worth: Tensor
    rows: Tensor | None = None

    def mark(self, student: nn.Module, compute: Compute) -> float:
        """Return the mean worth of the student's answers, in [0, 1]; with labels, accuracy."""
        answers = predict(student, self.images, compute=compute).argmax(1)
        return float(self.worth.double().gather(1, answers[:, None]).mean())


def choose_judge(study: Study, *, proxy: bool) -> Judge:
    """Return the best judge that the study has, or without validation data if ``proxy``."""
    if study.data.validation > 0 and not proxy:
        return "validation"
    return "transfer-labels" if study.data.transfer.labelled else "committee"


def make_objective(room: SimulatedTeachers, judge: Judge) -> Objective:
    """Prepare the objective of one seed.

    Raises:
        UserError: the transfer set is too small to hold a part of it out.
    """
    if judge == "validation":
        validation = room.federation.split.validation
        return Objective(validation.images, _certain(validation.labels, room))
    learnt, held_out = split_transfer(len(room.transfer), room.federation.seed)
    images = room.transfer.images[held_out]
    if judge == "transfer-labels":
        return Objective(images, _certain(room.transfer.labels[held_out], room), learnt)
    return Objective(images, committee(room)[held_out], learnt)


def split_transfer(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return which transfer images a student learns from and which mark it, ascending.

    Raises:
        UserError: there are too few images.
    """
    held_out = round(HELD_OUT * size)
    if held_out < LEAST_HELD_OUT:
        raise UserError(
            f"data.transfer.size: {size} images are too few to hold out a fifth for tuning "
            f"without validation data; {round(LEAST_HELD_OUT / HELD_OUT)} are needed, or set "
            "data.validation"
        )
    order = torch.randperm(size, generator=torch_generator(seed, "tuning-held-out"))
    return order[held_out:].sort().values, order[:held_out].sort().values


def committee(room: SimulatedTeachers) -> Tensor:
    """Return the mean opinion of every label-free weighting on the transfer set, ``[N, K]``.

    A mark without labels must mean the same in every trial. Agreement with the trial's own
    ensemble does not: a poor ensemble may be easier to copy. So all trials answer to one
    committee: the mean over weightings of the teachers' pooled probabilities at temperature 1,
    whatever the trial's own weighting, pooling and temperature. Only the student's most probable
    class counts, so that a sharper student gains nothing. Where densities alone teach, they
    alone are the committee.
    """
    opinions = []
    for weighting in label_free_weightings(room):
        settings = room.own.model_copy(
            update={"weighting": weighting, "pooling": "probs", "temperature": 1.0}
        )
        opinions.append(room.ensemble(settings).target.double())
    return torch.stack(opinions).mean(0)


def label_free_weightings(room: SimulatedTeachers) -> list[str]:
    """Return the weightings that can be tried here and need no label."""
    if room.own.rests_on_densities:
        return ["familiarity"]
    known = ["equal", "size", "confidence", "class-prior", "consensus"]
    return [*known, "familiarity"] if room.has_basis() else known


def agreement(
    scores: Sequence[float], accuracies: Sequence[float]
) -> dict[str, float | int | None]:
    """Say how well choosing by marks without validation labels does, over the same trials.

    Args:
        scores: of each trial's students.
        accuracies: of the same students on the labelled validation data.

    Returns:
        ``trials``; ``spearman``, the rank correlation, None where either is constant or there are
        fewer than three trials; ``regret``, by how much the choice by marks falls short of the
        best accuracy that any of the trials has.
    """
    if not scores:
        return {"trials": 0, "spearman": None, "regret": None}
    chosen = max(range(len(scores)), key=lambda index: (scores[index], -index))
    return {
        "trials": len(scores),
        "spearman": spearman(scores, accuracies),
        "regret": round(max(accuracies) - accuracies[chosen], 6),
    }


def _certain(labels: Tensor, room: SimulatedTeachers) -> Tensor:
    return functional.one_hot(labels, room.federation.shape.num_classes)
