"""How good the global model is: on the server's test examples, on the silos', and for each silo."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce

from flwr.app import ArrayRecord, MetricRecord, RecordDict

from fedkd.config.targets import check_metric
from fedkd.errors import FedKDError, UserError
from fedkd.federation.metric_check import check_metric_is_defined
from fedkd.federation.silos_get import conclude
from fedkd.messages import keys, train
from fedkd.messages.evaluate import (
    read_gets,
    read_reply,
    write_gets_question,
    write_metrics,
    write_question,
)
from fedkd.models.spool import is_large
from fedkd.models.state import State
from fedkd.registry import METRICS_FROM_SUMS, NO_SOURCE
from fedkd.results.record import CUT_SHORT, Point
from fedkd.training.class_sums import ClassSums
from fedkd.training.evaluate import Metrics, evaluate_all, metric_values
from fedkd.util.names import natural_key
from strategies.context import RunContext
from strategies.roster import Member
from strategies.run_state import RunState
from strategies.session import Session

_WHY_NOT = {
    None: "it does not share metrics (share.metrics), or is of an older version",
    False: "it holds out no examples (data.silo_test)",
    True: "it is not connected, or not asked any more",
}
"""Why it is not known what a silo gets, by whether it says that it holds out examples."""
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


def central_evaluation(context: RunContext) -> EvaluateFn | None:
    """Return a function that measures the global model on the server's test data, if it has any.

    Raises:
        UserError: these data, or their absence, do not define the study's metric.
    """
    test, metric = context.test, context.study.metric
    if test is None or not len(test):
        try:
            check_metric(metric, NO_SOURCE)
        except ValueError as error:
            raise UserError(str(error)) from None
        return None
    check_metric_is_defined(
        metric, test.labels, context.shape.num_classes, context.classes, "test examples"
    )
    kept = [context.model("evaluation")]
    if is_large(kept[0].state_dict()):
        kept.clear()

    def measure(_: int, arrays: ArrayRecord) -> MetricRecord:
        state = arrays.to_torch_state_dict()
        del arrays  # of a large model, few copies at a time
        model = kept[0] if kept else context.model("evaluation")
        model.load_state_dict(state)
        del state
        return write_metrics(evaluate_all(model, test, compute=context.compute))

    return measure


def ask_silos(
    session: Session,
    number: int,
    model: State,
    own_arrays: Mapping[str, ArrayRecord] | None = None,
) -> tuple[MetricRecord, list[str]]:
    """Return the mean of the silos' figures for the global model, weighted by examples.

    Where the study's metric needs them, silos send sums by class, and the metric is that of all
    their examples together; the names of the silos that withhold theirs are returned too.

    Args:
        session: with the silos.
        number: the round; 0 is the start.
        model: the global one.
        own_arrays: those of silos that have tensors of their own in it, by name.

    Raises:
        FedKDError: no silo could measure it, or none shares the sums that the metric needs.
    """
    context = session.context

    def read(_: Member, content: RecordDict) -> tuple[Metrics, int]:
        return read_reply(
            content,
            num_classes=context.shape.num_classes,
            max_examples=context.rounds.max_examples,
        )

    class_sums = context.study.metric in METRICS_FROM_SUMS
    question = write_question(number, ArrayRecord(model))
    del model  # a large one is on disk; only what was read of it is in memory
    members = find_askable(session)
    asked = session.ask(members, question, read, own_arrays=own_arrays, sent_once=True)
    answers = [answer for _, answer in asked]
    total = sum(size for _, size in answers)
    if not total:
        raise FedKDError("no silo could evaluate the global model, and the server has no test data")
    accuracy = loss = macro_f1 = 0.0
    for metrics, size in answers:
        accuracy += size * metrics.accuracy
        loss += size * metrics.loss
        macro_f1 += size * metrics.macro_f1
    sums = _add_sums(context.study.metric, asked) if class_sums else None
    values = metric_values(accuracy / total, sums)
    whole = Metrics(accuracy / total, loss / total, macro_f1 / total, values)
    withheld = [member.name for member, (metrics, _) in asked if metrics.sums is None]
    return write_metrics(whole), withheld if class_sums else []


def find_askable(session: Session) -> list[Member]:
    """Return the silos that may answer; one that was gone or silent in this round may not."""
    return [
        member
        for member in session.members
        if member.node_id in session.roster.connected
        and not session.is_barred(member)
        and not session.latecomers.is_busy(member)
    ]


def _add_sums(metric: str, asked: Sequence[tuple[Member, tuple[Metrics, int]]]) -> ClassSums:
    """Return the sums by class over the silos that share them.

    Raises:
        FedKDError: none does.
    """
    shared = [metrics.sums for _, (metrics, _) in asked if metrics.sums is not None]
    if not shared:
        raise FedKDError(
            f"metric: {metric} is computed from sums by class, which no silo shares; their owners "
            "share them by share.class_counts, if every class has share.min_samples examples; else "
            "use metric: accuracy"
        )
    return reduce(operator.add, shared)


def end_run(session: Session, state: RunState) -> None:
    """Send the final model to silos that ask for it, and ask deployed silos what they get."""
    send_final(session, state)
    if session.context.study.is_deployed and state.stopped not in CUT_SHORT:
        ask_what_silos_get(session, state)


def send_final(session: Session, state: RunState) -> None:
    """Send the final model to the silos that ask for it; no round and no exchange is charged."""
    members = [
        member
        for member in session.members
        if member.description is not None and member.description.receives
    ]
    if not members:
        return
    session.ledger.open(state.curve[-1].round)

    def read(_: Member, content: RecordDict) -> None:
        """Take the reply, which says no more than that the model has come."""

    trained = train.write_question(session.ledger.round, ArrayRecord(state.model), {})
    question = replace(trained, kind=keys.RECEIVE)
    asked = session.ask(members, question, read, sent_once=True)
    sent = [member.name for member, _ in asked]
    state.notes["received_by"] = sent


def ask_what_silos_get(session: Session, state: RunState) -> None:
    """Add to a run's state what each silo gets; no round and no exchange is charged.

    The notes say for which silos that is unknown, and why.
    """
    session.ledger.open(state.curve[-1].round)
    refused, most = session.ledger.quarantined, session.context.rounds.max_examples
    noted = len(refused)
    told = {member.name: member.known for member in session.members}
    counts = [silo.class_counts for silo in told.values()]
    everyone = [sum(of_class) for of_class in zip(*counts, strict=True)] if all(counts) else []
    question = write_gets_question(session.ledger.round, ArrayRecord(state.model), everyone)

    def read(_: Member, content: RecordDict) -> tuple[int, dict[str, float | None]]:
        return read_gets(content, max_examples=most)

    members = [member for member in find_askable(session) if member.known.holds_out]
    asked = session.ask(members, question, read, sent_once=True)
    state.silos_get = tuple(
        conclude(m.name, size, found["own"], found) for m, (size, found) in asked
    )
    reasons = {
        silo: _WHY_NOT[told[silo].holds_out if silo in told else True]
        for silo in session.context.study.silo_names
    }
    reasons |= {entry.silo: entry.reason for entry in refused[noted:]}
    silos: dict[str, list[str]] = {}
    for silo in reasons.keys() - {member.name for member, _ in asked}:
        silos.setdefault(reasons[silo], []).append(silo)
    if silos:
        listed = (
            f"{', '.join(sorted(each, key=natural_key))}: {why}" for why, each in silos.items()
        )
        state.notes["silos_get"] = f"not measured at {'; at '.join(sorted(listed))}"


def targets_reached(context: RunContext, curve: Sequence[Point]) -> bool:
    """Whether a curve has reached every target and the arm stops there."""
    targets, metric = context.targets, context.study.metric
    if not targets or context.rounds.stop != "targets":
        return False
    return all(any(p.reaches(target, metric) for p in curve) for target in targets)
