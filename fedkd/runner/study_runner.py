"""The runs of one study: every arm on every seed, kept, taken from the cache, or computed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedkd.config import RelativeTargets, Study
from fedkd.engines.base import Engine, Task
from fedkd.errors import FedKDError
from fedkd.federation.federation import Federation
from fedkd.report.page import write_run_report
from fedkd.report.progress import StudyProgress
from fedkd.results.folder import SUMMARY_FILE
from fedkd.results.record import CUT_SHORT, RunRecord, write_state
from fedkd.runner import resume as resumption
from fedkd.runner import run_cache
from fedkd.runner.silos_get import SiloMeasurements
from fedkd.runner.summary import Failure, summarise
from fedkd.trackers.tracking import Tracking
from fedkd.util import interrupt
from fedkd.util.files import remove_unfinished, write_json
from fedkd.util.resources import describe_shortage


@dataclass(frozen=True)
class Outcome:
    """A study's results: where they lie, and the summary."""

    folder: Path
    summary: dict[str, Any]
    interrupted: bool = False


class StudyRunner:
    """Runs a study in its results folder.

    Args:
        study: what to run.
        engine: where arms run.
        folder: of the results.
        progress: receives every step.
        tracking: receives every round.
        track: names of the trackers, for the sentence that says how to resume.
        pool: on which silos train.
        fresh: ignore and rewrite what the cache holds.
    """

    def __init__(
        self,
        study: Study,
        engine: Engine,
        folder: Path,
        progress: StudyProgress,
        tracking: Tracking,
        track: Sequence[str],
        pool: Executor,
        *,
        fresh: bool,
    ) -> None:
        self._pool = pool
        self._silos = SiloMeasurements(pool)
        self._study = study
        self._engine = engine
        self._folder = folder
        self._fresh = fresh
        self._resume = resumption.command(folder, track)
        self._progress = progress
        self._tracking = tracking
        self._records: dict[tuple[str, int], RunRecord] = {}
        self._failures: list[Failure] = []

    def run(self, federations: Sequence[Federation], warnings: Sequence[str]) -> Outcome:
        """Run what is not finished, and write the summary and the report."""
        interrupt.advise(f"Resume with: {self._resume}")
        try:
            interrupted = self._run_all(federations)
            summary = summarise(self._study, federations, self._records, self._failures, warnings)
            write_json(self._folder / SUMMARY_FILE, summary)
            write_run_report(self._folder)
        except FedKDError:
            raise
        except Exception as error:
            shortage = describe_shortage(error)
            if shortage is None:
                raise
            raise FedKDError(
                f"{shortage}. All rounds that had ended are kept; then resume with: {self._resume}"
            ) from error
        return Outcome(self._folder, summary, interrupted)

    def _run_all(self, federations: Sequence[Federation]) -> bool:
        """Run all arms of all seeds; return whether a signal such as Ctrl-C interrupted them."""
        try:
            for federation in federations:
                self._pretrain(federation)
                for arm in self._order():
                    self._run_arm(federation, arm)
        except KeyboardInterrupt:
            remove_unfinished(self._folder)  # by processes of the engine, which have ended
            return True
        return False

    def _order(self) -> list[str]:
        """All arms as the study lists them; the first baseline first where it sets the targets."""
        arms = list(self._study.arms)
        if isinstance(self._study.targets, RelativeTargets):
            arms.sort(key=lambda arm: arm != self._study.baselines[0])
        return arms

    def _pretrain(self, federation: Federation) -> None:
        if not self._study.needs_pretrained or self._engine.remote:
            return
        if all(
            resumption.read_ended(
                self._folder / arm / f"seed-{federation.seed}", self._study.rounds_of(arm).max
            )
            for arm in self._study.arms
        ):
            return
        total = self._study.num_silos - len(self._study.pretraining.checkpoints)
        with self._progress.pretraining(federation.seed, total) as on_silo:
            federation.pretrain(self._pool, fresh=self._fresh, on_silo=on_silo)

    def _run_arm(self, federation: Federation, arm: str) -> None:
        targets = self._targets(federation.seed)
        if targets is None and arm != self._study.baselines[0]:
            reason = (
                f"its targets depend on {self._study.baselines[0]}, which failed or stopped for "
                "want of silos"
            )
            self._fail(arm, federation.seed, reason)
            return
        folder = self._folder / arm / f"seed-{federation.seed}"
        task = Task(federation, arm, tuple(targets or ()), folder)
        try:
            kept = self._keep(task, anew=targets is not None)
            known = kept or self._reuse(task)
            record = self._measure_silos(task, known) if known else self._compute(task)
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
        """Targets as values of the study's metric, or None while they are not known.

        Relative ones need the whole curve of the first baseline: the best value of a run that was
        cut short is too low a measure.
        """
        targets = self._study.targets
        if not isinstance(targets, RelativeTargets):
            return targets
        baseline = self._records.get((self._study.baselines[0], seed))
        best = None if baseline is None else baseline.best
        if baseline is None or best is None or baseline.stopped in CUT_SHORT:
            return None
        return [fraction * best for fraction in targets.of_baseline_best]

    def _fail(self, arm: str, seed: int, reason: str) -> None:
        self._failures.append(Failure(arm, seed, reason))
        self._tracking.fail(arm, seed)
        self._progress.failed(arm, seed, reason)

    def _keep(self, task: Task, *, anew: bool) -> RunRecord | None:
        """Return the record of a run that finished in this folder; otherwise clear its folder.

        Args:
            task: the run.
            anew: whether a run with other targets than the task's is no longer finished. It may
                have stopped at one that is too low.
        """
        if not task.folder.exists():
            return None
        max_rounds = self._study.rounds_of(task.arm).max
        record = resumption.read_ended(task.folder, max_rounds)
        if record is None or (anew and record.targets != task.targets):
            resumption.clear(task.folder)
            return None
        if record.max_rounds < max_rounds:  # it stopped at its targets, before the study got longer
            record = replace(record, max_rounds=max_rounds)
            write_state(task.folder, record)
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
        record = self._measure_silos(task, RunRecord.read(task.folder))
        if record.stopped not in CUT_SHORT and not self._engine.remote:
            try:
                run_cache.store(task)
            except OSError as error:  # the results are written; a full cache must not end a study
                self._progress.warn(f"{task.arm}, seed {seed} is not kept in the cache: {error}")
        return record

    def _measure_silos(self, task: Task, record: RunRecord) -> RunRecord:
        """Add what each silo gets; the model of a run on other hosts is not here."""
        try:
            return record if self._engine.remote else self._silos.add(task, record)
        except FedKDError as error:  # the run itself is finished
            seed = task.federation.seed
            self._progress.warn(f"{task.arm}, seed {seed}: what silos get is unknown: {error}")
            return record

    def _keep_interrupted(self, task: Task) -> None:
        """Keep the measurements of an interrupted run."""
        record = resumption.record_interrupted(task, self._study)
        if record is None:
            return
        write_state(task.folder, record)
        self._records[task.arm, task.federation.seed] = record
        self._tracking.finish(record)

    def _reuse(self, task: Task) -> RunRecord | None:
        """Take a finished run from the cache; other hosts have their own caches."""
        if self._engine.remote or self._fresh:
            return None
        record = run_cache.take(task)
        if record is not None:
            self._progress.reused(task.arm, task.federation.seed)
        return record
