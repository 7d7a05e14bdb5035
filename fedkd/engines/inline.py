"""The inline engine: Flower's apps in this process, silos in parallel on a thread pool."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from clients.handlers import make_client_app
from clients.silo import Silo
from fedkd.config import Study
from fedkd.engines.base import Task
from fedkd.messages.failures import FAILED
from fedkd.results.observer import Observer
from fedkd.util.parallel import run_each
from strategies.context import RunContext
from strategies.server_app import Serving, make_server_app

AHEAD = 2
"""Replies that may wait for the server while all threads work."""
RUN_ID = 1
SERVER_NODE = 1


class InlineGrid(Grid):
    """A grid whose nodes are threads: pushing a message runs the ClientApp on the pool.

    An exception in the ClientApp ends the run, as an exception in the server does.
    Messages are passed by reference; neither side changes what it received. The largest silos
    start first, so that the pool does not wait for one of them at the end.
    """

    is_inline = True
    """Messages are passed by reference, and all replies that are there are few."""

    def __init__(
        self, client_app: ClientApp, contexts: dict[int, Context], pool: ThreadPoolExecutor
    ) -> None:
        self._client_app = client_app
        self._contexts = contexts
        self._pool = pool
        self._works: list[Generator[tuple[Message, Message], None, None]] = []
        self._replies: dict[str, Message] = {}
        # A message takes its ids from the process's identity, which a SuperLink would set.
        TaskIdentity.task_id, TaskIdentity.run_id = RUN_ID, RUN_ID
        TaskIdentity.node_id = SERVER_NODE

    def set_run(self, run: Run) -> None:
        """Do nothing: a grid has one run."""

    @property
    def run(self) -> Run:
        """An empty description of the one run."""
        return Run.create_empty(RUN_ID)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message as Flower's own grids do."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes' ids."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let the pool run the ClientApp for every message while replies are pulled."""
        ordered = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        for message in ordered:
            message.metadata.__dict__["_message_id"] = uuid.uuid4().hex

        def answer(message: Message) -> Message:
            return self._answer(message, self._contexts[message.metadata.dst_node_id])

        # Few replies wait at a time, so that memory does not grow with the number of silos.
        most = self._pool._max_workers + AHEAD
        self._works.append(run_each(ordered, answer, threads=most, pool=self._pool))
        return [message.metadata.message_id for message in ordered]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Wait for one of the replies, and hand over those that are there; none if all were."""
        wanted = list(message_ids)
        while self._works and not any(i in self._replies for i in wanted):
            if (item := next(self._works[0], None)) is None:
                self._works.pop(0)
            else:
                self._replies[item[0].metadata.message_id] = item[1]
        return [self._replies.pop(i) for i in wanted if i in self._replies]

    def close(self) -> None:
        """Stop the silos that still work."""
        for works in self._works:
            works.close()

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,  # noqa: ARG002 -- threads cannot be interrupted
    ) -> Iterable[Message]:
        """Push, and pull all."""
        ids = list(self.push_messages(messages))
        return [reply for _ in ids for reply in self.pull_messages(ids)]

    def _answer(self, message: Message, context: Context) -> Message:
        reply = self._client_app(message, context)
        if not isinstance(reply, Message):
            reason = f"its ClientApp returned {type(reply).__name__}, not a Message"
            return Message(Error(FAILED, reason), reply_to=message)
        return reply


GridType = TypeVar("GridType", bound=InlineGrid)


def make_grid(
    silos: Sequence[Silo],
    study: Study,
    config: Mapping[str, str | int],
    pool: ThreadPoolExecutor,
    kind: type[GridType],
) -> GridType:
    """Return a grid of one node per silo; ids follow the server's, in the order of ``silos``."""
    nodes = dict(enumerate(silos, SERVER_NODE + 1))
    app = make_client_app(lambda context: (nodes[context.node_id], study))
    contexts = {
        node: Context(RUN_ID, node, {}, RecordDict(), dict(config.items())) for node in nodes
    }
    return kind(app, contexts, pool)


class InlineEngine:
    """Runs every arm in this process."""

    remote = False

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    def __enter__(self) -> InlineEngine:
        """Silence Flower's log of every step."""
        self._level = logging.getLogger("flwr").level
        logging.getLogger("flwr").setLevel(logging.ERROR)
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Restore Flower's log."""
        logging.getLogger("flwr").setLevel(self._level)

    def run(self, task: Task, observer: Observer) -> None:
        """Run one arm; see :class:`fedkd.engines.base.Engine`."""
        federation = task.federation
        silos = [Silo.of(federation, name, task.arm) for name in federation.study.silo_names]
        silos.sort(key=lambda silo: -len(silo.data))
        context = RunContext.of(federation, task.arm, task.targets)
        server_app = make_server_app(lambda _: Serving(context, task.folder, observer))
        config = task.run_config()
        grid = make_grid(silos, federation.study, config, self._pool, InlineGrid)
        with closing(grid):
            server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), dict(config)))
