"""Distillation on the student's own silo: the teachers travel there, no example travels at all."""

from __future__ import annotations

from functools import partial

from flwr.app import RecordDict

from fedkd.distillation.selection import Choice
from fedkd.errors import FedKDError
from fedkd.messages import distil, train
from fedkd.messages.train import TrainedModel
from strategies.roster import Member
from strategies.session import Session


def distil_at_silo(session: Session, silo: str, choice: Choice) -> TrainedModel:
    """Send the chosen teachers to the student's silo, which distils them: one exchange.

    Args:
        session: with the silos.
        silo: whose model is the student.
        choice: the student and its teachers.

    Returns:
        The student, with its mean loss of the last epoch.

    Raises:
        FedKDError: the silo did not answer, or its reply was refused.
    """
    context = session.context
    teachers, accuracies = choice.teachers, []
    settings = context.arm.consolidation
    if settings and settings.uses_accuracy and teachers.has_accuracy(context.validation):
        accuracies = [float(a) for a in teachers.accuracy(context.validation)]
    read = partial(train.read_reply, like=choice.start, max_examples=context.rounds.max_examples)

    def read_student(_: Member, content: RecordDict) -> TrainedModel:
        return read(content)

    question = distil.write_question(choice, accuracies)
    answers = session.ask([session.roster[silo]], question, read_student)
    if not answers:
        reason = session.ledger.quarantined[-1].reason
        raise FedKDError(
            f"arms.{context.arm_name}: {silo}, whose model is the student, did not distil "
            f"on its examples: {reason}"
        )
    ((_, student),) = answers
    return student
