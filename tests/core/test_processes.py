"""Processes by their mark: all are found and ended, detached and stubborn ones too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fedkd.engines import processes
from fedkd.engines.processes import MARK, end_marked, find_marked, start

DETACHED = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = [sys.executable, "-c", "import time; time.sleep(600)"]
subprocess.Popen(child, start_new_session=True)
print("started", flush=True)
time.sleep(600)
"""
PARENT = """
import sys, time
from pathlib import Path
from fedkd.engines.app_folder import AppFolder
place = AppFolder()
place.start([sys.executable, "-c", sys.argv[1]], place.folder / "log.txt")
print(place.folder, flush=True)
time.sleep(600)
"""
LIMIT = 60.0


def wait_for_line(log: Path) -> None:
    with psutil.Popen(["tail", "-F", "-n", "+1", log], stdout=subprocess.PIPE) as tail:
        assert tail.stdout.readline()
        tail.kill()


def test_all_that_a_folder_marks_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.5)
    log = tmp_path / "log.txt"
    marked = {**os.environ, MARK: str(tmp_path)}
    child = start([sys.executable, "-c", DETACHED], marked, log)
    other = start([sys.executable, "-c", "import time; time.sleep(600)"], os.environ, log)
    wait_for_line(log)
    assert len(find_marked(tmp_path)) == 2
    assert find_marked(tmp_path.parent) == []
    assert find_marked(tmp_path, "ANOTHER_MARK") == []
    end_marked(tmp_path)
    assert find_marked(tmp_path) == []
    assert child.wait(timeout=LIMIT) < 0
    assert other.poll() is None, "it bears no mark"
    end_marked(tmp_path, started=[other])
    assert other.wait(timeout=LIMIT) < 0


def test_they_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    detached = DETACHED.replace("SIG_IGN", "SIG_DFL")  # a stubborn one takes the time of grace
    command = [sys.executable, "-c", PARENT, detached]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        folder = Path(parent.stdout.readline().strip())
        wait_for_line(folder / "log.txt")
        left = find_marked(folder)
        assert len(left) == 2
        cleaners = [p for p in psutil.Process(parent.pid).children() if p not in left]
        parent.kill()
    _, alive = psutil.wait_procs([*left, *cleaners], timeout=LIMIT)
    assert alive == []
    assert not folder.exists()
