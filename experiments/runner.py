"""From one study to its results: check, cut, pre-train, run every arm and seed, compare."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from experiments import resumption
from experiments.engines import check_engine, make_engine
from experiments.engines.base import Engine, Task
from experiments.engines.inline import available_cores, silo_pool
from experiments.trackers import make_trackers
from experiments.trackers.tracking import Tracking
from fedkd import __version__
from fedkd.cache import (
    cache_key,
    cache_root,
    check_cache_root,
    drop_entry,
    new_entry,
    processor,
)
from fedkd.comparison import compare
from fedkd.distillation import METHODS, WEIGHTINGS
from fedkd.errors import FedKDError
from fedkd.federation import Federation
from fedkd.files import DISK_ERRORS, remove_unfinished, write_json, write_text
from fedkd.lease import lease
from fedkd.models.building import arch_fingerprint
from fedkd.report.page import write_run_report
from fedkd.report.results import REPORT_FILE, SCHEMA, STUDY_FILE, SUMMARY_FILE, find_run
from fedkd.results import CUT_SHORT, RunRecord, read_points, write_state
from fedkd.study import RelativeTargets, Study
from fedkd.study_file import check_files, dump_study


class Progress(Protocol):
    """Shows how far a study is; see :mod:`fedkd.progress`."""

    def pretraining(self, seed: int, total: int) -> Any:
        """Return a context that yields a function to call for every silo."""

    def run(self, arm: str, seed: int, rounds: int, targets: Sequence[float]) -> Any:
        """Return a context that yields an Observer of the run."""

    def reused(self, arm: str, seed: int) -> None:
        """A run was taken from the cache."""

    def failed(self, arm: str, seed: int, reason: str) -> None:
        """A run failed."""

    def quarantined(self, record: RunRecord) -> None:
        """A run ended; some replies in it may have been refused."""

    def warn(self, sentence: str) -> None:
        """Something beside the study failed."""


@dataclass(frozen=True)
class Failure:
    """A run that ended without a result, and why."""

    arm: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Outcome:
    """A study's results: where they lie, and the summary."""

    folder: Path
    summary: dict[str, Any]
    interrupted: bool = False


def run_study(
    study: Study, *, out: Path, fresh: bool, progress: Progress, track: Sequence[str] = ()
) -> Outcome:
    """Run a study and write its results folder.

    Nothing is written before the study has been checked against data, models and files.

    Args:
        study: what to run.
        out: root of all results.
        fresh: ignore and rewrite what the cache holds.
        progress: told of every step.
        track: names of trackers that are told of every round; they change no result.

    Raises:
        UserError: the study asks for what the data or the files do not give, or a tracker's
            package is not installed.
    """
    trackers = make_trackers(track)
    federations = _load(study)
    with silo_pool(study) as pool, make_engine(study, pool) as engine:
        folder = _results_folder(out, study, fresh=fresh)
        with lease(folder), Tracking(trackers, study, folder, progress.warn) as tracking:
            runner = _Runner(study, engine, folder, progress, tracking, fresh=fresh)
            return runner.run(federations, pool)


def resume_study(folder: Path, *, progress: Progress, track: Sequence[str] = ()) -> Outcome:
    """Go on with a study that was cut short, in its own results folder.

    Runs that had ended are kept, the one under way goes on from its last whole round, and the
    others run as they would have: the results are those of a study that nothing had disturbed.

    Args:
        folder: a results folder, or that of a study: then the newest one in it.
        progress: told of every step.
        track: names of trackers, as in :func:`run_study`.

    Raises:
        UserError: there are no results, they are damaged or of another version of fedkd, or
            another process writes to them.
    """
    trackers = make_trackers(track)
    folder = find_run(folder)
    with lease(folder):
        study, fresh = resumption.read_beginning(folder)
        federations = _load(study)
        resumption.check_runs(folder, study)
        remove_unfinished(folder)
        with silo_pool(study) as pool, make_engine(study, pool) as engine:
            # Whoever looks at the folder meanwhile shall not take it for ended.
            for name in (SUMMARY_FILE, REPORT_FILE):
                (folder / name).unlink(missing_ok=True)
            with Tracking(trackers, study, folder, progress.warn) as tracking:
                runner = _Runner(study, engine, folder, progress, tracking, fresh=fresh)
                return runner.run(federations, pool)


def _load(study: Study) -> list[Federation]:
    """Return a federation a seed, after everything that the study asks for has been looked for."""
    check_engine(study)
    check_files(study)
    cache = cache_root()
    federations = [Federation.for_caller(study, seed, cache) for seed in study.seeds]
    federations[0].check()
    check_cache_root()
    return federations


class _Runner:
    def __init__(
        self,
        study: Study,
        engine: Engine,
        folder: Path,
        progress: Progress,
        tracking: Tracking,
        *,
        fresh: bool,
    ) -> None:
        self._study = study
        self._engine = engine
        self._folder = folder
        self._fresh = fresh
        self._progress = progress
        self._tracking = tracking
        self._records: dict[tuple[str, int], RunRecord] = {}
        self._failures: list[Failure] = []

    def run(self, federations: Sequence[Federation], pool: Executor) -> Outcome:
        interrupted = False
        try:
            for federation in federations:
                self._pretrain(federation, pool)
                for arm in self._order():
                    self._run_arm(federation, arm)
        except KeyboardInterrupt:
            interrupted = True
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            raise FedKDError(
                f"{error.filename or self._folder}: {error.strerror}; all rounds that had ended "
                f"are kept: mend this, then {resumption.command(self._folder)}"
            ) from error
        summary = self._summary(federations)
        write_json(self._folder / SUMMARY_FILE, summary)
        write_run_report(self._folder)
        return Outcome(self._folder, summary, interrupted)

    def _order(self) -> list[str]:
        """All arms as the study lists them; the first baseline first where it sets the targets."""
        arms = list(self._study.arms)
        if isinstance(self._study.targets, RelativeTargets):
            arms.sort(key=lambda arm: arm != self._study.baselines[0])
        return arms

    def _pretrain(self, federation: Federation, pool: Executor) -> None:
        if not self._study.needs_pretrained or self._engine.remote:
            return
        runs = [self._folder / arm / f"seed-{federation.seed}" for arm in self._study.arms]
        if all(resumption.read_ended(run) for run in runs):
            return
        total = self._study.partition.silos - len(self._study.pretraining.checkpoints)
        with self._progress.pretraining(federation.seed, total) as on_silo:
            federation.pretrain(pool, fresh=self._fresh, on_silo=on_silo)

    def _run_arm(self, federation: Federation, arm: str) -> None:
        targets = self._targets(federation.seed)
        if targets is None and arm != self._study.baselines[0]:
            reason = f"its targets depend on {self._study.baselines[0]}, which failed"
            self._fail(arm, federation.seed, reason)
            return
        folder = self._folder / arm / f"seed-{federation.seed}"
        task = Task(federation, arm, tuple(targets or ()), folder)
        try:
            record = self._keep(task) or self._reuse(task) or self._compute(task)
        except FedKDError as error:
            self._fail(arm, federation.seed, str(error))
            return
        if targets is None:
            self._records[arm, federation.seed] = record
            record = replace(record, targets=tuple(self._targets(federation.seed) or ()))
            write_state(folder, record)
        self._records[arm, federation.seed] = record
        self._progress.quarantined(record)
        self._tracking.finish(record)

    def _targets(self, seed: int) -> list[float] | None:
        """Targets in accuracy, or None while the first baseline of the seed has not run."""
        targets = self._study.targets
        if not isinstance(targets, RelativeTargets):
            return targets
        baseline = self._records.get((self._study.baselines[0], seed))
        if baseline is None:
            return None
        best = max(point.accuracy for point in baseline.curve)
        return [fraction * best for fraction in targets.of_baseline_best]

    def _fail(self, arm: str, seed: int, reason: str) -> None:
        self._failures.append(Failure(arm, seed, reason))
        self._tracking.fail(arm, seed)
        self._progress.failed(arm, seed, reason)

    def _keep(self, task: Task) -> RunRecord | None:
        """Return the record of a run that had ended in this folder; else make room for one."""
        if not task.folder.exists():
            return None
        record = resumption.read_ended(task.folder)
        if record is None:
            resumption.clear(task.folder)
            return None
        self._progress.reused(task.arm, task.federation.seed)
        return record

    def _compute(self, task: Task) -> RunRecord:
        rounds = self._study.rounds_of(task.arm)
        seed = task.federation.seed
        with self._progress.run(task.arm, seed, rounds.max, task.targets) as observer:
            try:
                self._engine.run(task, self._tracking.watch(task.arm, seed, observer))
            except KeyboardInterrupt:
                self._keep_interrupted(task)
                raise
        record = RunRecord.read(task.folder)
        if record.stopped not in CUT_SHORT and not self._engine.remote:
            try:
                _store(task.folder, self._cached_run(task))
            except OSError as error:  # the results are there; a full cache must not end a study
                self._progress.warn(f"{task.arm}, seed {seed} is not kept in the cache: {error}")
        return record

    def _keep_interrupted(self, task: Task) -> None:
        """Keep what an interrupted run had measured."""
        curve = read_points(task.folder)
        if not curve:
            return
        record = RunRecord(
            arm=task.arm,
            seed=task.federation.seed,
            engine=self._study.engine.name,
            curve=curve,
            stopped="interrupted",
            exchanges_before_round_1=self._study.exchanges_before_round_1(task.arm),
            max_rounds=self._study.rounds_of(task.arm).max,
            targets=task.targets,
        )
        write_state(task.folder, record)
        self._records[task.arm, task.federation.seed] = record
        self._tracking.finish(record)

    def _reuse(self, task: Task) -> RunRecord | None:
        """Take a finished run from the cache, if it holds one that is whole."""
        if self._engine.remote:
            return None
        cached = self._cached_run(task)
        if self._fresh or task.folder.exists() or not cached.is_dir():
            return None
        with _scratch(task.folder) as scratch:
            try:
                # Copied first: another process may take the entry away at any time.
                shutil.copytree(cached, scratch, dirs_exist_ok=True)
                record = replace(RunRecord.read(scratch), cached=True)
            except (FedKDError, OSError):
                return None
            write_state(scratch, record)
            scratch.rename(task.folder)
        self._progress.reused(task.arm, task.federation.seed)
        return record

    def _cached_run(self, task: Task) -> Path:
        study = self._study
        key = cache_key(
            {
                "kind": "arm",
                "federation": task.federation.fingerprint(),
                "transfer": study.data.transfer.model_dump(),
                "name": task.arm,
                "arm": study.arms[task.arm].model_dump(exclude={"rounds"}),
                "own": _own_functions(study, task.arm),
                "rounds": study.rounds_of(task.arm).model_dump(),
                "engine": study.engine.model_dump(exclude={"workers"}),
                "targets": task.targets,
            }
        )
        return task.federation.cache / "arms" / key

    def _summary(self, federations: Sequence[Federation]) -> dict[str, Any]:
        study = self._study
        order = [(arm, seed) for arm in study.arms for seed in study.seeds]
        records = [self._records[key] for key in order if key in self._records]
        complete = [record for record in records if record.stopped not in CUT_SHORT]
        return {
            "schema": SCHEMA,
            "study": study.name,
            "resolved": study.to_dict(),
            "versions": _versions(),
            "machine": _machine(),
            "runs": [run_entry(record) for record in records],
            "comparison": compare(complete, baselines=study.baselines, targets=study.target_values),
            "failures": [vars(failure) for failure in self._failures],
            "classes": list(federations[0].cut.classes),
            "silos": [row for federation in federations for row in federation.holdings()],
        }


def _own_functions(study: Study, arm: str) -> list[str]:
    """Identify architecture, method and weighting, some of which may be the user's own code."""
    names = [arch_fingerprint(study.global_arch(arm))]
    if settings := study.arms[arm].consolidation:
        names += [METHODS.fingerprint(settings.method), WEIGHTINGS.fingerprint(settings.weighting)]
    return names


def run_entry(record: RunRecord) -> dict[str, Any]:
    """Return a run as ``summary.json`` tells it."""
    accuracies = [point.accuracy for point in record.curve]
    return {
        "arm": record.arm,
        "seed": record.seed,
        "engine": record.engine,
        "cached": record.cached,
        "accuracy_source": record.accuracy_source,
        "stopped": record.stopped,
        "exchanges_before_round_1": record.exchanges_before_round_1,
        "max_rounds": record.max_rounds,
        "curve": [vars(point) for point in record.curve],
        "targets": [{"target": t, **record.cost(t)} for t in record.targets],
        "best_accuracy": max(accuracies),
        "final_accuracy": accuracies[-1],
        "quarantined": [vars(entry) for entry in record.quarantined],
        "notes": record.notes,
        "instruments": record.instruments,
    }


def _results_folder(out: Path, study: Study, *, fresh: bool) -> Path:
    """Make ``<out>/<study>/<timestamp>`` with the resolved study in it, both at once.

    A folder that bears such a name can be resumed, whenever its process is killed.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    place = out / study.name
    try:
        with _scratch(place / stamp) as scratch:
            write_text(scratch / STUDY_FILE, dump_study(study))
            resumption.write_beginning(scratch, fresh=fresh)
            for attempt in range(1000):
                folder = place / (f"{stamp}-{attempt}" if attempt else stamp)
                if folder.exists():
                    continue
                try:
                    scratch.rename(folder)
                except OSError as error:  # another process was a moment faster
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                        raise
                    continue
                return folder
    except OSError as error:
        raise FedKDError(
            f"{place} cannot be written to: {error.strerror}; choose another place by --out"
        ) from error
    raise FedKDError(f"{place} is full of results of this very second")


def _store(folder: Path, cached: Path) -> None:
    """Put a finished run into the cache, in place of one that is there."""
    drop_entry(cached)
    with new_entry(cached) as entry:
        shutil.copytree(folder, entry, dirs_exist_ok=True)


@contextmanager
def _scratch(beside: Path) -> Iterator[Path]:
    scratch = beside.with_name(f".{beside.name}.{os.getpid()}.part")
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "flwr", "flwr-datasets", "ray", "numpy", "scikit-learn")
    python = ".".join(str(part) for part in sys.version_info[:3])
    return {"fedkd": __version__, "python": python, **{name: version(name) for name in packages}}


def _machine() -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "processor": processor(),
        "cores": available_cores(),
    }
