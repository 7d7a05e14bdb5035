"""The server's side of one run's dialogue: questions go out, good replies come in."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedkd.messages import keys
from fedkd.messages.envelope import Question, open_reply
from fedkd.messages.validate import UNREADABLE, RefusedError, printable
from fedkd.results.observer import Observer
from strategies.context import RunContext
from strategies.exchange import BUSY, GONE, LATE, Ledger, Patience, exchange
from strategies.late import Latecomers
from strategies.roster import Member, Roster

T = TypeVar("T")

SPARE_SECONDS = 60.0
"""How much longer than the server waits a message lives, so that no reply comes too late by it."""
EXCHANGES = frozenset({keys.TEACHER, keys.DISTIL, keys.TRAIN})
"""Messages with models, logits or densities: these are charged as exchanges."""


@dataclass
class Session:
    """The silos of one run, the way to them, and the accounts.

    Attributes:
        grid: the way to the nodes.
        context: the arm, its seed and the server's data.
        observer: receives every epoch of distillation.
        run_id: what replies must echo.
        timeout: seconds to wait for replies; a silo ends its work on a message soon after.
        ledger: traffic of the round, and refused replies.
        roster: the silos that introduced themselves.
        exchanges: how many there have been.
        latecomers: silos that have not answered a round that ended without them.
    """

    grid: Grid
    context: RunContext
    observer: Observer
    run_id: str
    timeout: float
    ledger: Ledger = field(default_factory=Ledger)
    roster: Roster = field(default_factory=Roster)
    exchanges: int = 0
    latecomers: Latecomers = field(default_factory=Latecomers)

    @property
    def members(self) -> list[Member]:
        """All silos, in natural order of their names."""
        return list(self.roster.values())

    def ask(
        self,
        members: Sequence[Member],
        question: Question,
        read: Callable[[Member, RecordDict], T],
        *,
        timeout: float | None = None,
        own_arrays: Mapping[str, ArrayRecord] | None = None,
        sent_once: bool = False,
    ) -> list[tuple[Member, T]]:
        """Ask silos, and return what ``read`` makes of the good replies, in the order of silos.

        A reply that is missing, late, malformed or not an answer to this very question costs its
        silo one refusal. This is the one place where anything of a reply is read.

        Args:
            members: the silos; no message is sent to one that is known to be gone.
            question: the same for all, but for ``own_arrays``.
            read: makes a value of a reply's content when it comes, or raises RefusedError. What
                malformed content makes it raise otherwise counts as that.
            timeout: seconds to wait; by default the session's.
            own_arrays: models that take the place of the question's, by name of the silo.
            sent_once: whether the arrays may be removed from their records once a SuperLink has
                them.
        """
        if self.context.encoder and self.context.study.is_deployed:
            config = {**question.config, keys.COLUMNS: self.context.encoder}
            question = replace(question, config=config)
        messages = self._address(members, question, own_arrays or {})
        by_node = {member.node_id: member for member in members}
        replies = exchange(
            self.grid,
            messages,
            lambda reply: self._read(by_node[reply.metadata.src_node_id], question, reply, read),
            patience=self._patience(question, len(members), timeout),
            traffic=self.ledger.traffic,
            simulated=self.context.simulated,
            sent_once=sent_once
            and self.context.study.is_deployed
            and self.context.rounds.enough is None,
            earlier=self.latecomers.keys(),
            on_waiting=lambda nodes: self._say_waiting(question, members, nodes),
        )
        busy = [member for member in members if self.latecomers.is_busy(member)]
        self.latecomers.arrive(replies.late)
        if self.context.rounds.enough is not None and question.kind == keys.TRAIN:
            for message in replies.missing:
                self.latecomers.note(message, question, by_node[message.metadata.dst_node_id])
        late = {each.member.name for each, _ in self.latecomers.arrived}
        answers: list[tuple[Member, T]] = []
        for member in members:
            if member not in busy:
                value = replies.by_node.get(member.node_id)
                answers += self._use(member, question, value or self._why_silent(member))
            elif member.name not in late:
                self.ledger.refuse(member.name, BUSY)
        if question.kind in EXCHANGES:
            self.exchanges += 1
            used = self.ledger.traffic.used
            used -= {member.name for member in members}
            used |= {member.name for member, _ in answers}
        return answers

    def take_late(
        self, read: Callable[[Member, RecordDict], T]
    ) -> list[tuple[Member, T, Question]]:
        """Return what ``read`` makes of models that came after their round, with their questions.

        One that is not good costs its silo one refusal.
        """
        arrived, self.latecomers.arrived = self.latecomers.arrived, []
        return [
            (member, model, each.question)
            for each, reply in arrived
            for member, model in self._use(
                each.member, each.question, self._read(each.member, each.question, reply, read)
            )
        ]

    def is_barred(self, member: Member) -> bool:
        """Whether a silo has failed so often that it is not asked any more."""
        return member.name in self.ledger.barred(self.context.rounds.max_failures)

    def _patience(self, question: Question, asked: int, timeout: float | None) -> Patience:
        """Return how long replies to a question to so many silos are waited for."""
        rounds, timeout = self.context.rounds, self.timeout if timeout is None else timeout
        if rounds.enough is None or question.kind not in (keys.TRAIN, keys.EVALUATE):
            return Patience(timeout)
        good = max(1, math.ceil(rounds.quorum * asked))
        return Patience(timeout, good, math.ceil(rounds.enough * asked), rounds.grace)

    def _say_waiting(
        self, question: Question, members: Sequence[Member], nodes: Collection[int]
    ) -> None:
        """Tell the observer which deployed silos have not answered a question yet."""
        if self.context.study.is_deployed:
            known = self.roster.registered
            names = [known.get(m.node_id, m.name) for m in members if m.node_id in nodes]
            what = f"{question.kind}, round {question.round}"
            self.observer.on_waiting(f"{', '.join(names)}: no reply to {what}")

    def _address(
        self,
        members: Iterable[Member],
        question: Question,
        own_arrays: Mapping[str, ArrayRecord],
    ) -> list[Message]:
        """Return a message for every silo that is connected, without examples that it has."""
        whole = question.content(self.run_id)
        spared = question.content(self.run_id, has_transfer=True)

        def content(member: Member) -> RecordDict:
            if (own := own_arrays.get(member.name)) is not None:
                records = {**question.records, keys.ARRAYS: own}
                return replace(question, records=records).content(self.run_id)
            return spared if _has_transfer(member) else whole

        ttl = self.timeout + SPARE_SECONDS
        return [
            Message(content(member), member.node_id, question.kind, ttl=ttl)
            for member in members
            if member.node_id in self.roster.connected and not self.latecomers.is_busy(member)
        ]

    def _read(
        self,
        member: Member,
        question: Question,
        reply: Message,
        read: Callable[[Member, RecordDict], T],
    ) -> tuple[T] | str:
        """Return what ``read`` makes of a reply, or why it is refused."""
        silo = None if member.description is None else member.name
        try:
            return (read(member, open_reply(reply, question, self.run_id, silo)),)
        except RefusedError as error:
            return str(error)
        except UNREADABLE as error:
            return printable(f"its reply cannot be read ({type(error).__name__}: {error})")

    def _use(
        self, member: Member, question: Question, value: tuple[T] | str
    ) -> list[tuple[Member, T]]:
        """Return a value that was read; if it is why a reply was refused, note that."""
        if isinstance(value, tuple):
            return [(member, value[0])]
        self.ledger.refuse(member.name, value, counted=question.kind != keys.DESCRIBE)
        return []

    def _why_silent(self, member: Member) -> str:
        """Return why there is no reply, and count the silo as gone until the next look."""
        if member.node_id not in self.roster.connected:
            return GONE
        self.roster.connected.discard(member.node_id)
        return LATE


def _has_transfer(member: Member) -> bool:
    return member.description is not None and member.description.has_transfer
