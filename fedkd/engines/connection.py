"""The engine for real hosts: every arm is a run on a SuperLink that is already running.

Results come back in the run's log, whose lines are validated
(:mod:`fedkd.messages.run_log`). The run continues whether or not its log is read, so a broken
stream is reopened. Model and state stay on the SuperLink's host.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from functools import partial
from pathlib import Path
from typing import Any

from fedkd.engines.app_folder import AppFolder
from fedkd.engines.base import Task
from fedkd.engines.follower import Follower, KilledRunError, OnlyNew, note_entry, read_record
from fedkd.engines.superlink import SuperLink, read_connection
from fedkd.errors import UserError
from fedkd.messages import keys
from fedkd.results.folder import STUDY_FILE, read_study
from fedkd.results.observer import Observer
from fedkd.results.record import CUT_SHORT, ROUNDS_FILE, RunRecord, write_points, write_state
from fedkd.util import interrupt
from fedkd.util.files import write_json

RUN_FILE = "flower-run.json"
"""Beside a run's record: Flower's id of it, the name under which its host keeps its state, and a
hash of what it was asked for."""
_ELSEWHERE = frozenset({keys.CONFIG_RUN_DIR, keys.CONFIG_CACHE_DIR})
"""Folders of this host, which do not exist on that of the SuperLink."""
RUN_NAME, RUN_ID, ASKED = "run-name", "run-id", "asked"


class ConnectionEngine:
    """Runs every arm by ``flwr run`` on a SuperLink and follows its log.

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
        So does a finished one that is asked for more rounds or for other targets.
        """
        told = OnlyNew(observer)
        note, asked = _read_note(task.folder), _hash_task(task)
        run_id = note.get(RUN_ID, "")
        if run_id and note.get(ASKED, asked) != asked:
            self._superlink.stop(run_id)  # two runs must not write to one state
        elif run_id and self._still_tells(run_id):
            record = self._follow(run_id, task, told)
            if record is not None and record.stopped not in CUT_SHORT:
                write_record(task.folder, record)
                return
        name = note.get(RUN_NAME) or f"{task.folder.parents[1].name[:40]}-{uuid.uuid4().hex[:8]}"
        record = None
        while record is None:
            note = {RUN_NAME: name, ASKED: asked}
            write_json(task.folder / RUN_FILE, note)
            run_id = self._submit(task, name)
            write_json(task.folder / RUN_FILE, {**note, RUN_ID: run_id})
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
            take = partial(note_entry, task, told)
            return read_record(Follower(self._superlink, run_id, take).follow(), task)
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
        elsewhere = {**dict.fromkeys(_ELSEWHERE, ""), keys.CONFIG_RUN_NAME: name}
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


def _hash_task(task: Task) -> str:
    """Return a hash of the study, arm, seed and targets of a run."""
    asked = {key: value for key, value in task.run_config().items() if key not in _ELSEWHERE}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def locate_on_host(path: Path) -> dict[str, Any]:
    """Return how the SuperLink's host finds the state of a run, by its folder on this host.

    Raises:
        UserError: the folder is not of a run on a SuperLink.
    """
    record = RunRecord.read(path)
    folder = path.absolute().parents[1]
    name, study = _read_note(path).get(RUN_NAME), read_study(folder).get("name")
    if not name or not isinstance(study, str):
        raise UserError(
            f"{path} is not of a run on a SuperLink: its {RUN_FILE} or {folder / STUDY_FILE} does "
            "not name the run"
        )
    return {"study": study, "run": name, "arm": record.arm, "seed": record.seed}


def _read_note(folder: Path) -> dict[str, str]:
    """Return the note on an interrupted run, or nothing."""
    try:
        noted = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: str(value) for key, value in noted.items()} if isinstance(noted, dict) else {}
