"""A deployed silo's worker: started by a message, kept for the next, replaced, ended, killed."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.supercore.task_identity import TaskIdentity

from clients import forward, handlers, message_frames
from clients.client_app import app
from fedkd.deploy.check import SiloCheck
from fedkd.deploy.frames import ClosedError, peer_uid, receive_frame, send_frame
from fedkd.deploy.silo_file import load_silo_file
from fedkd.deploy.worker_folder import WorkerFolder, created_at, find_process
from fedkd.messages import keys

PATIENCE = 120.0
GATE = """
import time
from pathlib import Path
import numpy as np

HERE = Path(__file__).parent

def images():
    (HERE / "reached").touch()
    while not (HERE / "open").exists():
        time.sleep(0.05)
    return {"images": np.zeros((30, 8, 8), np.uint8), "labels": np.arange(30) % 3}
"""


def wait(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give workers a folder of their own with a short name, and end them."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # the name of a socket must be short
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    for note in folder.rglob("worker.json"):
        running = WorkerFolder(note.parent).worker()
        if running:
            with contextlib.suppress(psutil.Error):
                running[0].kill()
    shutil.rmtree(folder)


def ask(field: Any, name: str, kind: str = keys.DESCRIBE) -> Message:
    """Ask through the app that hands messages on."""
    question = field.question(kind, {keys.TRANSFER_HASH: keys.NO_HASH})
    return app(question, field.context(2, name, "fedkd"))


def worker_of(field: Any, name: str) -> psutil.Process:
    running = WorkerFolder.of(field.root / name / "silo.yaml").worker()
    assert running is not None
    return running[0]


def has_ended(worker: psutil.Process) -> bool:
    return not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_one_worker_answers_message_after_message_as_this_process_would(
    field: Callable[..., Any], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = field()
    first = ask(own, "north")
    worker = worker_of(own, "north")
    silo_file = own.root / "north" / "silo.yaml"
    folder = WorkerFolder.of(silo_file)
    assert stat.S_IMODE(folder.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.socket.stat().st_mode) == 0o600
    assert "torch" in " ".join(each.path for each in worker.memory_maps())
    check = SiloCheck(load_silo_file(silo_file), None, path=silo_file)
    (finding,) = [each for each in check.findings() if each.name == "worker"]
    assert finding.value.startswith(f"process {worker.pid} with ")
    here = own.ask("north", keys.DESCRIBE, {keys.TRANSFER_HASH: keys.NO_HASH})
    assert first.content == here.content
    assert len({entry["sha256"] for entry in own.audit("north")}) == 1
    # Refusals come through, and a changed silo.yaml counts from the next message on.
    own.write("north", {"share": {"min_samples": 1000}})
    assert "share.min_samples" in ask(own, "north").error.reason
    assert worker_of(own, "north") == worker
    # Another version of the code ends it once it is idle.
    own.write("north", {})
    monkeypatch.setattr(forward, "worker_version", lambda: "another version")
    assert ask(own, "north").content == here.content
    assert has_ended(worker)
    # The worker ends with the SuperNode of the message before.
    worker = worker_of(own, "north")
    supernode = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        identity = (supernode.pid, created_at(psutil.Process(supernode.pid)))
        monkeypatch.setattr(forward, "find_supernode", lambda: identity)
        assert ask(own, "north").content == here.content
        assert worker_of(own, "north") == worker
    finally:
        supernode.kill()
        supernode.wait()
    wait(lambda: has_ended(worker))


def test_a_killed_worker_costs_one_message_and_edited_code_of_the_owner_starts_a_new_one(
    field: Callable[..., Any], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = field()
    source = own.root / "gatedimages.py"
    source.write_text(GATE)
    monkeypatch.syspath_prepend(own.root)
    own.write("north", {"data": "gatedimages:images"})
    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as end:
        end.callback((own.root / "open").touch)  # whatever fails, the pool need not wait for ever
        lost = pool.submit(ask, own, "north")
        wait((own.root / "reached").exists)
        worker_of(own, "north").kill()
        assert "worker process ended while it answered" in lost.result(PATIENCE).error.reason
    assert "worker process" in own.audit("north")[-1]["refused"]
    count = lambda reply: reply.content.config_records[keys.INFO][keys.NUM_EXAMPLES]  # noqa: E731
    assert count(ask(own, "north")) == 30
    assert not has_ended(worker_of(own, "north"))
    source.write_text(GATE.replace("30", "42"))
    own.write("north", {"data": "gatedimages:images", "idle": 0})
    assert count(ask(own, "north")) == 42
    # idle: 0 keeps no worker.
    wait(lambda: WorkerFolder.of(own.root / "north" / "silo.yaml").worker() is None)


def test_a_worker_that_hangs_is_ended_when_the_server_stops_waiting(
    field: Callable[..., Any], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = field()
    (own.root / "gatedimages.py").write_text(GATE)
    monkeypatch.syspath_prepend(own.root)
    own.write("north", {"data": "gatedimages:images"})
    question = own.question(keys.DESCRIBE, {keys.TRANSFER_HASH: keys.NO_HASH})
    question.metadata.ttl = 3.0
    with ThreadPoolExecutor(2) as pool, contextlib.ExitStack() as end:
        end.callback((own.root / "open").touch)  # whatever fails, the pool need not wait for ever
        hangs = pool.submit(app, question, own.context(2, "north", "fedkd"))
        wait(lambda: WorkerFolder.of(own.root / "north" / "silo.yaml").worker())
        worker = worker_of(own, "north")
        waits = pool.submit(ask, own, "north")
        reason = hangs.result(PATIENCE).error.reason
        assert reason.endswith("was ended: the server has stopped waiting for its reply")
        wait(lambda: has_ended(worker))
        (own.root / "open").touch()
        assert waits.result(PATIENCE).content.config_records[keys.INFO][keys.NUM_EXAMPLES] == 30
    assert [entry.get("refused") for entry in own.audit("north")] == [reason, None]


def test_without_a_private_folder_the_message_is_answered_here(
    field: Callable[..., Any], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = field()
    folder = place / f"fedkd-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    answered: list[Message] = []

    def answer(message: Message, context: Any) -> Message:
        answered.append(message)
        return own.ask("north", keys.DESCRIBE, {keys.TRANSFER_HASH: keys.NO_HASH})

    monkeypatch.setattr(handlers, "app", answer)
    assert ask(own, "north").has_content()
    assert len(answered) == 1
    assert not list(folder.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere times of creation do not move")
@pytest.mark.parametrize("step", [-3600.0, -1.0, 7200.0])
def test_a_process_stays_the_same_when_the_clock_is_set(
    step: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock of after the step, the system and all its processes began at another time."""
    process = psutil.Process()
    created, by_clock = created_at(process), process.create_time()
    system = importlib.import_module("psutil._pslinux")
    began = system.boot_time()
    monkeypatch.setattr(system, "boot_time", lambda: began + step)
    if psutil.version_info >= (7, 1):  # earlier versions keep what they read first
        assert psutil.Process().create_time() != by_clock
    assert find_process(process.pid, created) == process
    assert find_process(process.pid, created + 0.01) is None


def test_frames_are_bounded_and_whole() -> None:
    one, other = socket.socketpair()
    with one, other:
        send_frame(one, b"abc")
        assert receive_frame(other, limit=3) == b"abc"
        send_frame(one, b"abcd")
        with pytest.raises(ValueError, match="4 bytes was announced; 3 is the limit"):
            receive_frame(other, limit=3)
        assert peer_uid(one) in (os.getuid(), None)
    one, other = socket.socketpair()
    with one, other:
        one.sendall(b"\0" * 7 + b"\5" + b"ab")
        one.close()
        with pytest.raises(ClosedError):
            receive_frame(other, limit=10)


def test_a_message_crosses_whatever_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    monkeypatch.setattr(message_frames, "MAX_BYTES", 1000)
    arrays = {"weight": torch.arange(5000.0), "none": torch.zeros(0, 2), "count": torch.tensor(3)}
    content = RecordDict(
        {
            "config": ConfigRecord({"round": 1}),
            "arrays": ArrayRecord(arrays),
            "more": ArrayRecord({"weight": torch.ones(2)}),
        }
    )
    question = Message(content, 2, "train")
    failure = Message(Error(0, "it failed"), reply_to=question)
    one, other = socket.socketpair()
    with one, other, ThreadPoolExecutor(1) as pool:
        for message in (question, failure):
            expected = message_to_proto(message)
            sent = pool.submit(message_frames.send_message, one, message)
            received = message_frames.receive_message(other)
            sent.result(PATIENCE)
            assert message_to_proto(received) == expected
    assert not any(question.content.array_records.values())  # two copies would take too much


def test_the_app_of_the_bundle_imports_no_pytorch() -> None:
    code = "import sys, clients.client_app; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
