"""Who takes part: every node is asked to introduce itself, and names are bound to nodes.

A silo may drop out and come back while a run is under way. With node authentication it comes back
as the same node. Without, it comes back as another that claims its name, and gets it as soon as the
old node is gone: nobody takes a name from a silo that is connected.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedkd.data.images import content_hash
from fedkd.errors import FedKDError
from fedkd.messages import keys
from fedkd.messages.validate import (
    RefusedError,
    read_class_counts,
    read_info,
    read_name,
    read_num_examples,
)
from fedkd.util.names import natural_key
from strategies.context import RunContext
from strategies.exchange import Ledger, Member, exchange
from strategies.savepoint import ABSENT

LATECOMER_SECONDS = 60.0
"""How long the other silos wait before a round for a new node to introduce itself."""


class Roster(dict[str, Member]):
    """All silos that ever introduced themselves, by name, in natural order.

    Attributes:
        connected: nodes that the SuperLink counts as connected, as of the last look.
    """

    def __init__(self) -> None:
        super().__init__()
        self.connected: set[int] = set()
        self._asked: set[int] = set()
        self._claims: dict[int, Member] = {}
        self._closed = False

    def call(self, grid: Grid, context: RunContext, ledger: Ledger, run_id: str) -> None:
        """Wait for the study's silos, and let them introduce themselves.

        Raises:
            FedKDError: fewer silos than the quorum did.
        """
        expected, timeout = context.study.partition.silos, context.rounds.timeout
        nodes = _wait_for_nodes(grid, expected, timeout)
        self._meet(grid, nodes, context, ledger, run_id, timeout)
        least = max(1, math.ceil(context.rounds.quorum * expected))
        if len(self) < least:
            reasons = "; ".join(sorted({entry.reason for entry in ledger.quarantined})[:3])
            raise FedKDError(
                f"{len(self)} of {expected} silos introduced themselves, and at least {least} are "
                f"needed (rounds.quorum){': ' + reasons if reasons else ''}"
            )

    def keep_to(self, members: Sequence[Member]) -> None:
        """Keep to the silos that a run began with, on the nodes where they are now.

        What they said of themselves then holds; those that are not back are on no node, and those
        that are new to the run are not asked.
        """
        self._closed = True
        nodes = {name: member.node_id for name, member in self.items()}
        self.clear()
        for member in members:
            self[member.name] = replace(member, node_id=nodes.get(member.name, ABSENT))

    def look_again(self, grid: Grid, context: RunContext, ledger: Ledger, run_id: str) -> None:
        """Look who is connected before a round, and let nodes that are new introduce themselves."""
        nodes = set(grid.get_node_ids())
        self._asked &= nodes  # one that went may come back as somebody else
        known = {member.node_id for member in self.values()}
        new = sorted(nodes - self._asked - known)
        timeout = min(context.rounds.timeout, LATECOMER_SECONDS)
        self._meet(grid, new, context, ledger, run_id, timeout)
        self.connected = nodes
        for node, member in list(self._claims.items()):
            if node not in nodes or self._bind(member):
                del self._claims[node]

    def _meet(
        self,
        grid: Grid,
        nodes: Sequence[int],
        context: RunContext,
        ledger: Ledger,
        run_id: str,
        timeout: float,
    ) -> None:
        """Ask nodes who they are. It is no exchange: who fails is noted, in no round's count."""
        failed = ledger.traffic.failed
        self.connected |= set(nodes)
        self._asked |= set(nodes)
        content = _question(context, run_id)
        messages = [Message(content, node, keys.DESCRIBE) for node in nodes]
        replies = exchange(
            grid, messages, timeout=timeout, traffic=ledger.traffic, simulated=context.simulated
        )
        for node in nodes:
            try:
                if node not in replies:
                    raise RefusedError("it did not introduce itself in time")
                member = _read_member(replies[node], node, context, run_id)
                if self._closed and member.name not in self:
                    continue
                if not self._bind(member):
                    self._claims[node] = member
                    raise RefusedError(
                        f"it claims the name {member.name!r}, which another node bears"
                    )
            except RefusedError as error:
                ledger.refuse(f"node-{node}", error)
        ledger.traffic.failed = failed

    def _bind(self, member: Member) -> bool:
        """Give a node its name, unless another that is connected bears it."""
        holder = self.get(member.name)
        if holder is not None and holder.node_id in self.connected - {member.node_id}:
            return False
        members = {**self, member.name: member}
        self.clear()
        for name in sorted(members, key=natural_key):
            self[name] = members[name]
        return True


def _question(context: RunContext, run_id: str) -> RecordDict:
    images = context.transfer.images if context.transfer is not None else None
    transfer = keys.NO_HASH if images is None else content_hash(images)
    config = ConfigRecord({keys.RUN_ID: run_id, keys.ROUND: 0, keys.TRANSFER_HASH: transfer})
    return RecordDict({keys.CONFIG: config})


def _read_member(reply: Message, node: int, context: RunContext, run_id: str) -> Member:
    info = read_info(reply, run_id=run_id, round_number=0)
    name, size = read_name(info), read_num_examples(info, context.rounds.max_examples)
    read_class_counts(info, context.shape.num_classes)
    study = context.study
    if info.get(keys.ARCHITECTURE) not in {study.model.arch, *study.model.per_silo.values()}:
        raise RefusedError("its model has an architecture that the study does not know")
    if study.is_deployed and name not in study.silo_names:
        raise RefusedError(f"it bears the name {name!r}, which partition.names has not")
    if study.is_deployed and size < study.partition.min_size:
        raise RefusedError(
            f"it has {size} images, fewer than partition.min_size, {study.partition.min_size}"
        )
    return Member(name, node, info)


def _wait_for_nodes(grid: Grid, expected: int, timeout: float) -> list[int]:
    """Wait until as many nodes as the study has silos are connected, or time is up."""
    deadline = time.monotonic() + timeout
    while True:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= expected or time.monotonic() >= deadline:
            return nodes
        time.sleep(0.5)
