"""The runs of one study: every arm on every seed, kept, taken from the cache, or computed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedkd.config import RelativeTargets, Study
from fedkd.engines.base import Engine, Task
from fedkd.errors import FedKDError, describe_shortage
from fedkd.federation.federation import Federation
from fedkd.federation.silos_get import SilosGet
from fedkd.models.card import read_card
from fedkd.models.own_checkpoint import read_model
from fedkd.report.page import write_run_report
from fedkd.report.progress import StudyProgress
from fedkd.results.folder import SUMMARY_FILE
from fedkd.results.record import CHECKPOINT_FILE, CUT_SHORT, RunRecord, write_state
from fedkd.runner import resume as resumption
from fedkd.runner import run_cache
from fedkd.runner.summary import Failure, summarise
from fedkd.trackers.tracking import Tracking
from fedkd.util import interrupt
from fedkd.util.files import remove_unfinished, write_json


@dataclass(frozen=True)
class Outcome:
    """A study's results: where they lie, and the summary."""

    folder: Path
    summary: dict[str, Any]
    interrupted: bool = False


@dataclass(eq=False)
class StudyRunner:
    """Runs a study in its results folder.

    Attributes:
        track: names of the trackers, for the sentence that says how to resume.
        pool: on which silos train and are measured.
        fresh: ignore and rewrite what the cache holds.
    """

    study: Study
    engine: Engine
    folder: Path
    progress: StudyProgress
    tracking: Tracking
    track: Sequence[str]
    pool: Executor
    fresh: bool
    _records: dict[tuple[str, int], RunRecord] = field(default_factory=dict)
    _failures: list[Failure] = field(default_factory=list)
    _silos_get: dict[int, SilosGet] = field(default_factory=dict)

    def run(self, federations: Sequence[Federation], warnings: Sequence[str]) -> Outcome:
        """Run what is not finished, and write the summary and the report."""
        resume = resumption.command(self.folder, self.track)
        interrupt.advise(f"Resume with: {resume}")
        try:
            interrupted = self._run_all(federations)
            summary = summarise(self.study, federations, self._records, self._failures, warnings)
            write_json(self.folder / SUMMARY_FILE, summary)
            write_run_report(self.folder)
        except FedKDError:
            raise
        except Exception as error:
            shortage = describe_shortage(error)
            if shortage is None:
                raise
            raise FedKDError(
                f"{shortage}. All rounds that had ended are kept; then resume with: {resume}"
            ) from error
        return Outcome(self.folder, summary, interrupted)

    def _run_all(self, federations: Sequence[Federation]) -> bool:
        """Run all arms of all seeds; return whether a signal such as Ctrl-C interrupted them."""
        try:
            for federation in federations:
                self._pretrain(federation)
                for arm in self._order():
                    self._run_arm(federation, arm)
        except KeyboardInterrupt:
            remove_unfinished(self.folder)  # by processes of the engine, which have ended
            return True
        return False

    def _order(self) -> list[str]:
        """All arms as the study lists them; the first baseline first where it sets the targets."""
        arms = list(self.study.arms)
        if isinstance(self.study.targets, RelativeTargets):
            arms.sort(key=lambda arm: arm != self.study.baselines[0])
        return arms

    def _pretrain(self, federation: Federation) -> None:
        if not self.study.needs_pretrained or self.engine.remote:
            return
        if all(
            resumption.read_ended(
                self.folder / arm / f"seed-{federation.seed}", self.study.rounds_of(arm).max
            )
            for arm in self.study.arms
        ):
            return
        total = self.study.num_silos - len(self.study.pretraining.checkpoints)
        with self.progress.pretraining(federation.seed, total) as on_silo:
            federation.pretrain(self.pool, fresh=self.fresh, on_silo=on_silo)

    def _run_arm(self, federation: Federation, arm: str) -> None:
        targets = self._targets(federation.seed)
        if targets is None and arm != self.study.baselines[0]:
            reason = (
                f"its targets depend on {self.study.baselines[0]}, which failed or stopped for "
                "want of silos"
            )
            self._fail(arm, federation.seed, reason)
            return
        folder = self.folder / arm / f"seed-{federation.seed}"
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
        self.progress.quarantined(record)
        self.tracking.finish(record)

    def _targets(self, seed: int) -> list[float] | None:
        """Targets as values of the study's metric, or None while they are not known.

        Relative ones need the whole curve of the first baseline: the best value of a run that was
        cut short is too low a measure.
        """
        targets = self.study.targets
        if not isinstance(targets, RelativeTargets):
            return targets
        baseline = self._records.get((self.study.baselines[0], seed))
        best = None if baseline is None else baseline.best
        if baseline is None or best is None or baseline.stopped in CUT_SHORT:
            return None
        return [fraction * best for fraction in targets.of_baseline_best]

    def _fail(self, arm: str, seed: int, reason: str) -> None:
        self._failures.append(Failure(arm, seed, reason))
        self.tracking.fail(arm, seed)
        self.progress.failed(arm, seed, reason)

    def _keep(self, task: Task, *, anew: bool) -> RunRecord | None:
        """Return the record of a run that finished in this folder; otherwise clear its folder.

        If ``anew``, a run with other targets than the task's is not finished: it may have
        stopped at one that is too low.
        """
        if not task.folder.exists():
            return None
        max_rounds = self.study.rounds_of(task.arm).max
        record = resumption.read_ended(task.folder, max_rounds)
        if record is None or (anew and record.targets != task.targets):
            resumption.clear(task.folder)
            return None
        if record.max_rounds < max_rounds:  # it stopped at its targets, before the study got longer
            record = replace(record, max_rounds=max_rounds)
            write_state(task.folder, record)
        self.progress.reused(task.arm, task.federation.seed)
        return record

    def _compute(self, task: Task) -> RunRecord:
        rounds = self.study.rounds_of(task.arm)
        seed = task.federation.seed
        with self.progress.run(task.arm, seed, rounds.max, task.targets) as observer:
            try:
                self.engine.run(task, self.tracking.watch(task.arm, seed, observer))
            except KeyboardInterrupt:
                self._keep_interrupted(task)
                raise
        record = self._measure_silos(task, RunRecord.read(task.folder))
        if record.stopped not in CUT_SHORT and not self.engine.remote:
            try:
                run_cache.store(task)
            except OSError as error:  # the results are written; a full cache must not end a study
                self.progress.warn(f"{task.arm}, seed {seed} is not kept in the cache: {error}")
        return record

    def _measure_silos(self, task: Task, record: RunRecord) -> RunRecord:
        """Add what each silo gets from a run that is not cut short; none of it is timed.

        Deployed silos have measured it themselves; the model of another run on hosts is not here.
        """
        deployed = self.study.is_deployed or self.engine.remote
        if deployed or record.silos_get or record.stopped in CUT_SHORT:
            return record
        federation = task.federation
        try:
            if federation.seed not in self._silos_get:
                self._silos_get[federation.seed] = SilosGet(federation)
            path, arch = task.folder / CHECKPOINT_FILE, self.study.global_arch(task.arm)
            what, shape = "the run's model", federation.shape.merged
            card = read_card(path, what=what)
            preprocessing = None if card is None else card.preprocessing
            model = read_model(path, arch, shape, what=what, preprocessing=preprocessing)
            found = self._silos_get[federation.seed].measure(task.arm, model.state, self.pool)
            measured = replace(record, silos_get=found)
            write_state(task.folder, measured)
        except FedKDError as error:  # the run itself is finished
            seed = federation.seed
            self.progress.warn(f"{task.arm}, seed {seed}: what silos get is unknown: {error}")
            return record
        return measured

    def _keep_interrupted(self, task: Task) -> None:
        """Keep the measurements of an interrupted run."""
        record = resumption.record_interrupted(task, self.study)
        if record is None:
            return
        write_state(task.folder, record)
        self._records[task.arm, task.federation.seed] = record
        self.tracking.finish(record)

    def _reuse(self, task: Task) -> RunRecord | None:
        """Take a finished run from the cache; other hosts have their own caches."""
        if self.engine.remote or self.fresh:
            return None
        record = run_cache.take(task)
        if record is not None:
            self.progress.reused(task.arm, task.federation.seed)
        return record
