"""One silo sends a finite and absurd model: no start is made of it, and the results name it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict

from fedkd.errors import FedKDError
from fedkd.messages import keys
from fedkd.models.state import State

HOSTILE = "silo-1"
STUDY = {
    "rounds/max": 1,
    "partition": {"scheme": "iid", "silos": 3},
    "pretraining/epochs": 10,
    "data/train_size": 300,
    "arms/average": {"start": "average"},
    "arms/best": {"start": "best"},
    "arms/fedkd/consolidation": {"weighting": "equal", "epochs": 5},
    "arms/fedkd-features": {
        "start": "consolidated",
        "consolidation": {
            "weighting": "familiarity",
            "familiarity": {"basis": "features", "dims": 10},
            "epochs": 5,
        },
    },
}


def sending(make: Any, *silos: str) -> Any:
    """Return a tampering by which some silos send other weights than their own."""

    def tamper(silo: str, question: Message, reply: Message) -> Message:
        if silo not in (silos or (HOSTILE,)) or question.metadata.message_type != keys.TEACHER:
            return reply
        if question.content.config_records[keys.CONFIG][keys.MODE] == keys.MODE_NONE:
            return reply
        arrays = reply.content.array_records[keys.TEACHER_RECORD]
        bad = {key: Array(make(array.numpy())) for key, array in arrays.items()}
        content = RecordDict({**reply.content, keys.TEACHER_RECORD: ArrayRecord(bad)})
        return Message(content, reply_to=question)

    return tamper


def filled(value: float) -> Any:
    return lambda array: np.full_like(array, value)


def away(silo: str, question: Message, reply: Message) -> Message | None:
    """Let the hostile silo answer no question about its model."""
    gone = silo == HOSTILE and question.metadata.message_type == keys.TEACHER
    return None if gone else reply


@pytest.fixture(scope="module")
def start_without(run_arm: Any, make_study: Any) -> Callable[[str], State]:
    """Return a function that gives an arm's start where the hostile silo answers nothing."""

    @cache
    def start_without(arm: str) -> State:
        study = make_study({**STUDY, "rounds/timeout": 0.5})
        state: State = run_arm(study, arm, tamper=away).start.state
        return state

    return start_without


@pytest.mark.parametrize("value", [1e4, -1e4, 0.0, 1e17])
@pytest.mark.parametrize("arm", ["average", "best", "fedkd", "fedkd-features"])
def test_the_start_is_as_if_the_silo_had_sent_no_model(
    arm: str, value: float, run_arm: Any, make_study: Any, start_without: Any
) -> None:
    ran = run_arm(make_study(STUDY), arm, tamper=sending(filled(value)))
    assert list(ran.run.notes["implausible"]) == [HOSTILE]
    assert HOSTILE in ran.run.notes["warning"]
    assert ran.refused == []
    for key, tensor in start_without(arm).items():
        assert torch.equal(ran.start.state[key], tensor), key
    if "mean_weights" in ran.run.notes:
        assert list(ran.run.notes["mean_weights"]) == ["silo-0", "silo-2"]


def test_where_all_are_absurd_the_run_ends_in_a_sentence(run_arm: Any, make_study: Any) -> None:
    everyone = sending(filled(1e4), "silo-0", "silo-1", "silo-2")
    sentence = r"arms\.average: no silo's pre-trained model is plausible \(silo-0: its logits"
    with pytest.raises(FedKDError, match=sentence):
        run_arm(make_study(STUDY), "average", tamper=everyone)


def test_honest_teachers_are_all_kept(run_arm: Any, make_study: Any) -> None:
    for arm in ("average", "fedkd"):
        assert "implausible" not in run_arm(make_study(STUDY), arm).run.notes
