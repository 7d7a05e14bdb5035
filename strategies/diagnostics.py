"""What a run changed: what was learnt and forgotten, and whether any silo lost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedkd.data.images import Images
from fedkd.models.state import State
from fedkd.results.diagnostics import (
    accuracy_for_mix,
    complementary_knowledge,
    flips,
    pairwise_agreement,
)
from fedkd.training.evaluate import predict
from strategies.context import RunContext
from strategies.run_state import Baseline, RunState, Start


def predict_baseline(context: RunContext, start: Start) -> Baseline | None:
    """Predict the server's test examples, if any, by the models that a run begins with.

    Args:
        context: the run.
        start: of the global model.
    """
    test = context.test
    if test is None or not len(test):
        return None
    by_teacher: dict[str, Tensor] = {}
    if start.teachers is not None and start.teachers.have_models:
        # Every arm of a seed asks this of the same teachers, and none of it is timed.
        logits = start.teachers.cached_in(context.cache, context.study.model.files).predict(test)
        silos = [teacher.silo for teacher in start.teachers.members]
        by_teacher = dict(zip(silos, logits.argmax(2).int(), strict=True))
    return Baseline(
        _predict(start.state, context, test),
        by_teacher,
        None if start.student is None else _predict(start.student, context, test),
    )


def diagnose(context: RunContext, state: RunState) -> dict[str, Any]:
    """Compare a run's end with its beginning on the server's test examples; empty without examples.

    Args:
        context: the run.
        state: in which the run ended.

    Returns:
        ``student``: flips by consolidation, from the student's start to its end. ``rounds``: flips
        by the rounds. ``teachers``: accuracy of each, and its complementary knowledge for the
        student's start. ``agreement``: mean share of examples on which two teachers agree.
        ``silos``: accuracy on each silo's own mix of classes, of its own model (``before``) and
        of the global model at the end (``after``), and flips between the two on its own classes.
        What the run has no models or class counts for is left out or None.
    """
    test, baseline = context.test, state.baseline
    if test is None or baseline is None:
        return {}
    classes = context.shape.num_classes
    start, student = baseline.start, baseline.student
    final = _predict(state.model, context, test)
    figures: dict[str, Any] = {"rounds": flips(start, final, test.labels, classes)}
    if student is not None:
        figures["student"] = flips(student, start, test.labels, classes)
    if baseline.teachers:
        figures["agreement"] = pairwise_agreement(torch.stack(list(baseline.teachers.values())))
        figures["teachers"] = [
            {
                "silo": silo,
                "accuracy": round(float((predicted == test.labels).double().mean()), 6),
                "complementary": None
                if student is None
                else complementary_knowledge(student, predicted, test.labels),
            }
            for silo, predicted in baseline.teachers.items()
        ]
    figures["silos"] = [
        {
            "silo": member.name,
            "before": None if own is None else accuracy_for_mix(own, test.labels, counts),
            "after": accuracy_for_mix(final, test.labels, counts),
            # On the silo's own classes, against its own model: what the federation changed.
            "flips": None if own is None else _own_flips(own, final, test, counts),
        }
        for member in state.members
        for own in [baseline.teachers.get(member.name)]
        if (counts := member.known.class_counts)
    ]
    return figures


def _predict(state: State, context: RunContext, data: Images) -> Tensor:
    """Return the classes that a model predicts, int32 ``[N]``."""
    model = context.model("examination")
    model.load_state_dict(state)
    return predict(model, data, compute=context.compute).argmax(1).int()


def _own_flips(
    before: Tensor, after: Tensor, test: Images, counts: tuple[int, ...]
) -> dict[str, float] | None:
    """Flips on the test examples of the silo's own classes."""
    own = torch.tensor(counts)[test.labels] > 0
    if not own.any():
        return None
    of_own = flips(before[own], after[own], test.labels[own], len(counts))
    return {key: of_own[key] for key in ("gain", "forgetting", "delta")}
