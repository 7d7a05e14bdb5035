"""Who takes part: the silos that introduced themselves, and the nodes on which they are.

A silo may drop out and come back in the middle of a run. With node authentication it comes back
as the same node. Without, it comes back as another that claims its name, and gets it as soon as the
old node is gone: no silo that is connected loses its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedkd.messages.describe import Description
from fedkd.util.names import natural_key

ABSENT = -1
"""The node of a silo that took part before and has not come back."""


@dataclass(frozen=True)
class Member:
    """A silo on a node; before its introduction it has a name made of its node's id."""

    name: str
    node_id: int
    description: Description | None = None

    @property
    def known(self) -> Description:
        """The silo's own description of itself."""
        if self.description is None:
            raise ValueError(f"{self.name} has not introduced itself")
        return self.description


class Roster(dict[str, Member]):
    """All silos that ever introduced themselves, by name, in natural order.

    Attributes:
        connected: nodes that the SuperLink counts as connected, as of the last look.
        registered: names under which the keys of nodes are registered with the SuperLink.
    """

    def __init__(self) -> None:
        super().__init__()
        self.connected: set[int] = set()
        self.registered: dict[int, str] = {}
        self._questioned: set[int] = set()
        self._claims: dict[int, Member] = {}
        self._closed = False

    def question(self, nodes: Sequence[int]) -> list[Member]:
        """Return nodes as members without a name, and note that they are asked for one."""
        self.connected |= set(nodes)
        self._questioned |= set(nodes)
        return [Member(f"node-{node}", node) for node in nodes]

    def forget(self, nodes: Sequence[int]) -> None:
        """Let nodes be asked again who they are."""
        self._questioned -= set(nodes)

    def admit(self, member: Member) -> bool:
        """Bind a silo's name to its node; return whether the name is free.

        A claim to a name that is taken is kept until the other node is gone. In a run that was
        resumed, silos that it did not start with are left out.
        """
        if self._closed and member.name not in self:
            return True
        if self._bind(member):
            return True
        self._claims[member.node_id] = member
        return False

    def keep_to(self, members: Sequence[Member]) -> None:
        """Keep to the silos that a run began with, on the nodes where they are now.

        Their descriptions are kept; those that are not back are on no node, and those that are new
        to the run are left out.
        """
        self._closed = True
        nodes = {name: member.node_id for name, member in self.items()}
        self.clear()
        for member in members:
            self[member.name] = replace(member, node_id=nodes.get(member.name, ABSENT))

    def find_new(self, nodes: set[int]) -> list[int]:
        """Return which of the connected nodes are to be asked who they are."""
        self._questioned &= nodes  # one that went may come back as another silo
        return sorted(nodes - self._questioned - {member.node_id for member in self.values()})

    def update_connected(self, nodes: set[int]) -> None:
        """Note which nodes are connected, and settle claims to names that have become free."""
        self.connected = nodes
        for node, member in list(self._claims.items()):
            if node not in nodes or self._bind(member):
                del self._claims[node]

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
