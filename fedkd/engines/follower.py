"""Follow a run on a SuperLink through its log, reopening the stream whenever it breaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from fedkd.engines.app_folder import AppFolder
from fedkd.engines.base import Task
from fedkd.engines.flower_app import last_lines
from fedkd.engines.superlink import SuperLink, read_connection
from fedkd.errors import FedKDError, one_line
from fedkd.messages.run_log import BrokenLogError, Kind, LogReader
from fedkd.messages.validate import printable
from fedkd.results.observer import Observer
from fedkd.results.record import Point, RunRecord, append_point, build

POLL_SECONDS = 0.2
RETRY_SECONDS = 2.0
PATIENCE_SECONDS = 900.0
"""How long a SuperLink may stay out of reach before the caller gives up on a run."""
QUIET_SECONDS = 120.0
"""How long a stream may say nothing before it is opened anew: a cut link leaves it hanging."""
MOST_REREADS = 5
"""How often the log is read again in a row without anything new in it."""


class KilledRunError(FedKDError):
    """A run ended without a record and without reporting a reason."""


class OnlyNew:
    """Passes on to an observer only points it has not received, however often a curve restarts."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.points = 0

    def on_point(self, point: Point) -> None:
        """Pass on a round."""
        if point.round == self.points:
            self.points += 1
            self._observer.on_point(point)

    def on_distillation(self, epoch: int, epochs: int) -> None:
        """Pass on an epoch of the consolidation."""
        if not self.points:
            self._observer.on_distillation(epoch, epochs)

    def on_waiting(self, reason: str) -> None:
        """Pass on which silos are waited for."""
        self._observer.on_waiting(reason)


class Follower:
    """Reads one run's log to its end, reopening the stream as often as it breaks.

    ``take`` receives every line's kind and value, but for the last, whose kind is ``last``.
    """

    def __init__(
        self,
        superlink: SuperLink,
        run_id: str,
        take: Callable[[Kind, Any], None],
        last: Kind = "record",
    ) -> None:
        self._superlink = superlink
        self._run_id = run_id
        self._pass_on = take
        self._last = last
        self._reader = LogReader()
        self._result: dict[str, Any] | None = None
        self._entries = 0
        self._lost_since: float | None = None

    def follow(self) -> dict[str, Any]:
        """Return the value of the last line.

        Raises:
            KilledRunError: the run ended without a record or a reason.
            FedKDError: the run failed, or the SuperLink has not answered for too long.
        """
        rereads, shown = 0, False
        while True:
            before = self._entries
            problem = self._listen(stream=not shown)
            if self._result is not None:
                return self._result
            rereads = rereads + 1 if problem and self._entries == before else 0
            if rereads > MOST_REREADS:
                raise FedKDError(f"{problem}, however often it is read; {self._remedy()}")
            status = self._superlink.state_of(self._run_id)
            if status is None:
                self._wait()
                continue
            self._lost_since = None
            if status[0].startswith("finished"):
                # The stream may miss the last lines; the log shown now is complete.
                if shown and not problem:
                    raise KilledRunError(self._why_ended(status))
                shown = True

    def _listen(self, *, stream: bool) -> str:
        """Read the log to its end and return a description of its first problem, if any."""
        log = self._superlink.log_of(self._run_id)
        process = self._superlink.open_log(self._run_id, log, stream=stream)
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
                    if self._result is not None or ended or silent:
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
        if kind == "error":
            raise FedKDError(str(value))
        if kind == self._last:
            self._result = build_value(dict[str, Any], value)
        else:
            self._pass_on(kind, value)

    def _wait(self) -> None:
        now = time.monotonic()
        self._lost_since = self._lost_since or now
        if now - self._lost_since > PATIENCE_SECONDS:
            raise FedKDError(
                f"the SuperLink {self._superlink.address} has not answered for "
                f"{PATIENCE_SECONDS / 60:.0f} minutes; {self._remedy()}"
            )
        time.sleep(RETRY_SECONDS)

    def _remedy(self) -> str:
        return (
            f"it may still be running: `flwr log {self._run_id} {self._superlink.name}` shows it, "
            f"`flwr stop {self._run_id} {self._superlink.name}` ends it"
        )

    def _why_ended(self, status: tuple[str, str]) -> str:
        how, details = status
        end = last_lines(self._superlink.log_of(self._run_id))
        return f"the run ended ({how}: {details or 'no reason given'}) without a record:\n{end}"


def follow_run(
    connection: str, values: Mapping[str, str | int], take: Callable[[Kind, Any], None], last: Kind
) -> dict[str, Any]:
    """Start a run of a SuperLink's that belongs to no arm, and follow its log to the last line.

    An interrupt stops the run. For the arguments see :class:`Follower`.
    """
    link, place = read_connection(connection), AppFolder()
    try:
        superlink = SuperLink(link, place)
        run_id = superlink.submit(values)
        try:
            return Follower(superlink, run_id, take, last).follow()
        except KeyboardInterrupt:
            superlink.stop(run_id)
            raise
    finally:
        place.close()


def note_entry(task: Task, observer: Observer, kind: Kind, value: Any) -> None:
    """Take a line of an arm's run: write a point to its curve, and tell an observer."""
    if kind == "point":
        point = build_value(Point, value)
        append_point(task.folder, point)
        observer.on_point(point)
    elif kind == "distillation":
        observer.on_distillation(*build_value(tuple[int, int], value))
    elif kind == "waiting":
        observer.on_waiting(printable(value))


def read_record(value: Any, task: Task) -> RunRecord:
    """Build the record that a SuperLink's host sent, and validate its contents.

    Raises:
        FedKDError: it is not the record of this run.
    """
    record: RunRecord = build_value(RunRecord, value)
    asked = (task.arm, task.federation.seed, task.targets)
    if (record.arm, record.seed, record.targets) != asked:
        raise FedKDError("the run's record is of another arm, seed or targets")
    if not record.curve or [p.round for p in record.curve] != list(range(len(record.curve))):
        raise FedKDError("the run's record does not hold every round")
    return record


def build_value(kind: Any, value: Any) -> Any:
    """Build an instance of a type from plain values, each of them validated."""
    try:
        return build(kind, value)
    except (ValueError, TypeError) as error:
        raise FedKDError(f"the run's record is not valid: {one_line(error)}") from error
