"""Before round 1 and before every other: nodes are asked which silos they are."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from flwr.app import RecordDict

from fedkd.config import Study
from fedkd.data.texts import tokenizer_hash
from fedkd.errors import FedKDError
from fedkd.messages import describe
from fedkd.messages.describe import Description
from fedkd.messages.validate import RefusedError, printable
from fedkd.models.backbone import Backbone
from fedkd.results.record import Quarantined
from strategies.nodes import find_nodes, wait_for_nodes
from strategies.roster import Member
from strategies.session import Session

APPROVAL_SECONDS = 10.0
"""After which a silo that waits for its owner's approval is asked again."""
LATECOMER_SECONDS = 60.0
"""How long the other silos wait before a round for a new node to introduce itself."""


def gather(session: Session) -> None:
    """Wait for the study's silos to connect, and let them introduce themselves.

    Raises:
        FedKDError: fewer silos than the quorum did.
    """
    context = session.context
    expected = context.study.num_silos
    deadline = time.monotonic() + context.rounds.timeout
    nodes = wait_for_nodes(session, context.rounds.timeout)
    waiting = _introduce(session, nodes, context.rounds.timeout)
    while waiting and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(APPROVAL_SECONDS, left))
        waiting = _introduce(session, waiting, context.rounds.timeout)
    least = max(1, math.ceil(context.rounds.quorum * expected))
    if len(session.roster) < least:
        reasons = "; ".join(sorted({entry.reason for entry in session.ledger.quarantined})[:3])
        raise FedKDError(
            f"{len(session.roster)} of {expected} silos introduced themselves, and at least "
            f"{least} are needed (rounds.quorum){': ' + reasons if reasons else ''}"
        )


def look_again(session: Session) -> None:
    """Look who is connected before a round, and let new nodes introduce themselves."""
    nodes = find_nodes(session)
    timeout = min(session.context.rounds.timeout, LATECOMER_SECONDS)
    _introduce(session, session.roster.find_new(nodes), timeout)
    session.roster.update_connected(nodes)
    session.latecomers.drop(nodes, session.context.rounds.timeout)


def _introduce(session: Session, nodes: Sequence[int], timeout: float) -> list[int]:
    """Ask nodes who they are; a node that fails takes no part, and counts in no round.

    Returns:
        The nodes that wait for their owner's approval. They are asked again.
    """
    if not nodes:
        return []
    context = session.context

    def read(node: Member, content: RecordDict) -> tuple[str, Description]:
        name, description = describe.read_reply(
            content,
            num_classes=context.shape.num_classes,
            max_examples=context.rounds.max_examples,
        )
        registered = session.roster.registered.get(node.node_id, name)
        if name != registered:
            raise RefusedError(
                f"it claims the name {name!r}, but its key is that of {registered!r}"
            )
        _check_admission(context.study, name, description)
        _check_fixed_part(context.shape.backbone, description)
        if context.study.is_deployed:
            _check_tokenizer(tokenizer_hash(context.study.columns), description.tokenizer)
        return name, description

    images = None if context.transfer is None else context.transfer.images
    newcomers, noted = session.roster.question(nodes), len(session.ledger.quarantined)
    answers = session.ask(newcomers, describe.write_question(images), read, timeout=timeout)
    for newcomer, (name, description) in answers:
        if not session.roster.admit(Member(name, newcomer.node_id, description)):
            reason = f"it claims the name {name!r}, which another node bears"
            session.ledger.refuse(newcomer.name, reason, counted=False)
    return _note_waiting(session, newcomers, session.ledger.quarantined[noted:])


def _note_waiting(
    session: Session, newcomers: Sequence[Member], refusals: Sequence[Quarantined]
) -> list[int]:
    """Report which nodes wait for approval; note it once for each, and let them be asked again."""
    nodes = {member.name: member.node_id for member in newcomers}
    waiting = [entry for entry in refusals if describe.WAITING in entry.reason]
    ledger = session.ledger
    for entry in waiting:
        known = [(each.silo, each.reason) for each in ledger.quarantined]
        if known.count((entry.silo, entry.reason)) > 1:
            ledger.quarantined.remove(entry)
    again = [nodes[entry.silo] for entry in waiting]
    session.roster.forget(again)
    if waiting:
        session.observer.on_waiting("; ".join(sorted({entry.reason for entry in waiting})))
    return again


def _check_admission(study: Study, name: str, description: Description) -> None:
    """Refuse a silo that is not one of the study's."""
    if description.arch not in {study.model.arch, *study.model.per_silo.values()}:
        raise RefusedError(
            f"its model is {printable(description.arch)!r}, which the study does not name"
        )
    if study.is_deployed and name not in study.silo_names:
        raise RefusedError(f"its name, {name!r}, is not in partition.names")
    if study.is_deployed and description.num_examples < study.partition.min_size:
        raise RefusedError(
            f"it has {description.num_examples} examples, fewer than partition.min_size, "
            f"{study.partition.min_size}"
        )


def _check_fixed_part(backbone: Backbone | None, description: Description) -> None:
    """Refuse a silo whose weights differ where nobody trains them."""
    expected = "" if backbone is None else backbone.fixed_hash
    if description.fixed_part != expected:
        raise RefusedError(
            f"the fixed part of its models has the hash {description.fixed_part[:12] or 'none'}, "
            f"the server's {expected[:12] or 'none'}; both need the same model.weights, or the "
            "same network of hf:"
        )


def _check_tokenizer(expected: str, told: str) -> None:
    """Refuse a silo whose texts become other token ids than the server's."""
    if told != expected:
        raise RefusedError(
            f"its tokenizer has the hash {told[:12] or 'none'}, the server's "
            f"{expected[:12] or 'none'}; both need the same files, beside the model of hf: or in "
            "data.text.tokenizer"
        )
