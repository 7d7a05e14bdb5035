"""One trip server -> silos -> server, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedkd.messages.failures import read as read_failure
from fedkd.messages.validate import UNREADABLE
from fedkd.results.record import Quarantined

FIRST_PAUSE, LONGEST_PAUSE = 0.005, 1.0
NOTICE_SECONDS = 10.0
"""After which is said whose replies are waited for."""
PULLED_AT_ONCE, PULLED_BYTES = 8, 64 << 20
"""Replies that are taken from a grid at a time, and so are in memory; more if they are small."""
GONE = "it is not connected"
"""The reason where a silo of a round is known to be gone, and no message is sent to it."""
LATE = "it did not answer in time"
BUSY = "it still works on an earlier round"
"""The reason where a silo has not answered an earlier question, and no other is sent to it."""


@dataclass
class Traffic:
    """What one round cost. Bytes are what Flower's ``count_bytes`` of the records gives.

    Attributes:
        bytes_up: from the silos to the server.
        bytes_down: from the server to the silos.
        seconds: of the blocks under :meth:`timed`.
        failed: replies missing or refused.
        used: silos whose replies to all exchanges of the round were used.
        late: those of them whose model is of an earlier round.
        ended_early: whether an exchange ended when enough silos had replied.
    """

    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    failed: int = 0
    used: set[str] = field(default_factory=set)
    late: set[str] = field(default_factory=set)
    ended_early: bool = False

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the block's duration."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begin


@dataclass
class Ledger:
    """The traffic of the current round, and every refused reply of the run."""

    round: int = 0
    traffic: Traffic = field(default_factory=Traffic)
    quarantined: list[Quarantined] = field(default_factory=list)

    def open(self, round_number: int) -> None:
        """Begin a round with no traffic."""
        self.round = round_number
        self.traffic = Traffic()

    def refuse(self, silo: str, reason: str, *, counted: bool = True) -> None:
        """Note that a silo's reply is not used.

        Args:
            silo: its name.
            reason: a phrase.
            counted: whether it is among the round's failed replies.
        """
        self.traffic.failed += counted
        self.quarantined.append(Quarantined(silo, self.round, reason))

    def barred(self, max_failures: int) -> dict[str, int]:
        """Return the silos with so many refused replies, and the round of the last that counted.

        A silo that is gone, late or busy has answered nothing wrong: it may take part again.
        """
        failures: dict[str, int] = {}
        barred: dict[str, int] = {}
        for entry in self.quarantined:
            if entry.reason in (GONE, LATE, BUSY):
                continue
            failures[entry.silo] = failures.get(entry.silo, 0) + 1
            if failures[entry.silo] == max_failures:
                barred[entry.silo] = entry.round
        return barred


def count_bytes(content: RecordDict) -> int:
    """Return the bytes of all records by Flower's own count.

    Flower cannot count a record with an empty text or list. In a reply it counts as nothing, and
    the reply is refused where it is read.
    """
    total = 0
    for record in content.values():
        try:
            total += record.count_bytes()
        except UNREADABLE:
            continue
    return total


@dataclass(frozen=True)
class Patience:
    """How long replies are waited for.

    Attributes:
        timeout: seconds; nothing is waited for longer.
        good: replies that are not errors, to this or an earlier question, without which an exchange
            does not end early.
        enough: replies to this question, errors included, after which the others get only
            ``grace``; None waits for all.
        grace: as a share of the time that these replies took.
    """

    timeout: float
    good: int = 0
    enough: int | None = None
    grace: float = 0.0


@dataclass
class Ended:
    """What an exchange leaves beside the replies to its messages.

    Attributes:
        late: replies to earlier messages, unread.
        missing: its messages without a reply.
    """

    late: list[Message] = field(default_factory=list)
    missing: list[Message] = field(default_factory=list)


def exchange(
    grid: Grid,
    messages: Sequence[Message],
    *,
    patience: Patience,
    traffic: Traffic,
    simulated: bool = False,
    earlier: Collection[str] = (),
    on_waiting: Callable[[set[int]], None] = lambda _: None,
    ended: Ended | None = None,
) -> Iterator[tuple[int, Message]]:
    """Send messages, and yield each reply with its node id when it comes, unread.

    Flower's own ``send_and_receive`` looks for replies every three seconds, and holds them all;
    this one begins with milliseconds, so that a simulated round is not mostly waiting, and takes
    them in portions, so that memory does not grow with the number of silos.

    Args:
        grid: the way to the nodes.
        messages: at most one for each node.
        patience: how long to wait.
        traffic: of the round; bytes are added.
        simulated: whether the nodes are processes of a simulation (:attr:`RunContext.simulated`):
            an error from there says whose fault it is.
        earlier: ids of messages of earlier exchanges, whose replies are taken too.
        on_waiting: called, from ``NOTICE_SECONDS`` on and as they change, with the nodes that have
            not replied.
        ended: is filled.

    Raises:
        FedKDError: a simulated silo fails for a known reason, or the user's code failed there.
        RemoteError: our code failed at a simulated silo, or its process was lost.
    """
    ended = Ended() if ended is None else ended
    sent = sum(count_bytes(message.content) for message in messages)
    traffic.bytes_down += sent
    receivers = {message.metadata.dst_node_id for message in messages}
    # A SuperLink gives no id to a message for a node that it no longer knows.
    pending = {message_id for message_id in grid.push_messages(messages) if message_id}
    asked, owed = len(pending), set(earlier)
    # A reply is taken to be as large as its question.
    size = max(PULLED_AT_ONCE, PULLED_BYTES * len(messages) // max(1, sent))
    size = getattr(grid, "pulled_at_once", size)
    begin = time.monotonic()
    deadline, pause = begin + patience.timeout, FIRST_PAUSE
    said: set[str] = set()
    good, ends_early = 0, False
    while pending or (owed and good < patience.good):
        received = False
        for reply in _pull(grid, sorted(pending | owed), size):
            if simulated and reply.has_error():
                _raise_failure(reply)
            received = True
            answered, node = reply.metadata.reply_to_message_id, reply.metadata.src_node_id
            is_late, is_first = answered in owed, node in receivers
            pending.discard(answered)
            owed.discard(answered)
            if is_late:
                ended.late.append(reply)
            elif is_first:
                receivers.discard(node)
            if reply.has_content() and (is_late or is_first):
                good += 1
                traffic.bytes_up += count_bytes(reply.content)
            if is_first and not is_late:
                yield node, reply
        now = time.monotonic()
        has_enough = patience.enough is not None and asked - len(pending) >= patience.enough
        if has_enough and not ends_early and good >= patience.good:
            ends_early, deadline = True, min(deadline, now + patience.grace * (now - begin))
        if now >= deadline:
            break
        if pending and pending != said and now - begin >= NOTICE_SECONDS:
            said = set(pending)
            on_waiting({m.metadata.dst_node_id for m in _among(messages, pending)})
        if pending or owed:
            pause = FIRST_PAUSE if received else min(2 * pause, LONGEST_PAUSE)
            time.sleep(min(pause, deadline - now))
    traffic.ended_early |= ends_early and bool(pending)
    ended.missing = _among(messages, pending)


def _pull(grid: Grid, ids: Sequence[str], size: int) -> Iterator[Message]:
    """Yield the replies that there are to messages, taken in portions of ``size``."""
    for start in range(0, len(ids), size):
        for reply in grid.pull_messages(ids[start : start + size]):
            if isinstance(reply, Message):
                yield reply


def _among(messages: Sequence[Message], ids: set[str]) -> list[Message]:
    return [message for message in messages if message.metadata.message_id in ids]


def _raise_failure(reply: Message) -> None:
    """Raise what a simulated silo's error reply stands for; return if it is the silo's own."""
    failure = read_failure(reply.error.reason or "")
    if failure is not None:
        raise failure
