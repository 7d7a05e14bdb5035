"""Where the server has no test images, metrics follow from sums by class that silos share."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import Message, MetricRecord, RecordDict

from fedkd.errors import FedKDError
from fedkd.messages import keys
from fedkd.training.evaluate import metric_values

SUMS = (keys.CLASS_LABELS, keys.CLASS_PREDICTED, keys.CLASS_HITS)
METRIC = {"metric": "balanced-accuracy", "rounds/max": 1}


def changing(change: Any, *, silos: tuple[str, ...] = ("silo-1",)) -> Any:
    """Return what changes the figures in the evaluations of silos, in place."""

    def tamper(silo: str, question: Message, reply: Message) -> Message:
        if silo not in silos or question.metadata.message_type != keys.EVALUATE:
            return reply
        figures = dict(reply.content.metric_records[keys.METRICS])
        change(figures)
        content = {**reply.content, keys.METRICS: MetricRecord(figures)}
        return Message(RecordDict(content), reply_to=question)

    return tamper


def withhold(figures: dict[str, Any]) -> None:
    for key in SUMS:
        figures.pop(key, None)


def expected(ran: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
    found = [silo.evaluate(ran.state).sums for silo in ran.silos if silo.name not in without]
    total = found[0]
    for sums in found[1:]:
        total = total + sums
    return metric_values(ran.run.curve[-1].accuracy, total)


def test_metrics_are_those_of_all_images_together(run_arm: Any, make_study: Any) -> None:
    ran = run_arm(make_study(METRIC), "fedavg", test=False)
    point = ran.run.curve[1]
    assert point.metrics == expected(ran)
    assert point.metrics["auroc"] is None
    assert point.value("balanced-accuracy") == point.metrics["balanced_accuracy"]
    assert point.macro_f1 != point.metrics["macro_f1"], "the mean of the silos' is kept"


def test_sums_are_sent_only_where_the_metric_needs_them(run_arm: Any, make_study: Any) -> None:
    seen = []
    look = changing(lambda figures: seen.append(set(SUMS) & set(figures)))
    ran = run_arm(make_study({"rounds/max": 1}), "fedavg", test=False, tamper=look)
    assert seen == [set(), set()]
    assert ran.run.curve[1].metrics == metric_values(ran.run.curve[1].accuracy, None)


def test_silos_that_withhold_sums_are_named(run_arm: Any, make_study: Any) -> None:
    ran = run_arm(make_study(METRIC), "fedavg", test=False, tamper=changing(withhold))
    assert not ran.refused
    assert ran.run.notes["metric_without"] == ["silo-1"]
    assert ran.run.curve[1].metrics == expected(ran, without=("silo-1",))


def test_a_metric_for_which_no_silo_shares_sums_is_an_error(run_arm: Any, make_study: Any) -> None:
    tamper = changing(withhold, silos=("silo-0", "silo-1", "silo-2"))
    with pytest.raises(FedKDError, match=r"no silo shares; .* share\.class_counts"):
        run_arm(make_study(METRIC), "fedavg", test=False, tamper=tamper)


@pytest.mark.parametrize(
    ("key", "make", "reason"),
    [
        (keys.CLASS_HITS, lambda counts: counts[:-1], "where 10 numbers are expected"),
        (keys.CLASS_HITS, lambda counts: [-1, *counts[1:]], "an invalid count"),
        (keys.CLASS_HITS, lambda counts: [float(n) for n in counts], "an invalid count"),
        (keys.CLASS_HITS, lambda counts: [counts[0] + 1, *counts[1:]], "more examples"),
        (keys.CLASS_LABELS, lambda counts: [counts[0] + 1, *counts[1:]], "not of"),
        (keys.CLASS_PREDICTED, lambda counts: [0] * len(counts), "not of"),
        (keys.CLASS_PREDICTED, lambda _: 3, "where 10 numbers are expected"),
    ],
)
def test_sums_that_cannot_be_are_refused(
    key: str, make: Any, reason: str, run_arm: Any, make_study: Any
) -> None:
    def lie(figures: dict[str, Any]) -> None:
        figures[key] = make(list(figures[key]))

    ran = run_arm(make_study(METRIC), "fedavg", test=False, tamper=changing(lie))
    assert ran.refused == [("silo-1", 0), ("silo-1", 1)]
    for entry in ran.run.quarantined:
        assert reason in entry.reason
    assert ran.run.curve[1].metrics == expected(ran, without=("silo-1",))
