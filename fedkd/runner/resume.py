"""Resuming a study in its results folder: what the folder contains, and whether it is usable."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from fedkd.config import Arm, Study
from fedkd.config.study_file import load_study
from fedkd.engines.base import Task
from fedkd.engines.connection import RUN_FILE
from fedkd.errors import FedKDError, UserError
from fedkd.results.folder import STUDY_FILE
from fedkd.results.record import (
    CHECKPOINT_FILE,
    CUT_SHORT,
    PROGRESS_FILE,
    STATE_FILE,
    RunRecord,
    model_files,
    read_points,
)
from fedkd.util.cache import environment
from fedkd.util.files import write_json
from fedkd.util.lock import lock_folder
from fedkd.util.safetensors_header import find_checkpoint_problem
from strategies.savepoint import read_exchanges
from strategies.server_app import ERROR_FILE, FAULT_FILE, LOCK_WAIT_SECONDS

BEGINNING_FILE = "beginning.json"
_LARGEST = 1 << 16


def write_beginning(folder: Path, *, fresh: bool) -> None:
    """Record what ``study.yaml`` does not contain and a resumed study must repeat."""
    write_json(folder / BEGINNING_FILE, {"fresh": fresh, "environment": environment()})


def read_beginning(folder: Path) -> tuple[Study, bool]:
    """Return the study of a results folder, and whether it runs without the cache.

    Raises:
        UserError: the folder was written by another version of fedkd or on another kind of machine.
    """
    path = folder / BEGINNING_FILE
    try:
        with path.open("rb") as file:
            said = json.loads(file.read(_LARGEST))
        begun, fresh = dict(said["environment"]), said["fresh"]
        if not isinstance(fresh, bool):
            raise TypeError("fresh is neither true nor false")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({error}), so {folder} cannot be resumed; run the "
            f"study anew: fedkd compare {shlex.quote(str(folder / STUDY_FILE))}"
        ) from error
    now = environment()
    if changed := [name for name in now if begun.get(name) != now[name]]:
        name = changed[0]
        what = "fedkd's code" if name == "code" else f"{name} ({begun.get(name)!s:.60})"
        raise UserError(
            f"{folder} was begun with another version of {what}, whose rounds must not be mixed "
            f"with this version's; run the study anew: fedkd compare "
            f"{shlex.quote(str(folder / STUDY_FILE))}"
        )
    return load_study(folder / STUDY_FILE), fresh


def check_runs(folder: Path, study: Study) -> None:
    """Check the files of every run before any of them is used.

    Raises:
        UserError: a file is damaged or does not belong to a run of this study.
    """
    for arm in study.arms:
        for seed in study.seeds:
            run = folder / arm / f"seed-{seed}"
            if not run.exists():
                continue
            try:
                _check_run(run, arm, seed)
            except (FedKDError, OSError, ValueError) as error:
                raise UserError(
                    f"{error}; if {run} is not worth keeping, remove it, and it will run anew"
                ) from error


def _check_run(run: Path, arm: str, seed: int) -> None:
    if (progress := run / PROGRESS_FILE).exists() and (
        problem := find_checkpoint_problem(progress)
    ):
        raise UserError(problem)
    if not (run / STATE_FILE).exists():
        return
    record = RunRecord.read(run)
    if (record.arm, record.seed) != (arm, seed):
        raise UserError(f"{run / STATE_FILE} is of {record.arm}, seed {record.seed}")
    elsewhere = (run / RUN_FILE).exists()  # its model stayed on the SuperLink's host
    if (
        record.stopped != "interrupted"
        and not elsewhere
        and (problem := find_checkpoint_problem(run / CHECKPOINT_FILE))
    ):
        raise UserError(problem)


def read_ended(folder: Path, max_rounds: int) -> RunRecord | None:
    """Return the record of a run that has finished; None if the run can continue.

    A run that used up fewer than ``max_rounds`` continues.
    """
    if not (folder / STATE_FILE).is_file():
        return None
    record = RunRecord.read(folder)
    unfinished = record.stopped == "budget" and record.max_rounds < max_rounds
    return None if unfinished or record.stopped in CUT_SHORT else record


def check_can_go_on(folder: Path, study: Study) -> None:
    """Check that runs that have finished have the state from which they go on to more rounds."""
    for arm in study.arms:
        for seed in study.seeds:
            run = folder / arm / f"seed-{seed}"
            ended = (run / STATE_FILE).exists()
            kept = any((run / name).exists() for name in (PROGRESS_FILE, RUN_FILE))
            if ended and not kept and read_ended(run, study.rounds_of(arm).max) is None:
                raise UserError(
                    f"--rounds: {run} has no {PROGRESS_FILE}, from which it would go on; remove "
                    "the folder, and it will run anew"
                )


def clear(folder: Path) -> None:
    """Remove from a run that continues all files that resuming does not need."""
    # If the engine was killed, the server that it started may live for a moment longer.
    with lock_folder(folder, wait=LOCK_WAIT_SECONDS):
        if any((folder / name).exists() for name in (PROGRESS_FILE, RUN_FILE)):
            for name in (STATE_FILE, ERROR_FILE, FAULT_FILE):
                (folder / name).unlink(missing_ok=True)
            for model in model_files(folder) if (folder / RUN_FILE).exists() else []:
                model.unlink()  # it was fetched, and will be another
            return
    shutil.rmtree(folder)


def command(folder: Path, track: Sequence[str] = ()) -> str:
    """Return the command that resumes a study."""
    words = ["fedkd", "compare", "--resume", str(folder)]
    for name in track:
        words += ["--track", name]
    return shlex.join(words)


def record_interrupted(task: Task, study: Study) -> RunRecord | None:
    """Return what an interrupted run has measured; None if it has measured nothing."""
    curve = read_points(task.folder)
    if not curve:
        return None
    exchanges = read_exchanges(task.folder)
    if exchanges is None:
        exchanges = study.exchanges_before_round_1(task.arm)
    return RunRecord(
        arm=task.arm,
        seed=task.federation.seed,
        engine=study.engine.name,
        curve=curve,
        stopped="interrupted",
        exchanges_before_round_1=exchanges,
        max_rounds=study.rounds_of(task.arm).max,
        targets=task.targets,
        metric=study.metric,
    )


def lengthen(study: Study, rounds: int) -> Study:
    """Return the study with ``rounds.max`` of all arms set to ``rounds``.

    Arms that have so many rounds already stay as they are, so that the same command continues a
    study that was interrupted after it was lengthened.

    Raises:
        UserError: an arm has more rounds, or its learning rates depend on their number.
    """
    for name in study.arms:
        settings = study.rounds_of(name)
        if rounds < settings.max:
            raise UserError(
                f"--rounds: arms.{name} has {settings.max} rounds, more than {rounds}; a study "
                "can only be lengthened"
            )
        if rounds > settings.max and settings.length_decides_rates:
            key = f"schedule: {settings.schedule}"
            if settings.schedule == "constant":
                key = f"warmup: {settings.warmup:g}"
            raise UserError(
                f"--rounds: arms.{name} has {key}, so that its learning rates depend on rounds.max "
                "from round 1 on; run the study anew with another rounds.max"
            )
    longer = {name: _longer_arm(arm, rounds) for name, arm in study.arms.items()}
    changed = {"rounds": study.rounds.model_copy(update={"max": rounds}), "arms": longer}
    return study.model_copy(update=changed)


def _longer_arm(arm: Arm, rounds: int) -> Arm:
    """Return an arm whose own ``rounds.max``, if it has one, is ``rounds``."""
    if arm.rounds.max is None:
        return arm
    return arm.model_copy(update={"rounds": arm.rounds.model_copy(update={"max": rounds})})
