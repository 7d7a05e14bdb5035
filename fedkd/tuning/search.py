"""The search for a start's settings: trials on all seeds.

A search that was killed resumes where it stopped and ends as if it had not been: what the sampler
draws depends on the trials that have ended, not on how often the search was started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import optuna
from optuna.trial import TrialState
from torch import nn

from fedkd.config import Consolidation
from fedkd.errors import FedKDError
from fedkd.training.compute import intra_op_threads
from fedkd.tuning.progress import Progress
from fedkd.tuning.space import Space, Value
from fedkd.tuning.store import ENDED, Kind
from fedkd.tuning.student import Scores, SeedObjective
from fedkd.tuning.trials import (
    POINT,
    best_value,
    give_up,
    make_sampler,
    or_failure,
    store_scores,
)
from fedkd.util.parallel import run_each

TRIALS = 30
"""Number of trials of a TPE search, by default."""
REPORTS = 4
"""How often in each seed the pruner sees a trial's score: after each quarter of its epochs."""

_Job = tuple[optuna.Trial, Mapping[str, Value]]


@dataclass(frozen=True)
class StartSearch:
    """The search of one arm's start.

    Attributes:
        file: the trials, those of earlier calls included.
        seed_objectives: one for each seed of a trial.
    """

    file: optuna.Study
    arm: str
    space: Space
    seed_objectives: Sequence[SeedObjective]
    progress: Progress

    def run(self, kind: Kind, trials: int | None) -> None:
        """Search until ``trials`` have ended, those of earlier calls included, or the grid has.

        By default a grid is tried whole, and TPE makes :data:`TRIALS` trials.

        Raises:
            UserError: what the settings ask for is impossible.
        """
        federation = self.seed_objectives[0].teachers.federation
        threads = federation.study.engine.server_threads
        if kind == "grid":
            self._run_grid(trials, threads if federation.compute.device == "cpu" else 1)
            return
        total = trials or TRIALS
        with intra_op_threads(threads):
            while (ended := self._show(total)) < total:
                trial, point = self._draw(ended, None if ended else self.space.own_point())
                self.run_trial(trial, self.space.settings(point))

    def _show(self, total: int) -> int:
        """Show how many trials have ended, and return it."""
        ended = self.file.get_trials(deepcopy=False, states=ENDED)
        self.progress.on_trial(len(ended), total, best_value(ended))
        return len(ended)

    def _draw(
        self, number: int, fixed: Mapping[str, Value] | None, *, of_grid: bool = False
    ) -> _Job:
        """Begin a trial: let the sampler choose its point, and store that."""
        self.file.sampler = make_sampler(
            f"tuning {self.arm}", number, fixed, multivariate=True, group=True
        )
        trial = self.file.ask()
        point = self.space.suggest_grid(trial) if of_grid else self.space.suggest(trial)
        trial.set_user_attr(POINT, point)
        return trial, point

    def run_trial(self, trial: optuna.Trial, settings: Consolidation) -> None:
        """Distil a student on every seed and store the scores.

        A trial that diverges has ended too, without a result: it would diverge again.
        """
        scores: list[float] = []

        def score_all() -> None:
            for seed_objective in self.seed_objectives:
                on_student = self._reporter(trial, settings, seed_objective, scores)
                found = seed_objective.make_student(settings, on_student)
                store_scores(trial, seed_objective.seed, found)
                scores.append(found.score)

        try:
            problem = or_failure(score_all)
        except optuna.TrialPruned:
            self.file.tell(trial, state=TrialState.PRUNED)
            return
        if problem is not None:
            give_up(self.file, trial, problem)
        else:
            self.file.tell(trial, sum(scores) / len(scores))

    def _reporter(
        self,
        trial: optuna.Trial,
        settings: Consolidation,
        seed_objective: SeedObjective,
        before: Sequence[float],
    ) -> Callable[[nn.Module, int, int], None]:
        """Return what shows one seed's student to the pruner, after the scores of seeds before."""
        reports = {-(-settings.all_epochs * k // REPORTS): k for k in range(1, REPORTS + 1)}

        def on_student(student: nn.Module, epoch: int, epochs: int) -> None:
            self.progress.on_epoch(seed_objective.seed, epoch, epochs)
            if epoch in reports:
                # The mean so far, so that one easy seed does not make a trial look good.
                mean = (sum(before) + seed_objective.score(student)) / (len(before) + 1)
                trial.report(mean, len(before) * REPORTS + reports[epoch])
                if trial.should_prune():
                    raise optuna.TrialPruned

        return on_student

    def _run_grid(self, trials: int | None, threads: int) -> None:
        """Try every point that has not ended yet, each on one intra-op thread.

        No point depends on another's result, so the results depend neither on ``threads`` nor on
        the order in which points end. Nothing is pruned, so half-trained students are not scored.
        """
        points = self.space.grid_points()[:trials]
        ended = self.file.get_trials(deepcopy=False, states=ENDED)
        done = [trial.user_attrs[POINT] for trial in ended]

        def jobs() -> Iterator[_Job]:
            for fixed in points:
                if fixed not in done:
                    yield self._draw(len(done), fixed, of_grid=True)

        self._show(len(points))
        for (trial, _), outcome in run_each(jobs(), self._score, threads=threads):
            if isinstance(outcome, FedKDError):
                give_up(self.file, trial, outcome)
            else:
                for seed_objective, scores in zip(self.seed_objectives, outcome, strict=True):
                    store_scores(trial, seed_objective.seed, scores)
                self.file.tell(trial, sum(scores.score for scores in outcome) / len(outcome))
            self._show(len(points))

    def _score(self, job: _Job) -> list[Scores] | FedKDError:
        """Return the scores of a point's students; the error if distillation diverged."""
        settings = self.space.settings(job[1])

        def on_student(seed: int, _: nn.Module, epoch: int, epochs: int) -> None:
            self.progress.on_epoch(seed, epoch, epochs)

        return or_failure(
            lambda: [
                each.make_student(settings, partial(on_student, each.seed))
                for each in self.seed_objectives
            ]
        )
