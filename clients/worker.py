"""A deployed silo's worker: the process that stays in memory and answers the silo's messages.

It is started by the first message, answers one message at a time, and ends with its SuperNode or
after ``idle`` seconds without a message. Only processes of its own user can connect.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from fedkd.deploy.frames import MAX_BYTES, READY, has_hung_up, peer_uid, receive_frame, send_frame
from fedkd.deploy.loaded_code import LoadedCode
from fedkd.deploy.silo_file import load_silo_file
from fedkd.deploy.worker_folder import WorkerFolder, find_process
from fedkd.errors import UserError
from fedkd.messages.failures import FAILED
from fedkd.util.heap import trim_heap

if TYPE_CHECKING:
    from flwr.app import Message

MAX_GREETING_BYTES = 1000
TICK_SECONDS = 0.5
GREETING_SECONDS = 10.0
IDLE_SECONDS = 900
"""Until the silo's file was read for the first time."""
START_SECONDS = 30.0
"""Within which the process that started the worker has noted it."""

_logger = logging.getLogger("flwr")


class Worker:
    """Serves one socket.

    Args:
        listener: a listening socket.
        silo_file: the silo's ``silo.yaml``.
    """

    def __init__(self, listener: socket.socket, silo_file: Path) -> None:
        self._listener = listener
        self._silo_file = silo_file
        self._folder = WorkerFolder.of(silo_file)
        self._idle = float(IDLE_SECONDS)
        self._leaving = False
        self._lock = threading.Lock()
        self._supernode: tuple[int, float] | None = None
        self._asking: socket.socket | None = None
        self._started = self._last = time.monotonic()
        self._code = LoadedCode()

    def serve(self) -> None:
        """Answer messages until it is time to end."""
        signal.signal(signal.SIGTERM, self._leave)
        threading.Thread(target=self._watch, daemon=True).start()
        while not self._leaving and not self._is_superfluous():
            ready, _, _ = select.select([self._listener], [], [], TICK_SECONDS)
            if ready:
                connection, _ = self._listener.accept()
                with connection:
                    self._serve_one(connection)
                trim_heap()
                self._last = time.monotonic()

    def _leave(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._leaving = True

    def _is_superfluous(self) -> bool:
        """Whether it is idle for long, or another process is the silo's worker now."""
        now = time.monotonic()
        if now - self._last > self._idle:
            return True
        if now - self._started < START_SECONDS:
            return False
        noted = self._folder.worker()
        return noted is None or noted[0].pid != os.getpid()

    def _serve_one(self, connection: socket.socket) -> None:
        """Answer one message; a connection that is closed unanswered tries the next worker."""
        if peer_uid(connection) not in (None, os.getuid()):
            return
        try:
            connection.settimeout(GREETING_SECONDS)
            pid, created = json.loads(receive_frame(connection, limit=MAX_GREETING_BYTES))
            connection.settimeout(None)
            self._leaving = self._leaving or self._code.has_changed()
            if self._leaving:
                return
            with self._lock:
                self._supernode, self._asking = (int(pid), float(created)), connection
            send_frame(connection, READY)
            from clients.message_frames import receive_message, send_message

            question = receive_message(connection)
            reply = self._answer(question, receive_frame(connection, limit=MAX_BYTES))
            with self._lock:
                self._asking = None
            send_message(connection, reply)
        except (OSError, ValueError, TypeError) as error:
            _logger.warning("a message was not answered: %s", error)
        finally:
            with self._lock:
                self._asking = None

    def _answer(self, question: Message, context: bytes) -> Message:
        """Return the reply; whatever goes wrong is an error reply."""
        from flwr.app import Error, Message
        from flwr.common.serde import context_from_proto
        from flwr.proto.message_pb2 import Context as ProtoContext
        from flwr.supercore.task_identity import TaskIdentity

        from clients.guard import NOT_READY
        from clients.handlers import app

        # Replies take their ids from the process; those of the ClientApp replace them.
        TaskIdentity.task_id, TaskIdentity.run_id = 0, question.metadata.run_id
        TaskIdentity.node_id = question.metadata.dst_node_id
        try:
            reply = app(question, context_from_proto(ProtoContext.FromString(context)))
            self._idle = self._read_idle()
            self._code.note()
        except Exception:
            _logger.exception("the silo cannot answer")
            return Message(Error(FAILED, NOT_READY), reply_to=question)
        return reply

    def _read_idle(self) -> float:
        """Return the seconds without a message after which it ends, as the silo's file says now."""
        try:
            return float(load_silo_file(self._silo_file).idle)
        except UserError:
            return self._idle

    def _watch(self) -> None:
        """End the process when its SuperNode has ended, or nobody waits for the reply any more."""
        while True:
            time.sleep(TICK_SECONDS)
            with self._lock:
                supernode, asking = self._supernode, self._asking
                if (supernode and find_process(*supernode) is None) or (
                    asking is not None and has_hung_up(asking)
                ):
                    os._exit(0)


def main(descriptor: int, silo_file: str) -> None:
    """Run a worker on the listening socket that the parent process opened."""
    with socket.socket(fileno=descriptor) as listener:
        Worker(listener, Path(silo_file)).serve()
