"""Locks between processes: one holder, free when the holder dies, waiting with a limit."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedkd.errors import UserError
from fedkd.util.lock import LOCK_FILE, hold_lock, lock_folder

HOLDER = """
import sys, time
from pathlib import Path
from fedkd.util.lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Hold a folder's lock in another process."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_lock_has_one_holder_and_says_which(tmp_path: Path) -> None:
    sentence = f"{tmp_path} is being written by process {os.getpid()} on '.*'; wait for its end"
    with lock_folder(tmp_path), pytest.raises(UserError, match=sentence), lock_folder(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]
    with lock_folder(tmp_path):
        pass


def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(UserError, match=f"process {process.pid} on"), lock_folder(tmp_path):
            pass
        process.kill()
        process.wait()
        with lock_folder(tmp_path):
            pass


def test_it_waits_for_the_holder_to_let_go(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        threading.Timer(0.2, process.kill).start()
        with lock_folder(tmp_path, wait=60):
            assert process.wait(timeout=60) < 0


def test_it_waits_no_longer_than_told(tmp_path: Path) -> None:
    with lock_folder(tmp_path), pytest.raises(UserError), lock_folder(tmp_path, wait=0.1):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x", "host": 1}', "\0" * 5000])
def test_a_holder_that_left_no_name_is_another_process(content: str, tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        (tmp_path / f"{LOCK_FILE}.json").write_text(content)
        with pytest.raises(UserError, match="is being written by another process"):
            lock_folder(tmp_path).__enter__()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sentence = f"{tmp_path / 'it'} cannot be written to: "
    with (
        pytest.raises(UserError, match=sentence),
        hold_lock(tmp_path / "file" / "lock", what=tmp_path / "it"),
    ):
        pass
