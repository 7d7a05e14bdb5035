"""One trip server -> silos -> server, and what it costs."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedkd.messages.failures import read as read_failure
from fedkd.messages.validate import UNREADABLE
from fedkd.results.record import Quarantined
from fedkd.training.compute import end_idle_threads

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.005, 1.0
PULLED_BYTES = 256 << 20
"""Of the replies that are taken from a grid at a time, at least one, and so are in memory."""
NOTICE_SECONDS = 10.0
"""After which is said whose replies are waited for."""
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
class Replies(Generic[T]):
    """What came back of an exchange.

    Attributes:
        read: makes a value of each reply to its messages when it comes.
        by_node: these values.
        late: replies to earlier messages, unread.
        missing: its messages without a reply.
    """

    read: Callable[[Message], T]
    by_node: dict[int, T] = field(default_factory=dict)
    late: list[Message] = field(default_factory=list)
    missing: list[Message] = field(default_factory=list)

    def take(self, reply: Message, receivers: set[int], owed: set[str]) -> bool:
        """Take a reply to one of the messages, or to an earlier one whose id is in ``owed``.

        Returns:
            Whether it is the first to its message, and not an error.
        """
        answered, node = reply.metadata.reply_to_message_id, reply.metadata.src_node_id
        if answered in owed:
            owed.discard(answered)
            self.late.append(reply)
        elif node in receivers and node not in self.by_node:
            self.by_node[node] = self.read(reply)
        else:
            return False
        return bool(reply.has_content())


def exchange(
    grid: Grid,
    messages: Sequence[Message],
    read: Callable[[Message], T],
    *,
    patience: Patience,
    traffic: Traffic,
    simulated: bool = False,
    sent_once: bool = False,
    earlier: Collection[str] = (),
    on_waiting: Callable[[set[int]], None] = lambda _: None,
) -> Replies[T]:
    """Send messages, wait for the replies, and return what ``read`` makes of them.

    Flower's own ``send_and_receive`` looks for replies every three seconds, and holds them all;
    this one begins with milliseconds, so that a simulated round is not mostly waiting, and takes
    them in portions, so that memory does not grow with the number of silos.

    Args:
        grid: the way to the nodes.
        messages: at most one for each node.
        read: called with each reply when it comes.
        patience: how long to wait.
        traffic: of the round; bytes are added.
        simulated: whether the nodes are processes of a simulation (:attr:`RunContext.simulated`):
            an error from there says whose fault it is.
        sent_once: whether nothing else needs the arrays of the messages, in this process or on a
            grid in memory. Their records are emptied once they are pushed.
        earlier: ids of messages of earlier exchanges, whose replies are taken too.
        on_waiting: called, from ``NOTICE_SECONDS`` on and as they change, with the nodes that have
            not replied.

    Raises:
        FedKDError: a simulated silo fails for a known reason, or the user's code failed there.
        RemoteError: our code failed at a simulated silo, or its process was lost.
    """
    sent = sum(count_bytes(message.content) for message in messages)
    traffic.bytes_down += sent
    # A reply is taken to be as large as its question.
    size = max(1, PULLED_BYTES * len(messages) // max(1, sent))
    is_inline = getattr(grid, "is_inline", False)  # it passes messages by reference
    size = sys.maxsize if is_inline else size
    receivers = {message.metadata.dst_node_id for message in messages}
    end_idle_threads()  # silos of a simulation train next, on the same cores
    # A SuperLink gives no id to a message for a node that it no longer knows.
    pending = {message_id for message_id in grid.push_messages(messages) if message_id}
    if sent_once and not is_inline:
        for message in messages:
            for record in message.content.array_records.values():
                record.clear()
    result, asked, owed = Replies(read), len(pending), set(earlier)
    begin = time.monotonic()
    deadline, pause = begin + patience.timeout, FIRST_PAUSE
    said: set[str] = set()
    good, ends_early = 0, False
    while pending or (owed and good < patience.good):
        before = len(pending) + len(owed)
        for reply in _pull(grid, sorted(pending | owed), size):
            if simulated and reply.has_error():
                _raise_failure(reply)
            pending.discard(reply.metadata.reply_to_message_id)
            if result.take(reply, receivers, owed):
                good += 1
                traffic.bytes_up += count_bytes(reply.content)
            del reply  # it may be large, and the next one is pulled now
        received = len(pending) + len(owed) < before
        now = time.monotonic()
        has_enough = patience.enough is not None and asked - len(pending) >= patience.enough
        if has_enough and not ends_early and good >= patience.good:
            ends_early, deadline = True, min(deadline, now + patience.grace * (now - begin))
        if now >= deadline and (ends_early or not received):
            break
        if pending and pending != said and now - begin >= NOTICE_SECONDS:
            said = set(pending)
            on_waiting({m.metadata.dst_node_id for m in _among(messages, pending)})
        pause = FIRST_PAUSE if received else min(2 * pause, LONGEST_PAUSE)
        if not received:
            time.sleep(min(pause, deadline - now))
    traffic.ended_early |= ends_early and bool(pending)
    result.missing = _among(messages, pending)
    return result


def _pull(grid: Grid, ids: Sequence[str], size: int) -> Iterator[Message]:
    """Yield the replies that are there to messages of these ids, so many ids at a time."""
    for start in range(0, len(ids), size):
        try:
            pulled = grid.pull_messages(ids[start : start + size])
        except Exception as error:
            if _is_locked(error):
                return
            raise
        replies = deque(reply for reply in pulled if isinstance(reply, Message))
        del pulled
        while replies:
            yield replies.popleft()  # none that was taken is held here


def _is_locked(error: Exception) -> bool:
    """Whether a SuperLink could not look for replies: deleting a large model locks its database.

    Where it fails otherwise, it has marked replies as delivered that have not come. The error is
    HTTPX's, of whose client Flower's grid is made.
    """
    fails = getattr(getattr(error, "response", None), "is_server_error", False)
    path = str(getattr(getattr(error, "request", None), "url", ""))
    return bool(fails) and path.endswith("/pull-messages")


def _among(messages: Sequence[Message], ids: set[str]) -> list[Message]:
    return [message for message in messages if message.metadata.message_id in ids]


def _raise_failure(reply: Message) -> None:
    """Raise what a simulated silo's error reply stands for; return if it is the silo's own."""
    failure = read_failure(reply.error.reason or "")
    if failure is not None:
        raise failure
