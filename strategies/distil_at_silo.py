"""Distillation on the student's own silo: the teachers travel there, no image travels at all."""

from __future__ import annotations

from flwr.app import Message
from flwr.serverapp import Grid

from fedkd.distillation.selection import Choice
from fedkd.errors import FedKDError
from fedkd.messages import keys
from fedkd.messages.distil import write_question
from fedkd.messages.validate import RefusedError, read_update
from fedkd.models.state import State
from strategies.context import RunContext
from strategies.exchange import Ledger, Member, exchange


def distil_at_silo(
    grid: Grid, member: Member, choice: Choice, context: RunContext, ledger: Ledger, run_id: str
) -> tuple[State, float]:
    """Send the chosen teachers to the student's silo, which distils them: one exchange.

    Args:
        grid: the way to the nodes.
        member: the silo whose model is the student.
        choice: who learns and who teaches.
        context: the run.
        ledger: the books.
        run_id: what the reply must echo.

    Returns:
        The student and its mean loss of the last epoch.

    Raises:
        FedKDError: the silo did not answer, or its reply was refused.
    """
    teachers, accuracies = choice.teachers, []
    settings = context.arm.consolidation
    if settings and settings.uses_accuracy and teachers.has_accuracy(context.validation):
        accuracies = [float(a) for a in teachers.accuracy(context.validation)]
    message = Message(write_question(choice, accuracies, run_id), member.node_id, keys.DISTIL)
    replies = exchange(
        grid,
        [message],
        timeout=context.rounds.timeout,
        traffic=ledger.traffic,
        simulated=context.simulated,
    )
    try:
        if member.node_id not in replies:
            raise RefusedError("it did not answer in time")
        state, _, loss = read_update(
            replies[member.node_id],
            choice.start,
            silo=member.name,
            run_id=run_id,
            round_number=0,
            max_examples=context.rounds.max_examples,
        )
    except RefusedError as error:
        ledger.traffic.ok -= 1
        ledger.refuse(member.name, error)
        raise FedKDError(
            f"arms.{context.arm_name}: {member.name}, whose model is the student, did not distil "
            f"on its images: {error}"
        ) from error
    return state, loss
