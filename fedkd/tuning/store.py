"""Where a search is kept: one SQLite file for each study and arm, one writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import optuna
from optuna.trial import TrialState
from sqlalchemy.exc import DatabaseError

from fedkd.config import Study
from fedkd.config.own import function_keys
from fedkd.errors import FedKDError, UserError
from fedkd.federation.federation import Federation
from fedkd.models.build import arch_fingerprint
from fedkd.tuning.objective import Judge
from fedkd.util.cache import cache_key

Kind = Literal["grid", "tpe"]

STARTUP_TRIALS = 5
"""Trials before the pruner begins."""

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
"""States of trials that are not to be run again."""


@contextlib.contextmanager
def opened(
    path: Path, study: Study, arm: str, kind: Kind, key: str, *, fresh: bool = False
) -> Iterator[optuna.Study]:
    """Open the search kept in ``path``, or begin one, and let nobody else write to it meanwhile.

    Trials that were under way when an earlier start was killed are marked as failed; they never
    count as ended.

    Raises:
        UserError: the file holds another search, or is in use.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if fresh:
            # A journal that a kill left behind would be played into the next file of this name.
            for suffix in ("", "-journal", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
        try:
            storage = optuna.storages.RDBStorage(f"sqlite:///{path.absolute()}")
            names = [found.study_name for found in storage.get_all_studies()]
            name = f"{study.name}/{arm}"
            if names and names != [name]:
                raise UserError(
                    f"{path}: holds the search for {names[0]}, not for {name}; use another --out"
                )
            search = optuna.create_study(
                storage=storage,
                study_name=name,
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(STARTUP_TRIALS)
                if kind == "tpe"
                else optuna.pruners.NopPruner(),
            )
            if search.user_attrs.get("key", key) != key:
                raise UserError(
                    f"{path}: holds a search under other data, settings, judge or kind of search, "
                    "or of another version of fedkd; use another --out, or --fresh to begin anew"
                )
            search.set_user_attr("key", key)
            for trial in search.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                search.tell(trial.number, state=TrialState.FAIL)
        except DatabaseError as error:
            raise UserError(
                f"{path}: is no database of a search; move it away, or use --fresh"
            ) from error
        try:
            yield search
        except DatabaseError as error:
            raise FedKDError(f"{path}: cannot be read or written any more: {error.orig}") from error
        finally:
            storage.engine.dispose()


def search_key(
    study: Study, arm: str, federations: Sequence[Federation], kind: Kind, judge: Judge
) -> str:
    """Hash all that a trial's result depends on, beside its parameters."""
    return cache_key(
        {
            "kind": f"tuning by {kind} on {judge}",
            "federations": [federation.fingerprint() for federation in federations],
            "transfer": study.data.transfer.model_dump(),
            "arm": study.arms[arm].model_dump(include={"arch", "consolidation"}),
            "arch": arch_fingerprint(study.global_arch(arm), study.model.files),
            "own": function_keys(study, arm),
            "engine": study.engine.model_dump(include={"precision", "device", "server_threads"}),
        }
    )


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Keep a second search from the same file; the lock goes when this process goes."""
    with path.with_suffix(".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path}: another search is writing to it; wait for its end") from None
        yield
