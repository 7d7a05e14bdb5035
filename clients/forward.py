"""Hand a message to a deployed silo's worker, which is started if it does not run.

Nothing here imports PyTorch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
from filelock import FileLock
from flwr.app import Context, Error, Message
from flwr.common.serde import context_to_proto

from clients.audit_entry import describe_reply, describe_run
from clients.message_frames import receive_message, send_message
from fedkd.deploy.audit import append_entry
from fedkd.deploy.bundle_hash import bundle_hash
from fedkd.deploy.frames import READY, ClosedError, receive_frame, send_frame
from fedkd.deploy.worker_folder import WorkerFolder, created_at, find_process
from fedkd.errors import FedKDError
from fedkd.messages.failures import FAILED
from fedkd.util.heap import THRESHOLD

ATTEMPTS = 3
"""How often a worker is started for one message: one may end just before it is asked."""
POLL_SECONDS = 0.05
LONGEST_SECONDS = 1e8
"""Longest time to live of a message, about three years; sockets take no longer."""
PERHAPS = "killed, or out of memory; its own log may say why"
SUPERNODE = "flower-supernode"
START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from clients.worker import main
main(int(sys.argv[2]), sys.argv[3])
"""

_logger = logging.getLogger("flwr")


class NoWorkerError(FedKDError):
    """This host, or this message, does not allow a worker."""


def answer_in_worker(message: Message, context: Context, silo_file: Path) -> Message:
    """Return the worker's reply to a message.

    If the worker ends meanwhile, even by SIGKILL, the reply is an error, at once. A worker that
    still works on the message when its time to live has passed is killed: the server has stopped
    waiting, and later messages would wait behind it. That time is counted from now on, so that
    clocks need not agree.

    Args:
        message: the server's.
        context: of the node.
        silo_file: the silo's ``silo.yaml``.

    Raises:
        NoWorkerError: the message must be answered in this process instead.
    """
    try:
        folder = WorkerFolder.of(silo_file)
        folder.make()
        of_node = context_to_proto(context).SerializeToString()
    except (OSError, ValueError, AttributeError) as error:  # no os.getuid on Windows
        raise NoWorkerError(str(error)) from error
    lost = partial(_lost, message, context, silo_file, folder)
    deadline = time.monotonic() + min(LONGEST_SECONDS, message.metadata.ttl)
    for _ in range(ATTEMPTS):
        with _connect(folder, silo_file) as connection:
            connection.settimeout(max(POLL_SECONDS, deadline - time.monotonic()))
            try:
                _await_turn(connection)
            except TimeoutError:
                return lost("works on an earlier message, and the server has stopped waiting")
            except OSError:
                continue  # it ended before it took the message
            worker = folder.worker()
            try:
                send_message(connection, message)
                send_frame(connection, of_node)
                connection.settimeout(max(POLL_SECONDS, deadline - time.monotonic()))
                reply = receive_message(connection)
            except TimeoutError:
                _kill(worker)
                return lost("was ended: the server has stopped waiting for its reply")
            except (OSError, ValueError):
                return lost(f"ended while it answered: {PERHAPS}")
            return _as_reply(reply, message, folder)
    return lost(f"does not start: {PERHAPS}")


def worker_version() -> str:
    """Return a hash of the code that a worker started from here would run."""
    where = json.dumps([bundle_hash(), sys.executable, *sys.path])
    return hashlib.sha256(where.encode()).hexdigest()


def find_supernode() -> tuple[int, float]:
    """Return number and :func:`created_at` of the SuperNode that this process works for.

    Where something else starts ClientApps, that stands for it.
    """
    parents = psutil.Process().parents()
    for process in parents:
        with contextlib.suppress(psutil.Error):
            if any(Path(part).name == SUPERNODE for part in process.cmdline()[:3]):
                return process.pid, created_at(process)
    return parents[0].pid, created_at(parents[0])


def _connect(folder: WorkerFolder, silo_file: Path) -> socket.socket:
    """Connect to the silo's worker of this code's version; start it first if there is none.

    Raises:
        NoWorkerError: this host does not allow one.
    """
    version = worker_version()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with FileLock(folder.lock, mode=0o600):
            current = folder.worker()
            if current is not None and current[1] == version:
                with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
                    connection.connect(str(folder.socket))
                    return connection
            if current is not None:
                _end(current[0])
            _start(folder, silo_file, version)
            connection.connect(str(folder.socket))
            return connection
    except (OSError, psutil.Error) as error:
        connection.close()
        raise NoWorkerError(str(error)) from error


def _end(worker: psutil.Process) -> None:
    """Let a worker finish the message that it answers, and end."""
    created = created_at(worker)
    with contextlib.suppress(psutil.NoSuchProcess):
        worker.terminate()
    while find_process(worker.pid, created) is not None:
        time.sleep(POLL_SECONDS)


def _kill(worker: tuple[psutil.Process, str] | None) -> None:
    """End a worker in the middle of a message, whatever it does."""
    if worker is not None:  # without its note, it ends when the connection is closed
        with contextlib.suppress(psutil.Error):
            worker[0].kill()


def _start(folder: WorkerFolder, silo_file: Path, version: str) -> None:
    """Start a worker that listens from its first moment on, and outlives this process."""
    folder.socket.unlink(missing_ok=True)
    folder.rotate_log()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(folder.socket))
        folder.socket.chmod(0o600)
        listener.listen()
        log = os.open(folder.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            worker = subprocess.Popen(  # noqa: S603 -- our own code
                [
                    *(sys.executable, "-P", "-c", START, json.dumps(sys.path)),
                    *(str(listener.fileno()), str(silo_file.absolute())),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                # It would slow down training, which reuses what it frees.
                env={key: value for key, value in os.environ.items() if key != THRESHOLD},
                start_new_session=True,
            )
        finally:
            os.close(log)
    folder.note(psutil.Process(worker.pid), version)
    worker.returncode = 0  # it is not waited for: it ends with the SuperNode


def _await_turn(connection: socket.socket) -> None:
    """Wait until the worker takes the message; it answers one at a time."""
    send_frame(connection, json.dumps(find_supernode()).encode())
    if receive_frame(connection, limit=len(READY)) != READY:
        raise ClosedError("what listens there is not a silo's worker")


def _as_reply(reply: Message, message: Message, folder: WorkerFolder) -> Message:
    """Return the worker's reply as one of this process, which Flower gave the task to."""
    if reply.has_error():
        _logger.warning("the silo answers: %s (log: %s)", reply.error.reason, folder.log)
        return Message(reply.error, reply_to=message)
    return Message(reply.content, reply_to=message)


def _lost(
    message: Message, context: Context, silo_file: Path, folder: WorkerFolder, what: str
) -> Message:
    """Return the error reply for a worker that is gone; the audit log has it too, if it can."""
    _logger.error("the silo's worker process %s; its log: %s", what, folder.log)
    reply = Message(Error(FAILED, f"its worker process {what}"), reply_to=message)
    with contextlib.suppress(FedKDError):
        from fedkd.deploy.silo_file import load_silo_file

        entry = {**describe_run(context), **describe_reply(message, reply)}
        append_entry(Path(load_silo_file(silo_file).audit), entry)
    return reply
