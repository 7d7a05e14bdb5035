"""What the engine of real hosts believes, and what it says when it cannot go on."""

from __future__ import annotations

import copy
import os
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedkd.engines import superlink
from fedkd.engines.base import Task
from fedkd.engines.connection import ConnectionEngine, write_record
from fedkd.engines.follower import read_record
from fedkd.engines.superlink import read_connection
from fedkd.errors import FedKDError, UserError
from fedkd.results.record import Point, RunRecord, read_points
from fedkd.util import interrupt
from strategies.run_log import RunLog


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    return tmp_path / "config.toml"


def test_a_connection_is_found_by_its_name(home: Path) -> None:
    home.write_text('[superlink]\ndefault = "x"\n[superlink.field]\naddress = "fl.org:8000"\n')
    assert read_connection("field").address == "fl.org:8000"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "has none"),
        ("", "has none"),
        ('[superlink.feld]\naddress = "h:1"\n', "has feld"),
        ('[superlink.field]\naddress = ":local:"\n', "is a simulation"),
        ("[superlink.field.options]\nnum-supernodes = 2\n", "is a simulation"),
        ("[superlink", "cannot be read"),
    ],
)
def test_what_is_no_connection_is_refused(home: Path, text: str | None, said: str) -> None:
    if text is not None:
        home.write_text(text)
    with pytest.raises(UserError) as caught:
        read_connection("field")
    assert said in str(caught.value)
    assert "config.toml" in str(caught.value)


RECORD = RunRecord(
    arm="fedkd",
    seed=3,
    engine="field",
    curve=tuple(Point(n, 0.1 * n, 1.0, 10, 10, 0.5, 3, 0, 0.1) for n in range(3)),
    stopped="budget",
    exchanges_before_round_1=1,
    max_rounds=2,
    targets=(0.5,),
)


def make_task(folder: Path) -> Task:
    federation: Any = SimpleNamespace(seed=3)
    return Task(federation, "fedkd", (0.5,), folder)


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    assert read_record(asdict(RECORD), make_task(tmp_path)) == RECORD
    write_record(tmp_path / "run", RECORD)
    assert RunRecord.read(tmp_path / "run") == RECORD


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"arm": "other"}, "another arm"),
        ({"seed": 4}, "another arm, seed"),
        ({"targets": [0.6]}, "targets"),
        ({"curve": []}, "every round"),
        ({"curve": [asdict(RECORD.curve[1])]}, "every round"),
        ({"curve": [{"round": 0}]}, "is not valid"),
        ({"surprise": 1}, "is not valid"),
        ({"quarantined": [1]}, "is not valid"),
    ],
)
def test_a_record_is_checked_and_not_believed(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    value = {**copy.deepcopy(asdict(RECORD)), **change}
    with pytest.raises(FedKDError, match=said):
        read_record(value, make_task(tmp_path))


def test_what_a_server_prints_is_what_a_caller_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedkd.messages.run_log import LogReader

    write_record(tmp_path, RECORD)
    log = RunLog()
    for point in RECORD.curve:
        log.on_point(point)
    for epoch in range(1, 101):
        log.on_distillation(epoch, 100)
    log.on_end(tmp_path)
    reader = LogReader()
    lines = capsys.readouterr().out.splitlines()
    said = [found for line in lines if (found := reader.read(line))]
    points = [Point(**value) for kind, value in said if kind == "point"]
    assert tuple(points) == RECORD.curve == read_points(tmp_path)
    assert [value for kind, value in said if kind == "distillation"][-1] == [100, 100]
    assert len(said) < 40
    kind, value = said[-1]
    assert kind == "record"
    assert read_record(value, make_task(tmp_path)) == RECORD


FLWR = """#!{python}
import json, pathlib, sys, time
command = sys.argv[1]
with open({calls!r}, "a") as calls:
    calls.write(" ".join(sys.argv[1:3]) + "\\n")
if command == {hangs!r}:
    time.sleep(600)
elif command == "run":
    print(json.dumps({{"run-id": "77"}}))
elif command == "stop":
    sys.exit({code})
"""


@pytest.mark.parametrize(
    ("code", "hangs", "said"),
    [
        (0, "log", "Interrupted. Resume with: it"),
        (1, "log", "Interrupted. The run may continue on the SuperLink; `flwr stop 77 field` "),
        (0, "run", "Interrupted. A run may have started on the SuperLink; `flwr ls field` lists"),
    ],
)
def test_an_interrupted_run_is_stopped_or_the_user_knows_how(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, hangs: str, said: str
) -> None:
    """The command line has some seconds between Ctrl-C and its end."""
    calls, program = tmp_path / "calls", tmp_path / "flwr"
    values = {"python": sys.executable, "calls": str(calls), "hangs": hangs, "code": code}
    program.write_text(FLWR.format(**values))
    program.chmod(0o755)
    monkeypatch.setattr(superlink, "find_program", lambda _: program)
    home.write_text('[superlink.field]\naddress = "fl.org:8000"\n')
    task: Any = SimpleNamespace(folder=tmp_path / "s/1/fedkd/seed-0", run_config=dict)
    task.folder.mkdir(parents=True)

    def interrupt_when_called() -> None:
        while not calls.exists() or hangs not in calls.read_text():
            ended.wait(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    ended = threading.Event()
    monkeypatch.setattr(interrupt, "_ENDING", interrupt._Ending())
    with ConnectionEngine("field") as engine:
        interrupt.advise("Resume with: it")
        threading.Thread(target=interrupt_when_called, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            engine.run(task, Silent())
        assert interrupt.sentence().startswith(said)
    assert ("stop 77" in calls.read_text()) == (hangs == "log")


class Silent:
    def on_point(self, point: Any) -> None:
        pass

    def on_distillation(self, epoch: int, epochs: int) -> None:
        pass


def test_stopping_leaves_time_to_end() -> None:
    assert superlink.STOP_TIMEOUT < interrupt.LIMIT_SECONDS
