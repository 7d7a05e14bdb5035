"""Silos that fail again and again are not asked any more; robust rounds bear those that lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict

from fedkd.messages import keys
from fedkd.models.state import State
from fedkd.training.aggregation import aggregate
from strategies.updates import RoundModels, server_update

FOUR = {"partition": {"scheme": "iid", "silos": 4, "min_size": 12}, "data/train_size": 160}


class Failing:
    """A silo that fails in some rounds, and a count of how often it was asked."""

    def __init__(self, silo: str, rounds: tuple[int, ...], kind: str = keys.TRAIN) -> None:
        self.silo, self.rounds, self.kind = silo, rounds, kind
        self.asked: list[int] = []

    def __call__(self, silo: str, question: Message, reply: Message) -> Message:
        if silo != self.silo or question.metadata.message_type != self.kind:
            return reply
        number = int(str(question.content.config_records[keys.CONFIG][keys.ROUND]))
        self.asked.append(number)
        return Message(Error(2, "away"), reply_to=question) if number in self.rounds else reply


def test_after_three_failures_a_silo_is_not_asked_again(run_arm: Any, make_study: Any) -> None:
    failing = Failing("silo-1", (1, 3, 4))
    ran = run_arm(make_study({**FOUR, "rounds/max": 7}), "fedavg", tamper=failing)
    assert failing.asked == [1, 2, 3, 4]
    assert ran.refused == [("silo-1", 1), ("silo-1", 3), ("silo-1", 4)]
    assert ran.run.notes["quarantined_after"] == {"silo-1": 4}
    points = ran.run.curve[1:]
    assert [p.silos_ok for p in points] == [3, 4, 3, 3, 3, 3, 3]
    assert [p.silos_failed for p in points] == [1, 0, 1, 1, 0, 0, 0]
    assert points[6].bytes_down * 4 == points[0].bytes_down * 3


def test_the_number_is_a_setting(run_arm: Any, make_study: Any) -> None:
    for most, asked in ((1, [1]), (2, [1, 2]), (9, [1, 2, 3, 4])):
        failing = Failing("silo-1", (1, 2, 3, 4))
        study = make_study({**FOUR, "rounds/max": 4, "rounds/max_failures": most})
        run_arm(study, "fedavg", tamper=failing)
        assert failing.asked == asked


def test_quarantine_leaves_the_cohorts_of_the_others_alone(run_arm: Any, make_study: Any) -> None:
    study = make_study({**FOUR, "rounds/max": 8, "rounds/fraction": 0.5, "rounds/quorum": 0.1})
    failing = Failing("silo-1", (1, 2, 3, 4, 5, 6, 7, 8))
    ran = run_arm(study, "fedavg", tamper=failing)
    drawn = [[m.name for m in ran.cohort(ran.run.members, n)] for n in range(1, 9)]
    asked = [n for n, cohort in enumerate(drawn, 1) if "silo-1" in cohort]
    assert len(asked) > 3, "the test must draw it more often than it may fail"
    assert failing.asked == asked[:3]
    for point, cohort in zip(ran.run.curve[1:], drawn, strict=True):
        assert point.silos_ok == len(set(cohort) - {"silo-1"})


def test_quarantined_silos_count_as_lacking_for_the_quorum(run_arm: Any, make_study: Any) -> None:
    study = make_study({**FOUR, "rounds/max": 8, "rounds/quorum": 0.7, "rounds/max_failures": 1})
    first, second = Failing("silo-1", (1,)), Failing("silo-2", (4,))

    def tamper(silo: str, question: Message, reply: Message) -> Message:
        return second(silo, question, first(silo, question, reply))

    ran = run_arm(study, "fedavg", tamper=tamper)
    assert ran.run.stopped == "quorum"
    assert [p.round for p in ran.run.curve] == [0, 1, 2, 3]


def test_failed_evaluations_count_too(run_arm: Any, make_study: Any) -> None:
    failing = Failing("silo-1", (0, 1, 2, 3), kind=keys.EVALUATE)
    ran = run_arm(make_study({**FOUR, "rounds/max": 4}), "fedavg", tamper=failing, test=False)
    assert failing.asked == [0, 1, 2]
    assert ran.run.notes["quarantined_after"] == {"silo-1": 2}
    assert [p.silos_ok for p in ran.run.curve[1:]] == [4, 4, 3, 3]


def test_a_claim_above_the_studys_cap_is_refused(run_arm: Any, make_study: Any) -> None:
    """At the introduction, so that the silo takes no part at all."""
    sizes = [len(silo.data) for silo in run_arm(make_study({"rounds/max": 1}), "fedavg").silos]
    cap = sorted(sizes)[-2]
    assert max(sizes) > cap
    ran = run_arm(make_study({"rounds/max": 1, "rounds/max_examples": cap}), "fedavg")
    assert len(ran.members) == 2
    assert f"where 1 to {cap} is expected" in ran.reasons


# Robust rounds.


def poisoned(silo: str, question: Message, reply: Message) -> Message:
    """Return what silo-1 sends: its model turned round and enlarged, of the right form."""
    if silo != "silo-1" or question.metadata.message_type != keys.TRAIN:
        return reply
    arrays = reply.content.array_records[keys.ARRAYS]
    bad = ArrayRecord({key: Array(-9 * array.numpy()) for key, array in arrays.items()})
    return Message(RecordDict({**reply.content, keys.ARRAYS: bad}), reply_to=question)


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam", "feddf"])
@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
def test_rounds_combine_by_the_rule_whatever_the_strategy(
    rule: str, strategy: str, run_arm: Any, make_study: Any
) -> None:
    changes = {**FOUR, "rounds/max": 2, "rounds/aggregation": rule, "rounds/trim": 0.3}
    ran = run_arm(make_study({**changes, "arms/fedavg/strategy": strategy}), "fedavg")
    update, state = server_update(ran.context), ran.context.model("initial-model").state_dict()
    for number in (1, 2):
        states = [silo.train(state, number, ran.context.rounds)[0] for silo in ran.silos]
        combined = aggregate(states, [1.0] * 4, rule=rule, trim=0.3)
        state = update(RoundModels(number, state, states, combined))
    assert_same(ran.state, state)


@pytest.mark.parametrize("strategy", ["fedavg", "feddf"])
def test_one_poisoned_silo_of_five_ruins_the_mean_alone(
    strategy: str, run_arm: Any, make_study: Any
) -> None:
    changes = {
        "partition": {"scheme": "iid", "silos": 5, "min_size": 12},
        "data/train_size": 300,
        "rounds/max": 6,
        "rounds/local_epochs": 4,
        "arms/fedavg": {"start": "average", "strategy": strategy},
    }

    def accuracy(aggregation: str, tamper: Any) -> float:
        study = make_study({**changes, "rounds/aggregation": aggregation, "rounds/trim": 0.2})
        ran = run_arm(study, "fedavg", tamper=tamper)
        return float(ran.run.curve[-1].accuracy)

    honest, mean = accuracy("mean", None), accuracy("mean", poisoned)
    assert honest > 0.5
    for rule in ("median", "trimmed-mean"):
        robust = accuracy(rule, poisoned)
        assert robust > honest - 0.15, rule
        assert mean < robust - 0.15, rule


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key
