"""The server's side of one run's dialogue: questions go out, good replies come in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedkd.messages import keys
from fedkd.messages.envelope import Question, open_reply
from fedkd.messages.validate import UNREADABLE, RefusedError, printable
from fedkd.results.observer import Observer
from strategies.context import RunContext
from strategies.exchange import GONE, Ledger, exchange
from strategies.roster import Member, Roster

T = TypeVar("T")

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
        timeout: seconds to wait for replies.
        ledger: traffic of the round, and refused replies.
        roster: the silos that introduced themselves.
        exchanges: how many there have been.
    """

    grid: Grid
    context: RunContext
    observer: Observer
    run_id: str
    timeout: float
    ledger: Ledger = field(default_factory=Ledger)
    roster: Roster = field(default_factory=Roster)
    exchanges: int = 0

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
        """
        replies = exchange(
            self.grid,
            self._address(members, question, own_arrays or {}),
            timeout=self.timeout if timeout is None else timeout,
            traffic=self.ledger.traffic,
            simulated=self.context.simulated,
        )
        asked = {m.node_id: m for m in members if m.node_id in self.roster.connected}
        values: dict[int, T] = {}
        reasons: dict[int, str] = {}
        for node, reply in replies:
            member = asked[node]
            try:
                values[node] = read(member, self._open(member, question, reply))
            except RefusedError as error:
                reasons[node] = str(error)
            except UNREADABLE as error:
                reason = f"its reply cannot be read ({type(error).__name__}: {error})"
                reasons[node] = printable(reason)
        answers = []
        for member in members:
            if member.node_id in values:
                answers.append((member, values[member.node_id]))
            else:
                reason = reasons.get(member.node_id) or self._why_silent(member)
                counted = question.kind != keys.DESCRIBE
                self.ledger.refuse(member.name, reason, counted=counted)
        if question.kind in EXCHANGES:
            self.exchanges += 1
            used = self.ledger.traffic.used
            used -= {member.name for member in members}
            used |= {member.name for member, _ in answers}
        return answers

    def is_barred(self, member: Member) -> bool:
        """Whether a silo has failed so often that it is not asked any more."""
        return member.name in self.ledger.barred(self.context.rounds.max_failures)

    def _address(
        self,
        members: Iterable[Member],
        question: Question,
        own_arrays: Mapping[str, ArrayRecord],
    ) -> list[Message]:
        """Return a message for every silo that is connected, without images that it has."""
        whole = question.content(self.run_id)
        spared = question.content(self.run_id, has_transfer=True)

        def content(member: Member) -> RecordDict:
            if (own := own_arrays.get(member.name)) is not None:
                records = {**question.records, keys.ARRAYS: own}
                return replace(question, records=records).content(self.run_id)
            return spared if _has_transfer(member) else whole

        return [
            Message(content(member), member.node_id, question.kind)
            for member in members
            if member.node_id in self.roster.connected
        ]

    def _open(self, member: Member, question: Question, reply: Message) -> RecordDict:
        silo = None if member.description is None else member.name
        return open_reply(reply, question, self.run_id, silo)

    def _why_silent(self, member: Member) -> str:
        """Return why there is no reply, and count the silo as gone until the next look."""
        if member.node_id not in self.roster.connected:
            return GONE
        self.roster.connected.discard(member.node_id)
        return "it did not answer in time"


def _has_transfer(member: Member) -> bool:
    return member.description is not None and member.description.has_transfer
