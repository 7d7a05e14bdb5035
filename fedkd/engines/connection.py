"""The engine for real hosts: every arm is a run on a SuperLink that is already running.

Results come back in the run's log, whose lines are validated
(:mod:`fedkd.messages.run_log`). The run continues whether or not its log is read, so a broken
stream is reopened. Model and state stay on the SuperLink's host.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from fedkd.engines.app_folder import AppFolder
from fedkd.engines.base import Task
from fedkd.engines.follower import Follower, KilledRunError, OnlyNew
from fedkd.engines.superlink import SuperLink, read_connection
from fedkd.messages import keys
from fedkd.results.observer import Observer
from fedkd.results.record import CUT_SHORT, ROUNDS_FILE, RunRecord, write_points, write_state
from fedkd.util import interrupt
from fedkd.util.files import write_json

RUN_FILE = "flower-run.json"
"""Beside a run's record: Flower's id of it, and the name under which its host keeps its state."""
RUN_NAME, RUN_ID = "run-name", "run-id"


class ConnectionEngine:
    """Runs every arm by ``flwr run`` on a SuperLink and follows its log.

    Args:
        name: of the connection.

    Raises:
        UserError: Flower has no connection of this name.
    """

    remote = True

    def __init__(self, name: str) -> None:
        self._connection = read_connection(name)

    def __enter__(self) -> ConnectionEngine:
        """Make the app folder."""
        self._place = AppFolder()
        self._superlink = SuperLink(self._connection, self._place)
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End the log readers and remove the folder; the runs on the SuperLink continue."""
        self._place.close()

    def run(self, task: Task, observer: Observer) -> None:
        """Run one arm; see :class:`fedkd.engines.base.Engine`.

        An interrupt also stops the run on the SuperLink. A run that is still running is followed
        from where it is; an interrupted one resumes from the state kept on the SuperLink's host.
        """
        told = OnlyNew(observer)
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

    def _follow(self, run_id: str, task: Task, told: OnlyNew) -> RunRecord | None:
        """Return the run's record; None if its server was killed after making progress.

        Raises:
            FedKDError: the run failed, and resuming it would fail too.
        """
        (task.folder / ROUNDS_FILE).unlink(missing_ok=True)  # the log begins with round 0
        before = told.points
        try:
            return Follower(self._superlink, run_id, task, told).follow()
        except KilledRunError:
            if told.points == before:
                raise
            return None
        except KeyboardInterrupt:
            self._stop(run_id)
            raise

    def _stop(self, run_id: str) -> None:
        """Stop the run, or let the user know how; few seconds are left for that."""
        command = f"`flwr stop {run_id} {self._superlink.name}` stops it."
        interrupt.remark(f"The run may continue on the SuperLink; {command}")
        if self._superlink.stop(run_id):
            interrupt.remark("")

    def _still_tells(self, run_id: str) -> bool:
        """Whether an earlier run is still running or has finished successfully."""
        state = self._superlink.state_of(run_id)
        return state is not None and (
            not state[0].startswith("finished") or state[0] == "finished:completed"
        )

    def _submit(self, task: Task, name: str) -> str:
        """Start the run under a name set here; folders of this host do not exist there."""
        elsewhere = {keys.CONFIG_RUN_DIR: "", keys.CONFIG_CACHE_DIR: "", keys.CONFIG_RUN_NAME: name}
        try:
            return self._superlink.submit(task.run_config() | elsewhere)
        except KeyboardInterrupt:
            command = f"`flwr ls {self._superlink.name}` lists it, `flwr stop` stops it."
            interrupt.remark(f"A run may have started on the SuperLink; {command}")
            raise


def write_record(folder: Path, record: RunRecord) -> None:
    """Write a record as a local engine does, without the model."""
    write_points(folder, record.curve)
    write_state(folder, record)


def _read_note(folder: Path) -> dict[str, str]:
    """Return the note on an interrupted run, or nothing."""
    try:
        noted = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: str(value) for key, value in noted.items()} if isinstance(noted, dict) else {}
