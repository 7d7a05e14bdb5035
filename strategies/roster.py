"""Who takes part: every node is asked to introduce itself, and names are bound to nodes."""

from __future__ import annotations

import math
import time

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedkd import wire
from fedkd.data.images import content_hash
from fedkd.errors import FedKDError
from fedkd.names import natural_key
from strategies.exchange import Ledger, Member, exchange
from strategies.gate import RefusedError, read_class_counts, read_info, read_name, read_num_examples
from strategies.setting import Setting


def call_roster(grid: Grid, setting: Setting, ledger: Ledger, run_id: str) -> dict[str, Member]:
    """Return the silos that answered, by name, in natural order.

    Raises:
        FedKDError: fewer silos than the quorum answered.
    """
    expected = setting.study.partition.silos
    nodes = _wait_for_nodes(grid, expected, setting.rounds.timeout)
    images = setting.transfer.images if setting.transfer is not None else None
    transfer = wire.NO_HASH if images is None else content_hash(images)
    config = ConfigRecord({wire.RUN_ID: run_id, wire.ROUND: 0, wire.TRANSFER_HASH: transfer})
    content = RecordDict({wire.CONFIG: config})
    messages = [Message(content, node, wire.DESCRIBE) for node in nodes]
    replies = exchange(grid, messages, timeout=setting.rounds.timeout, traffic=ledger.traffic)
    members: dict[str, Member] = {}
    for node in nodes:
        try:
            if node not in replies:
                raise RefusedError("it did not introduce itself in time")
            info = read_info(replies[node], run_id=run_id, round_number=0)
            name = read_name(info)
            size, least = read_num_examples(info), setting.study.partition.min_size
            if setting.study.in_field and size < least:
                raise RefusedError(f"it has {size} images, fewer than partition.min_size, {least}")
            read_class_counts(info, setting.shape.num_classes)
            _check_architecture(info, setting)
            if setting.study.in_field and name not in setting.study.silo_names:
                raise RefusedError(f"it bears the name {name!r}, which partition.names has not")
            if name in members:
                raise RefusedError(f"it claims the name {name!r}, which another node bears")
            members[name] = Member(name, node, info)
        except RefusedError as error:
            ledger.refuse(f"node-{node}", error)
    least = max(1, math.ceil(setting.rounds.quorum * expected))
    if len(members) < least:
        reasons = "; ".join(sorted({entry.reason for entry in ledger.quarantined})[:3])
        raise FedKDError(
            f"{len(members)} of {expected} silos introduced themselves, and at least {least} are "
            f"needed (rounds.quorum){': ' + reasons if reasons else ''}"
        )
    ledger.traffic.failed = 0
    return {name: members[name] for name in sorted(members, key=natural_key)}


def _wait_for_nodes(grid: Grid, expected: int, timeout: float) -> list[int]:
    """Wait until as many nodes as the study has silos are connected, or time is up."""
    deadline = time.monotonic() + timeout
    while True:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= expected or time.monotonic() >= deadline:
            return nodes
        time.sleep(0.5)


def _check_architecture(info: ConfigRecord, setting: Setting) -> None:
    known = {setting.study.model.arch, *setting.study.model.per_silo.values()}
    if info.get(wire.ARCHITECTURE) not in known:
        raise RefusedError("its model has an architecture that the study does not know")
