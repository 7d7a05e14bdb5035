"""Look back on a finished run: what was learnt and forgotten, and whether any silo lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedkd.data.images import Images
from fedkd.distillation.consolidate import Consolidated
from fedkd.distillation.teachers import Teachers
from fedkd.messages.validate import read_class_counts
from fedkd.models.state import State
from fedkd.results.diagnostics import accuracy_for_mix, complementary_knowledge, flips
from fedkd.training.evaluate import predict
from strategies.context import RunContext
from strategies.exchange import Member


@dataclass(frozen=True)
class Beginning:
    """What a run's end is judged by: the classes that models gave the server's test images.

    Attributes:
        begun: by the global model before round 1, int32 ``[N]``.
        taught: by every teacher whose model the server has, by name of its silo, int32 ``[N]``.
        student: by the student before it learnt; None where nobody did.
    """

    begun: Tensor
    taught: Mapping[str, Tensor]
    student: Tensor | None


def look_at_start(
    context: RunContext, start: State, teachers: Teachers | None, consolidated: Consolidated | None
) -> Beginning | None:
    """Remember what a run begins with; None where the server has no test images.

    Args:
        context: the run.
        start: the global model before round 1.
        teachers: what was collected from the silos, if anything was.
        consolidated: the student, if there is one.
    """
    test = context.test
    if test is None or not len(test):
        return None
    taught: dict[str, Tensor] = {}
    if teachers is not None and teachers.have_models:
        # Every arm of a seed asks this of the same teachers, and none of it is timed.
        said = (
            teachers.cached_in(context.cache, context.study.model.files)
            .predict(test.images)
            .argmax(2)
            .int()
        )
        taught = {t.silo: classes for t, classes in zip(teachers.members, said, strict=True)}
    return Beginning(
        _classes(start, context, test),
        taught,
        None if consolidated is None else _classes(consolidated.start, context, test),
    )


def examine(
    context: RunContext, beginning: Beginning | None, roster: Iterable[Member], final: State
) -> dict[str, Any]:
    """Measure a run on the server's test images; empty where it has none.

    Args:
        context: the run.
        beginning: what it began with.
        roster: the silos that introduced themselves.
        final: the global model at the end.

    Returns:
        ``student``: flips by consolidation, from the student's start to its end. ``rounds``: flips
        by the rounds. ``teachers``: accuracy of each, and its complementary knowledge for the
        student's start. ``agreement``: mean share of images on which two teachers agree.
        ``silos``: accuracy on each silo's own mix of classes, of its own model (``before``) and
        of the global model at the end (``after``), and flips between the two on its own classes.
        What the run has no models or class counts for is left out or None.
    """
    test = context.test
    if test is None or beginning is None:
        return {}
    classes = context.shape.num_classes
    begun, before, said = beginning.begun, beginning.student, beginning.taught
    ended = _classes(final, context, test)
    found: dict[str, Any] = {"rounds": flips(begun, ended, test.labels, classes)}
    if before is not None:
        found["student"] = flips(before, begun, test.labels, classes)
    if said:
        found["agreement"] = _agreement(torch.stack(list(said.values())))
        found["teachers"] = [
            {
                "silo": name,
                "accuracy": round(float((predicted == test.labels).double().mean()), 6),
                "complementary": None
                if before is None
                else complementary_knowledge(before, predicted, test.labels),
            }
            for name, predicted in said.items()
        ]
    found["silos"] = [
        {
            "silo": member.name,
            "before": None if own is None else accuracy_for_mix(own, test.labels, counts),
            "after": accuracy_for_mix(ended, test.labels, counts),
            # Against the silo's own classes and model: what the federation took and gave.
            "flips": None if own is None else _own_flips(own, ended, test, counts),
        }
        for member in roster
        for own in [said.get(member.name)]
        if (counts := read_class_counts(member.info, classes))
    ]
    return found


def _classes(state: State, context: RunContext, data: Images) -> Tensor:
    model = context.model("examination")
    model.load_state_dict(state)
    return predict(model, data.images, compute=context.compute).argmax(1).int()


def _own_flips(
    before: Tensor, after: Tensor, test: Images, counts: tuple[int, ...]
) -> dict[str, float] | None:
    """Flips on the test images of the silo's own classes."""
    own = torch.tensor(counts)[test.labels] > 0
    if not own.any():
        return None
    found = flips(before[own], after[own], test.labels[own], len(counts))
    return {key: found[key] for key in ("gain", "forgetting", "delta")}


def _agreement(votes: Tensor) -> float | None:
    """Mean over pairs of teachers, ``[M, N]``, of the share of images given the same class."""
    teachers = len(votes)
    if teachers < 2:
        return None
    same = sum(
        float((votes[m] == votes[m + 1 :]).double().mean(1).sum()) for m in range(teachers - 1)
    )
    return round(same / (teachers * (teachers - 1) / 2), 6)
