"""One trip server -> silos -> server, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedkd.messages.failures import read as read_failure
from fedkd.messages.validate import UNREADABLE
from fedkd.results.record import Quarantined

FIRST_PAUSE, LONGEST_PAUSE = 0.005, 1.0
PULLED_AT_ONCE, PULLED_BYTES = 8, 64 << 20
"""Replies that are taken from a grid at a time, and so are in memory; more if they are small."""
GONE = "it is not connected"
"""The reason where a silo of a round is known to be gone, and no message is sent to it."""


@dataclass
class Traffic:
    """What one round cost. Bytes are what Flower's ``count_bytes`` of the records gives.

    Attributes:
        bytes_up: from the silos to the server.
        bytes_down: from the server to the silos.
        seconds: of the blocks under :meth:`timed`.
        failed: replies missing or refused.
        used: silos whose replies to all exchanges of the round were used.
    """

    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    failed: int = 0
    used: set[str] = field(default_factory=set)

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

        A silo that is gone has answered nothing wrong: it may come back.
        """
        failures: dict[str, int] = {}
        barred: dict[str, int] = {}
        for entry in self.quarantined:
            if entry.reason == GONE:
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


def exchange(
    grid: Grid,
    messages: Sequence[Message],
    *,
    timeout: float,
    traffic: Traffic,
    simulated: bool = False,
) -> Iterator[tuple[int, Message]]:
    """Send messages, and yield each reply with its node id when it comes, unread.

    Flower's own ``send_and_receive`` looks for replies every three seconds, and holds them all;
    this one begins with milliseconds, so that a simulated round is not mostly waiting, and takes
    them in portions, so that memory does not grow with the number of silos.

    Args:
        grid: the way to the nodes.
        messages: at most one for each node.
        timeout: seconds to wait; replies that come later are not used.
        traffic: of the round; bytes are added.
        simulated: whether the nodes are processes of a simulation (:attr:`RunContext.simulated`):
            an error from there says whose fault it is.

    Raises:
        FedKDError: a simulated silo fails for a known reason, or the user's code failed there.
        RemoteError: our code failed at a simulated silo, or its process was lost.
    """
    sent = sum(count_bytes(message.content) for message in messages)
    traffic.bytes_down += sent
    receivers = {message.metadata.dst_node_id for message in messages}
    # A SuperLink gives no id to a message for a node that it no longer knows.
    pending = [message_id for message_id in grid.push_messages(messages) if message_id]
    # A reply is taken to be as large as its question.
    size = max(PULLED_AT_ONCE, PULLED_BYTES * len(messages) // max(1, sent))
    size = getattr(grid, "pulled_at_once", size)
    deadline = time.monotonic() + timeout
    pause = FIRST_PAUSE
    while pending:
        answered: set[str] = set()
        for start in range(0, len(pending), size):
            portion = pending[start : start + size]
            for reply in grid.pull_messages(portion):
                if not isinstance(reply, Message):
                    continue
                if simulated and reply.has_error():
                    failure = read_failure(reply.error.reason or "")
                    if failure is not None:
                        raise failure
                answered |= {reply.metadata.reply_to_message_id} & {*portion}
                node = reply.metadata.src_node_id
                if node in receivers:
                    receivers.discard(node)
                    if reply.has_content():
                        traffic.bytes_up += count_bytes(reply.content)
                    yield node, reply
        pending = [message_id for message_id in pending if message_id not in answered]
        if answered:
            pause = FIRST_PAUSE
        elif time.monotonic() >= deadline:
            break
        else:
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
