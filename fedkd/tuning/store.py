"""The file of a search: one SQLite file for each study and arm, one writer at a time."""

from __future__ import annotations

import contextlib
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from fedkd.config import Study
from fedkd.config.own import function_keys
from fedkd.errors import FedKDError, UserError
from fedkd.federation.federation import Federation
from fedkd.models.build import arch_fingerprint
from fedkd.tuning.objective import Judge
from fedkd.tuning.space import Space
from fedkd.util.cache import cache_key
from fedkd.util.lock import hold_lock

Kind = Literal["grid", "tpe", "arm"]
"""Of a search: a start's settings on a grid, or by a sampler; or those of a whole arm."""

STARTUP_TRIALS = 5
"""Number of trials before the pruner begins."""

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
"""States of trials that are not run again."""

_CHANGES = (SQLAlchemyError, sqlite3.Error, optuna.exceptions.StorageInternalError)
"""Raised where the file cannot be read or written any more."""
_UNREADABLE = (
    *_CHANGES,
    *(ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError),
)
"""Raised by Optuna and SQLAlchemy for a file that is damaged or of another program."""
_OF_THE_SYSTEM = ("FULL", "READONLY", "CANTOPEN", "IOERR", "BUSY", "LOCKED", "PERM", "NOMEM")
"""SQLite's errors that the disk causes, and not what the file contains."""

_HEADER_BYTES = 100

_Share = Annotated[float, Field(ge=0, le=1)]


class TrialAttributes(BaseModel, extra="forbid"):
    """What a trial of a start holds beside Optuna's own values.

    Attributes:
        point: the parameters as used.
        scores: by seed, the objective's value.
        validation: by seed, accuracy of the same students on validation data, where the objective
            is another one.
        problem: why the trial has no value.
    """

    point: dict[str, float | int | str] = Field(min_length=1)
    scores: dict[str, _Share] = {}
    validation: dict[str, _Share] = {}
    problem: str | None = None


@contextlib.contextmanager
def opened(
    path: Path, name: str, kind: Kind, key: str, *, fresh: bool = False
) -> Iterator[optuna.Study]:
    """Open the search in ``path``, or create it; no other process can write to it meanwhile.

    Trials that an earlier process had not finished when it was killed are marked as failed.

    Raises:
        UserError: the file is damaged, contains another search, or is in use.
        FedKDError: it cannot be read or written.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    lock = hold_lock(path.with_suffix(".lock"), what=path)
    with lock, warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if fresh:
            # SQLite would apply the journal of a killed process to the new file.
            for suffix in ("", "-journal", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
        try:
            search = _open(path, name, kind, key, stack)
        except _UNREADABLE as error:
            raise _refusal(path, error) from error
        try:
            yield search
        except _CHANGES as error:
            reason = _sqlite_error(error) or error
            raise FedKDError(f"{path} cannot be read or written any more: {reason}") from error


def check_trials(
    path: Path, trials: Sequence[FrozenTrial], check: Callable[[FrozenTrial], None]
) -> None:
    """Check the trials that an earlier process has left.

    ``check`` raises ValueError, LookupError or TypeError if an ended trial is of another
    search.
    """
    for number, trial in enumerate(trials):
        try:
            if trial.number != number:
                raise ValueError("its trials are not numbered")
            if trial.state in ENDED:
                check(trial)
        except (ValueError, LookupError, TypeError) as error:
            raise _refusal(path, error, f"trial {number}: ") from error


def check_start_trial(trial: FrozenTrial, space: Space) -> None:
    """Check an ended trial of a search for the settings of a start.

    Raises:
        ValueError: it cannot be of a search in ``space``.
    """
    attributes = TrialAttributes.model_validate(trial.user_attrs)
    space.settings(attributes.point)
    if trial.params.keys() != attributes.point.keys():
        raise ValueError("its parameters are incomplete")
    if trial.state == TrialState.COMPLETE and (trial.value is None or not 0 <= trial.value <= 1):
        raise ValueError(f"its value is {trial.value}")


def search_key(
    study: Study, arm: str, federations: Sequence[Federation], kind: Kind, judge: Judge
) -> str:
    """Hash all that the result of a start's trial depends on, beside its parameters."""
    shape = federations[0].shape
    parts = {
        "kind": f"tuning by {kind} on {judge}",
        "arm": study.arms[arm].model_dump(include={"arch", "consolidation"}),
        "arch": arch_fingerprint(study.global_arch(arm), study.model.files, shape.backbone),
        "engine": study.engine.model_dump(
            include={"precision", "device", "server_threads", "silo_threads"}
        ),
    }
    return cache_key({**_key_parts(study, arm, federations), **parts})


def arm_search_key(
    study: Study, arm: str, federations: Sequence[Federation], targets: Mapping[int, float]
) -> str:
    """Hash all that the result of an arm's trial depends on, beside its parameters."""
    parts = {
        "kind": "tuning of an arm",
        "arm": study.arms[arm].model_dump(exclude={"tuned"}),
        "rounds": study.rounds_of(arm).model_dump(),
        "arch": arch_fingerprint(study.global_arch(arm), study.model.files),
        "engine": study.engine.model_dump(include={"precision", "device", "silo_threads"}),
        "targets": {str(seed): target for seed, target in targets.items()},
    }
    return cache_key({**_key_parts(study, arm, federations), **parts})


def _key_parts(study: Study, arm: str, federations: Sequence[Federation]) -> dict[str, Any]:
    return {
        "federations": [federation.fingerprint() for federation in federations],
        "transfer": study.data.transfer.model_dump(),
        "metric": study.metric,
        "own": function_keys(study, arm),
    }


def _open(path: Path, name: str, kind: Kind, key: str, stack: contextlib.ExitStack) -> optuna.Study:
    _check_file(path)
    # By a function: in a URL, some characters of a path would have a meaning.
    connect = partial(sqlite3.connect, path, check_same_thread=False)
    storage = optuna.storages.RDBStorage(
        "sqlite://", engine_kwargs={"creator": connect, "poolclass": QueuePool}
    )
    stack.callback(storage.engine.dispose)
    names = [study.study_name for study in storage.get_all_studies()]
    if names and names != [name]:
        raise UserError(
            f"{path}: contains the search for {names[0]}, not for {name}; use another --out"
        )
    search = optuna.create_study(
        storage=storage,
        study_name=name,
        direction="minimize" if kind == "arm" else "maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(STARTUP_TRIALS)
        if kind == "tpe"
        else optuna.pruners.NopPruner(),
    )
    trials = search.get_trials(deepcopy=False)
    if trials and "key" not in search.user_attrs:
        raise ValueError("its trials do not belong to a search")
    if (search.direction == optuna.study.StudyDirection.MINIMIZE) != (kind == "arm"):
        raise ValueError(f"its direction is {search.direction.name.lower()}")
    if search.user_attrs.get("key", key) != key:
        raise UserError(
            f"{path}: contains a search with other data, settings, judge or kind of search, or of "
            "another version of fedkd; use another --out, or --fresh to discard it"
        )
    search.set_user_attr("key", key)
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            search.tell(trial.number, state=TrialState.FAIL)
    return search


def _check_file(path: Path) -> None:
    """Read an existing file with SQLite alone, before Optuna may create tables in it.

    Raises:
        ValueError: its pages are damaged, or its tables are not those of a search.
        sqlite3.Error: it is not a database, or cannot be read.
    """
    size = path.stat().st_size if path.is_file() else None  # that of a folder says nothing
    if size == 0 or not path.exists():
        return
    if size is not None and size < _HEADER_BYTES:
        raise ValueError("it ends within its header")  # to SQLite, it would be an empty database
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as db:
        for (finding,) in db.execute("PRAGMA quick_check(1)"):
            if finding != "ok":
                raise ValueError(finding)
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        if tables and "studies" not in tables:
            raise ValueError("it contains other tables")
        if {"studies", "trials"} <= tables:
            known = "SELECT study_id FROM studies"
            orphans = db.execute(f"SELECT count(*) FROM trials WHERE study_id NOT IN ({known})")  # noqa: S608 -- a constant
            if orphans.fetchone()[0]:
                raise ValueError("it contains trials without a study")


def _refusal(path: Path, error: Exception, what: str = "") -> FedKDError:
    """Return the error for a file that cannot be used."""
    cause = _sqlite_error(error)
    reason = " ".join(str(cause or error).split())[:200] or type(error).__name__
    code = "" if cause is None else getattr(cause, "sqlite_errorname", "")
    if code.removeprefix("SQLITE_").startswith(_OF_THE_SYSTEM):
        return FedKDError(f"{path} cannot be read or written: {reason}")
    return UserError(
        f"{path} is damaged, or is not a search of fedkd tune ({what}{reason}); move it away, "
        "or use --fresh to discard it"
    )


def _sqlite_error(error: BaseException | None) -> sqlite3.Error | None:
    """Return SQLite's own error behind those of SQLAlchemy and Optuna."""
    while error is not None and not isinstance(error, sqlite3.Error):
        error = error.__cause__ or error.__context__
    return error
