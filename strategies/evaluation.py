"""How good the global model is: on the server's test images, or else on the silos' own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flwr.app import ArrayRecord, MetricRecord, RecordDict

from fedkd.errors import FedKDError
from fedkd.messages.evaluate import read_reply, write_metrics, write_question
from fedkd.training.evaluate import Metrics, evaluate
from strategies.context import RunContext
from strategies.roster import Member
from strategies.session import Session

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


def central_evaluation(context: RunContext) -> EvaluateFn | None:
    """Return a function that measures the global model on the server's test data, if it has any."""
    test = context.test
    if test is None or not len(test):
        return None
    model = context.model("evaluation")

    def measure(_: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        return write_metrics(evaluate(model, test, compute=context.compute))

    return measure


def ask_silos(
    session: Session,
    number: int,
    arrays: ArrayRecord,
    own_arrays: Mapping[str, ArrayRecord] | None = None,
) -> MetricRecord:
    """Return the mean of the silos' figures for the global model, weighted by examples.

    Args:
        session: with the silos.
        number: the round; 0 is the start.
        arrays: the global model.
        own_arrays: those of silos that have tensors of their own in it, by name.

    Raises:
        FedKDError: no silo could measure it.
    """
    most = session.context.rounds.max_examples

    def read(_: Member, content: RecordDict) -> tuple[Metrics, int]:
        return read_reply(content, max_examples=most)

    # One that was gone or silent in this very round is noted already, and is not asked again.
    members = [
        member
        for member in session.members
        if member.node_id in session.roster.connected and not session.is_barred(member)
    ]
    question = write_question(number, arrays)
    asked = session.ask(members, question, read, own_arrays=own_arrays)
    answers = [answer for _, answer in asked]
    total = sum(size for _, size in answers)
    if not total:
        raise FedKDError("no silo could evaluate the global model, and the server has no test data")
    accuracy = loss = macro_f1 = 0.0
    for metrics, size in answers:
        accuracy += size * metrics.accuracy
        loss += size * metrics.loss
        macro_f1 += size * metrics.macro_f1
    return write_metrics(Metrics(accuracy / total, loss / total, macro_f1 / total))
