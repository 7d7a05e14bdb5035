"""Which nodes a run may ask: those whose keys are registered under the names of its silos."""

from __future__ import annotations

import time
from collections.abc import Mapping

from fedkd.config import Study
from fedkd.util.names import natural_key
from strategies.exchange import NOTICE_SECONDS
from strategies.session import Session

POLL_SECONDS = 0.5


def find_nodes(session: Session) -> set[int]:
    """Return the connected nodes that may be asked, and note the names that their keys have.

    ``flwr supernode register --name`` gives a key its name. As soon as one connected node has the
    name of one of a deployed study's silos, nodes without such a name are not asked.
    """
    study = session.context.study
    if not study.is_deployed:
        return set(session.grid.get_node_ids())
    names = {node.node_id: node.name for node in session.grid.get_nodes()}
    named = {node: name for node, name in names.items() if name in study.silo_names}
    session.roster.registered |= named
    return set(named) or {node for node, name in names.items() if not name}


def wait_for_nodes(session: Session, timeout: float) -> list[int]:
    """Wait until the nodes of all silos are connected, or time is up."""
    study, begin, said = session.context.study, time.monotonic(), ""
    while True:
        nodes = find_nodes(session)
        missing = _missing(study, nodes, session.roster.registered)
        waited = time.monotonic() - begin
        if not missing or waited >= timeout:
            return sorted(nodes)
        if waited >= NOTICE_SECONDS and missing != said:
            said = missing
            session.observer.on_waiting(said)
        time.sleep(min(POLL_SECONDS, timeout - waited))


def _missing(study: Study, nodes: set[int], registered: Mapping[int, str]) -> str:
    """Return a phrase on the silos that are not connected; empty where all are."""
    names = {registered[node] for node in nodes if node in registered}
    if names:
        absent = sorted(set(study.silo_names) - names, key=natural_key)
        return f"{', '.join(absent)}: not connected" if absent else ""
    if len(nodes) < study.num_silos:
        return f"{len(nodes)} of {study.num_silos} silos are connected"
    return ""
