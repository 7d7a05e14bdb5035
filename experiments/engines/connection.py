"""The engine of real hosts: every arm is a run on a SuperLink that others started.

What comes back is the run's log, whose lines are checked (:mod:`fedkd.run_log`). The run goes on
whether or not anybody listens, so a stream that breaks is opened again; model and state stay on
the SuperLink's host.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import uuid
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import TypeAdapter

from experiments.engines.base import Task
from experiments.engines.flower_app import find_program, last_lines, write_app
from experiments.engines.processes import MARK, end_all, start, start_keeper
from fedkd import wire
from fedkd.errors import FedKDError, UserError
from fedkd.files import write_json
from fedkd.results import (
    CUT_SHORT,
    ROUNDS_FILE,
    Point,
    RunRecord,
    append_point,
    write_points,
    write_state,
)
from fedkd.run_log import BrokenLogError, LogReader
from strategies.setting import Observer

RUN_FILE = "flower-run.json"
"""Beside a run's record: Flower's id of it, and the name under which its host keeps its state."""
RUN_NAME, RUN_ID = "run-name", "run-id"

ASK_TIMEOUT = 120.0
SUBMIT_TIMEOUT = 300.0
POLL_SECONDS = 0.2
RETRY_SECONDS = 2.0
PATIENCE_SECONDS = 900.0
"""How long a SuperLink may stay out of reach before the caller gives up on a run."""
QUIET_SECONDS = 120.0
"""How long a stream may say nothing before it is opened anew: a cut link leaves it hanging."""
MOST_REREADS = 5
"""How often the log is read again in a row without anything new in it."""
FORGOTTEN = "finished:forgotten"
"""What stands for the status of a run of which the SuperLink knows nothing."""


@dataclass(frozen=True)
class Connection:
    """A SuperLink as Flower's ``config.toml`` names it."""

    name: str
    address: str


def flower_home() -> Path:
    """Return the folder of Flower's own configuration."""
    return Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")


def read_connection(name: str) -> Connection:
    """Find a SuperLink connection in Flower's ``config.toml``.

    Raises:
        UserError: there is none of that name, or it is no SuperLink on a host.
    """
    path = flower_home() / "config.toml"
    try:
        links = tomllib.loads(path.read_text(encoding="utf-8")).get("superlink", {})
    except FileNotFoundError:
        links = {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    known = [key for key, value in links.items() if isinstance(value, dict)]
    if name not in known:
        listed = f"; {path} has {', '.join(known)}" if known else f"; {path} has none"
        raise UserError(
            f"engine.name: {name!r} is neither inline, ray nor a SuperLink connection of Flower"
            f"{listed}. Add a section [superlink.{name}] with address and root-certificates"
        )
    address = links[name].get("address")
    if not isinstance(address, str) or address.startswith(":"):
        raise UserError(
            f"engine.name: the connection {name!r} of {path} is a simulation; use --engine ray, or "
            "give it the address of a SuperLink"
        )
    return Connection(name, address)


class ConnectionEngine:
    """Runs every arm by ``flwr run`` on a SuperLink, and follows its log.

    Args:
        name: of the connection.

    Raises:
        UserError: Flower knows no such connection.
    """

    remote = True

    def __init__(self, name: str) -> None:
        self._connection = read_connection(name)
        self._runs = 0

    def __enter__(self) -> ConnectionEngine:
        """Make the app folder."""
        self._folder = Path(tempfile.mkdtemp(prefix="fedkd-"))
        self._environment = _make_environment(self._folder)
        self._keeper = start_keeper(self._folder)
        try:
            self._app = write_app(self._folder / "fedkd-app")
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End what listens still, and remove the folder; the runs are not ours to end."""
        self._clean_up()

    def _clean_up(self) -> None:
        end_all(self._folder)
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._keeper.stdin is not None:
            self._keeper.stdin.close()
        self._keeper.wait()

    def run(self, task: Task, observer: Observer) -> None:
        """Run one arm; see :class:`experiments.engines.base.Engine`.

        Interrupted, it stops the run on the SuperLink too. A run that was left alone meanwhile is
        taken up where it is; one that was cut short goes on from what its host has kept.
        """
        told = _OnlyNew(observer)
        note = _read_note(task.folder)
        run_id = note.get(RUN_ID, "")
        if run_id and self._still_tells(run_id):
            record = self._follow(run_id, task, told)
            if record is not None and record.stopped not in CUT_SHORT:
                write_record(task.folder, record)
                return
        name = note.get(RUN_NAME) or f"{task.folder.parents[1].name[:40]}-{uuid.uuid4().hex[:8]}"
        record = None
        while record is None:
            write_json(task.folder / RUN_FILE, {RUN_NAME: name})
            run_id = self._submit(task, name)
            write_json(task.folder / RUN_FILE, {RUN_NAME: name, RUN_ID: run_id})
            record = self._follow(run_id, task, told)
        write_record(task.folder, record)

    def _follow(self, run_id: str, task: Task, told: _OnlyNew) -> RunRecord | None:
        """Return the run's record; None if its server was killed after it had got further.

        Raises:
            FedKDError: the run failed, and another that goes on from it would too.
        """
        (task.folder / ROUNDS_FILE).unlink(missing_ok=True)  # the log begins with round 0
        before = told.points
        try:
            return _Follower(self, run_id, task, told).follow()
        except KilledRunError:
            if told.points == before:
                raise
            return None
        except KeyboardInterrupt:
            self.flwr("stop", run_id, self.name, timeout=ASK_TIMEOUT)
            raise

    def _still_tells(self, run_id: str) -> bool:
        """Whether a run that was begun before is under way, or has come to a good end."""
        state = self.state_of(run_id)
        return state is not None and (
            not state[0].startswith("finished") or state[0] == "finished:completed"
        )

    @property
    def name(self) -> str:
        """The connection's name."""
        return self._connection.name

    @property
    def address(self) -> str:
        """The SuperLink's address."""
        return self._connection.address

    def _submit(self, task: Task, name: str) -> str:
        """Start the run under a name of ours, and return Flower's id of it."""
        self._runs += 1
        config = self._folder / f"run-{self._runs}.toml"
        elsewhere = {wire.CONFIG_RUN_DIR: "", wire.CONFIG_CACHE_DIR: "", wire.CONFIG_RUN_NAME: name}
        values = task.run_config() | elsewhere
        config.write_text(tomli_w.dumps(values), encoding="utf-8")
        command = ("run", str(self._app), self.name, "--run-config", str(config))
        answer = self.flwr(*command, "--format", "json", timeout=SUBMIT_TIMEOUT)
        run_id = _read_json(answer.stdout).get("run-id")
        if not isinstance(run_id, str) or not run_id.isdecimal():
            raise FedKDError(f"the SuperLink {self.address} does not take the run: {_said(answer)}")
        return run_id

    def state_of(self, run_id: str) -> tuple[str, str] | None:
        """Return a run's status and its details, or None while the SuperLink does not answer."""
        answer = self.flwr(
            "ls", self.name, "--run-id", run_id, "--format", "json", timeout=ASK_TIMEOUT
        )
        for run in _read_json(answer.stdout).get("runs", []):
            if str(run.get("run-id")) == run_id:
                return str(run.get("status")), str(run.get("status-details") or "")
        if "Run ID not found" in answer.stdout + answer.stderr:
            return (
                FORGOTTEN,
                "the SuperLink does not know it: was it started without --database?",
            )
        return None

    def open_log(self, run_id: str, log: Path, *, stream: bool) -> subprocess.Popen[bytes]:
        """Let the log of a run flow into a file, from its beginning."""
        log.unlink(missing_ok=True)
        how = "--stream" if stream else "--show"
        command: list[str | Path] = [find_program("flwr"), "log", run_id, self.name, how]
        return start(command, self._environment, log)

    def log_of(self, run_id: str) -> Path:
        """Return where a run's log flows to."""
        return self._folder / f"log-{run_id}.txt"

    def flwr(self, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """Run one command of Flower's own to its end; one that hangs counts as failed."""
        command = [str(find_program("flwr")), *arguments]
        try:
            return subprocess.run(  # noqa: S603 -- our own command
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
                start_new_session=True,  # the terminal's Ctrl-C is ours to answer
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 1, "", f"no answer in {timeout:g} s")


class KilledRunError(FedKDError):
    """A run ended without a record, and without a reason that it told itself."""


class _OnlyNew:
    """Passes on to an observer what it has not been told before, however often a curve begins."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.points = 0

    def on_point(self, point: Point) -> None:
        if point.round == self.points:
            self.points += 1
            self._observer.on_point(point)

    def on_distillation(self, epoch: int, epochs: int) -> None:
        if not self.points:
            self._observer.on_distillation(epoch, epochs)


class _Follower:
    """Reads one run's log to its end, opening it again as often as it breaks."""

    def __init__(
        self, engine: ConnectionEngine, run_id: str, task: Task, observer: Observer
    ) -> None:
        self._engine = engine
        self._run_id = run_id
        self._task = task
        self._observer = observer
        self._reader = LogReader()
        self._record: dict[str, Any] | None = None
        self._entries = 0
        self._lost_since: float | None = None

    def follow(self) -> RunRecord:
        """Return the run's record.

        Raises:
            KilledRunError: the run ended without a word.
            FedKDError: the run failed, or the SuperLink is out of reach for long.
        """
        rereads, shown = 0, False
        while True:
            before = self._entries
            problem = self._listen(stream=not shown)
            if self._record is not None:
                return read_record(self._record, self._task)
            rereads = rereads + 1 if problem and self._entries == before else 0
            if rereads > MOST_REREADS:
                raise FedKDError(f"{problem}, however often it is read; {self._remedy()}")
            status = self._engine.state_of(self._run_id)
            if status is None:
                self._wait()
                continue
            self._lost_since = None
            if status[0].startswith("finished"):
                # The stream may miss what was said last; what is shown now is all there is.
                if shown and not problem:
                    raise KilledRunError(self._why_ended(status))
                shown = True

    def _listen(self, *, stream: bool) -> str:
        """Take in the log until its end, and return what is wrong with it, if anything."""
        log = self._engine.log_of(self._run_id)
        process = self._engine.open_log(self._run_id, log, stream=stream)
        spoke = time.monotonic()
        try:
            with log.open("rb") as file:
                rest = b""
                while True:
                    ended = process.poll() is not None
                    more = file.read()
                    spoke = time.monotonic() if more else spoke
                    rest += more
                    *lines, rest = rest.split(b"\n")
                    for line in lines:
                        self._take(line.decode("utf-8", errors="replace"))
                    silent = time.monotonic() - spoke > QUIET_SECONDS
                    if self._record is not None or ended or silent:
                        return ""
                    time.sleep(POLL_SECONDS)
        except BrokenLogError as problem:
            return str(problem)
        finally:
            process.kill()
            process.wait()

    def _take(self, line: str) -> None:
        entry = self._reader.read(line)
        if entry is None:
            return
        self._entries += 1
        kind, value = entry
        if kind == "point":
            point = _build(Point, value)
            append_point(self._task.folder, point)
            self._observer.on_point(point)
        elif kind == "distillation":
            self._observer.on_distillation(*_build(tuple[int, int], value))
        elif kind == "error":
            raise FedKDError(str(value))
        else:
            self._record = value

    def _wait(self) -> None:
        now = time.monotonic()
        self._lost_since = self._lost_since or now
        if now - self._lost_since > PATIENCE_SECONDS:
            raise FedKDError(
                f"the SuperLink {self._engine.address} has not answered for "
                f"{PATIENCE_SECONDS / 60:.0f} minutes; {self._remedy()}"
            )
        time.sleep(RETRY_SECONDS)

    def _remedy(self) -> str:
        return (
            f"the run may go on there: `flwr log {self._run_id} {self._engine.name}` shows it, "
            f"`flwr stop {self._run_id} {self._engine.name}` ends it"
        )

    def _why_ended(self, status: tuple[str, str]) -> str:
        how, details = status
        end = last_lines(self._engine.log_of(self._run_id))
        return f"the run ended ({how}: {details or 'no reason given'}) without a record:\n{end}"


def read_record(value: Any, task: Task) -> RunRecord:
    """Build the record that a SuperLink's host sent; what it says is checked, not believed.

    Raises:
        FedKDError: it is not the record of this very run.
    """
    record: RunRecord = _build(RunRecord, value)
    asked = (task.arm, task.federation.seed, task.targets)
    if (record.arm, record.seed, record.targets) != asked:
        raise FedKDError("the run's record is of another arm, seed or targets")
    if not record.curve or [p.round for p in record.curve] != list(range(len(record.curve))):
        raise FedKDError("the run's record does not hold every round")
    return record


def write_record(folder: Path, record: RunRecord) -> None:
    """Write a record as a local engine would have left it, but for the model."""
    write_points(folder, record.curve)
    write_state(folder, record)


def _read_note(folder: Path) -> dict[str, str]:
    """Return what was noted of a run before it was cut short, or nothing."""
    try:
        noted = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: str(value) for key, value in noted.items()} if isinstance(noted, dict) else {}


def _build(kind: Any, value: Any) -> Any:
    """Build what a type says from plain values, each of them checked.

    Raises:
        FedKDError: they are something else.
    """
    try:
        if is_dataclass(kind) and set(value) - {each.name for each in fields(kind)}:
            raise ValueError("it has a key too many")
        return TypeAdapter(kind).validate_python(value)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise FedKDError(f"the run's record cannot be understood: {reason}") from error


def _make_environment(folder: Path) -> dict[str, str]:
    """Return what Flower's commands get to know; the mark ends them when this process is gone."""
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {
        **os.environ,
        MARK: str(folder),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "NO_COLOR": "1",
        "PATH": programs,
    }


def _read_json(text: str) -> dict[str, Any]:
    """Find the JSON object in what a command printed; empty if there is none."""
    start_of = text.find("{")
    try:
        found, _ = json.JSONDecoder().raw_decode(text[start_of:]) if start_of >= 0 else ({}, 0)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _said(answer: subprocess.CompletedProcess[str]) -> str:
    told = _read_json(answer.stdout).get("error-message")
    text = str(told or answer.stderr or answer.stdout).strip()
    return " ".join(text.split())[:600] or f"exit code {answer.returncode}"
