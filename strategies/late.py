"""Silos that answer after their round has ended, where ``rounds.enough`` ends it early.

Such a silo is asked nothing else until it has answered. Its model then counts in the round that is
under way, by what the silo changed and the less the older it is (FedBuff, Nguyen et al.
2106.06639).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from flwr.app import Message

from fedkd.messages import keys
from fedkd.messages.arrays import decode_state
from fedkd.messages.envelope import Question
from fedkd.messages.train import TrainedModel
from fedkd.models.state import State
from strategies.roster import Member


@dataclass(frozen=True)
class Unanswered:
    """A round's question that a silo has not answered yet, and when it was asked (monotonic s)."""

    member: Member
    question: Question
    asked: float


class Latecomers(dict[str, Unanswered]):
    """Questions without an answer, by the id of their message.

    Attributes:
        arrived: late replies that no round has used yet, with the questions that they answer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.arrived: list[tuple[Unanswered, Message]] = []

    def is_busy(self, member: Member) -> bool:
        """Whether a silo has not answered an earlier question."""
        return any(each.member.node_id == member.node_id for each in self.values())

    def note(self, message: Message, question: Question, member: Member) -> None:
        """Note a message without a reply, with the arrays that were sent in it."""
        sent = replace(question, records=message.content.array_records)
        self[message.metadata.message_id] = Unanswered(member, sent, time.monotonic())

    def arrive(self, replies: Iterable[Message]) -> None:
        """Take late replies; one that is not of the silo that was asked only ends the wait."""
        for reply in replies:
            each = self.pop(reply.metadata.reply_to_message_id)
            if reply.has_content() and reply.metadata.src_node_id == each.member.node_id:
                self.arrived.append((each, reply))

    def drop(self, connected: set[int], timeout: float) -> None:
        """Ask silos again that are gone, or that have not answered for ``timeout`` seconds."""
        now = time.monotonic()
        for message_id, each in list(self.items()):
            if each.member.node_id not in connected or now - each.asked > timeout:
                del self[message_id]


def catch_up(late: TrainedModel, question: Question, now: State, number: int) -> TrainedModel:
    """Return a late model as a silo's model of this round.

    Args:
        late: the model.
        question: to which it is the answer, with the global model that was sent.
        now: the global model of this round.
        number: the round.
    """
    share = 1 / math.sqrt(1 + number - question.round)
    sent = decode_state(question.records[keys.ARRAYS])
    state = {
        key: now[key] + share * (tensor - sent[key]) if tensor.is_floating_point() else tensor
        for key, tensor in late.state.items()
    }
    return replace(late, state=state)
