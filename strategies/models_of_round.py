"""The models that silos have trained in one round, those that come late among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flwr.app import ArrayRecord, RecordDict

from fedkd.messages import train
from fedkd.messages.envelope import Question
from fedkd.messages.train import TrainedModel
from fedkd.models.spool import StateSpool
from fedkd.models.state import State
from fedkd.util.names import natural_key
from strategies.late import catch_up
from strategies.roster import Member
from strategies.session import Session


def collect_models(
    session: Session,
    members: Sequence[Member],
    question: Question,
    model: State,
    states: StateSpool,
    own_arrays: Mapping[str, ArrayRecord],
) -> dict[str, tuple[int, float]]:
    """Have silos train, and put their models into ``states``, in natural order of the silos.

    A model of an earlier round that comes now counts as one of this round, if its silo has none.

    Args:
        session: of the run.
        members: the silos that are asked.
        question: with the global model, which it may have lost afterwards.
        model: the global model.
        states: is filled.
        own_arrays: models that take the place of the question's, by name of the silo.

    Returns:
        Number of examples and loss of each model, by name of the silo, in the same order.
    """
    most = session.context.rounds.max_examples

    def read(_: Member, content: RecordDict) -> TrainedModel:
        return train.read_reply(content, like=model, max_examples=most)

    def put(member: Member, trained: TrainedModel) -> tuple[int, float]:
        states.put(member.name, trained.state)
        return trained.num_examples, trained.loss

    answers = session.ask(
        members,
        question,
        lambda member, content: put(member, read(member, content)),
        own_arrays=own_arrays,
        sent_once=True,
    )
    found = {member.name: trained for member, trained in answers}
    traffic = session.ledger.traffic
    for member, late, asked in session.take_late(read):
        if member.name not in found:
            found[member.name] = put(member, catch_up(late, asked, model, session.ledger.round))
            traffic.used.add(member.name)
            traffic.late.add(member.name)
    names = sorted(found, key=natural_key)
    states.order(names)
    return {name: found[name] for name in names}
