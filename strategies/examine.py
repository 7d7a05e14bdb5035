"""Look back on a finished run: what was learnt and forgotten, and whether any silo lost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedkd.checkpoint import State
from fedkd.data.images import Images
from fedkd.instruments import accuracy_for_mix, complementary_knowledge, flips
from fedkd.training import predict
from strategies.fedavg import SiloFedAvg
from strategies.gate import read_class_counts
from strategies.setting import Setting


def examine(strategy: SiloFedAvg, final: State) -> dict[str, Any]:
    """Measure a run on the server's test images; empty where it has none.

    Args:
        strategy: after its last round.
        final: the global model at the end.

    Returns:
        ``student``: flips by consolidation, from the student's start to its end. ``rounds``: flips
        by the rounds. ``teachers``: accuracy of each, and its complementary knowledge for the
        student's start. ``agreement``: mean share of images on which two teachers agree.
        ``silos``: accuracy on each silo's own mix of classes, of its own model (``before``) and
        of the global model at the end (``after``), and flips between the two on its own classes.
        What the run has no models or class counts for is left out or None.
    """
    setting = strategy.setting
    test = setting.test
    if test is None or not len(test):
        return {}
    classes = setting.shape.num_classes
    begun = _logits(strategy.start_state, setting, test)
    ended = _logits(final, setting, test)
    found: dict[str, Any] = {"rounds": flips(begun, ended, test.labels, classes)}
    taught = strategy.teachers
    said: dict[str, Tensor] = {}
    if taught is not None and taught.have_models:
        names = [teacher.silo for teacher in taught.members]
        # Every arm of a seed asks this of the same teachers, and none of it is timed.
        kept = taught.kept_in(setting.cache)
        said = dict(zip(names, kept.predict(test.images), strict=True))
    before = None
    if strategy.consolidated is not None:
        before = _logits(strategy.consolidated.start, setting, test)
        found["student"] = flips(before, begun, test.labels, classes)
    if said:
        found["agreement"] = _agreement(torch.stack(list(said.values())))
        found["teachers"] = [
            {
                "silo": name,
                "accuracy": round(float((logits.argmax(1) == test.labels).double().mean()), 6),
                "complementary": None
                if before is None
                else complementary_knowledge(before, logits, test.labels),
            }
            for name, logits in said.items()
        ]
    found["silos"] = [
        {
            "silo": name,
            "before": accuracy_for_mix(said[name], test.labels, counts) if name in said else None,
            "after": accuracy_for_mix(ended, test.labels, counts),
            # Against the silo's own classes and model: what the federation took and gave.
            "flips": _own_flips(said[name], ended, test, counts) if name in said else None,
        }
        for name, member in strategy.roster.items()
        if (counts := read_class_counts(member.info, classes))
    ]
    return found


def _logits(state: State, setting: Setting, data: Images) -> Tensor:
    model = setting.model("examination")
    model.load_state_dict(state)
    return predict(model, data.images, compute=setting.compute)


def _own_flips(
    before: Tensor, after: Tensor, test: Images, counts: tuple[int, ...]
) -> dict[str, float] | None:
    """Flips on the test images of the silo's own classes."""
    own = torch.tensor(counts)[test.labels] > 0
    if not own.any():
        return None
    found = flips(before[own], after[own], test.labels[own], len(counts))
    return {key: found[key] for key in ("gain", "forgetting", "delta")}


def _agreement(logits: Tensor) -> float | None:
    """Mean over pairs of teachers of the share of images to which both give the same class."""
    votes = logits.argmax(2)
    teachers = len(votes)
    if teachers < 2:
        return None
    same = sum(
        float((votes[m] == votes[m + 1 :]).double().mean(1).sum()) for m in range(teachers - 1)
    )
    return round(same / (teachers * (teachers - 1) / 2), 6)
