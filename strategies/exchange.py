"""Trips server -> silos -> server: who is there, what was sent, what it cost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedkd.messages.failures import read as read_failure
from fedkd.messages.validate import RefusedError
from fedkd.results.record import Quarantined

FIRST_PAUSE, LONGEST_PAUSE = 0.005, 1.0
GONE = "it is not connected"
"""Why a silo that nobody could ask was not in a round."""


@dataclass(frozen=True)
class Member:
    """A silo that has introduced itself."""

    name: str
    node_id: int
    info: ConfigRecord


@dataclass
class Traffic:
    """What one round cost. Bytes are what Flower's ``count_bytes`` of the records gives."""

    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    ok: int = 0
    failed: int = 0

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
    """Traffic of the round under way, and every refused reply of the run."""

    round: int = 0
    traffic: Traffic = field(default_factory=Traffic)
    quarantined: list[Quarantined] = field(default_factory=list)

    def open(self, round_number: int) -> None:
        """Begin the books of a round."""
        self.round = round_number
        self.traffic = Traffic()

    def refuse(self, silo: str, error: RefusedError) -> None:
        """Note that a silo's reply was not used."""
        self.traffic.failed += 1
        self.quarantined.append(Quarantined(silo, self.round, str(error)))

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
    """Return the bytes of all records by Flower's own count."""
    return sum(record.count_bytes() for record in content.values())


def exchange(
    grid: Grid,
    messages: Sequence[Message],
    *,
    timeout: float,
    traffic: Traffic,
    simulated: bool = False,
) -> dict[int, Message]:
    """Send messages, wait for the replies, and return them by node id.

    Flower's own ``send_and_receive`` looks for replies every three seconds; this one begins with
    milliseconds, so that a simulated round is not mostly waiting.

    Args:
        grid: the way to the nodes.
        messages: at most one for each node.
        timeout: seconds to wait; replies that come later are not used.
        traffic: the books.
        simulated: whether the nodes are processes of a simulation (:attr:`RunContext.simulated`),
            which are believed when they say whose fault an error is.

    Raises:
        FedKDError: a simulated silo foresaw that it cannot go on, or the user's code failed there.
        RemoteError: our code failed at a simulated silo, or its process was lost.
    """
    traffic.bytes_down += sum(count_bytes(message.content) for message in messages)
    asked = {message.metadata.dst_node_id for message in messages}
    # A SuperLink gives no id to a message for a node that it no longer knows.
    pending = {message_id for message_id in grid.push_messages(messages) if message_id}
    replies: dict[int, Message] = {}
    deadline = time.monotonic() + timeout
    pause = FIRST_PAUSE
    while pending:
        received = list(grid.pull_messages(sorted(pending)))
        for reply in received:
            if (
                simulated
                and reply.has_error()
                and (error := read_failure(reply.error.reason or ""))
            ):
                raise error
            pending.discard(reply.metadata.reply_to_message_id)
            node = reply.metadata.src_node_id
            if node in asked and node not in replies:
                replies[node] = reply
                if reply.has_content():
                    traffic.bytes_up += count_bytes(reply.content)
        if time.monotonic() >= deadline:
            break
        if pending:
            pause = FIRST_PAUSE if received else min(2 * pause, LONGEST_PAUSE)
            time.sleep(pause)
    return replies
