"""The search for a start's settings: trials on all seeds.

A search that was killed resumes where it stopped and ends as if it had not been: what the sampler
draws depends on the trials that have ended, not on how often the search was started.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import optuna
from optuna.trial import TrialState
from torch import nn

from fedkd.config import Consolidation
from fedkd.errors import FedKDError, UserError
from fedkd.training.compute import intra_op_threads
from fedkd.tuning.objective import Judge
from fedkd.tuning.progress import Progress
from fedkd.tuning.space import Space, Value
from fedkd.tuning.store import ENDED, Kind
from fedkd.tuning.student import Scores, SeedObjective, make_space
from fedkd.tuning.trials import POINT, best_value, give_up, make_sampler, store_scores
from fedkd.util.parallel import run_each

TRIALS = 30
"""Number of trials of a TPE search, by default."""
REPORTS = 4
"""How often in each seed the pruner sees a trial's score: after each quarter of its epochs."""

_Job = tuple[optuna.Trial, Mapping[str, Value]]


def run(
    search: optuna.Study,
    seed_objectives: Sequence[SeedObjective],
    *,
    arm: str,
    kind: Kind,
    judge: Judge,
    trials: int | None,
    progress: Progress,
) -> None:
    """Search until ``trials`` have ended, those of earlier calls included, or the grid has.

    By default a grid is tried whole, and TPE makes :data:`TRIALS` trials.

    Raises:
        UserError: what the settings ask for is impossible.
    """
    teachers = seed_objectives[0].teachers
    space = make_space(teachers, judge)
    threads = teachers.federation.study.engine.server_threads
    if kind == "grid":
        points = space.grid_points()
        at_a_time = threads if teachers.federation.compute.device == "cpu" else 1
        _run_grid(
            search,
            space,
            points[: min(trials or len(points), len(points))],
            seed_objectives,
            arm=arm,
            threads=at_a_time,
            progress=progress,
        )
        return
    total = trials or TRIALS
    with intra_op_threads(threads):
        while True:
            ended = search.get_trials(deepcopy=False, states=ENDED)
            progress.on_trial(len(ended), total, best_value(ended))
            if len(ended) >= total:
                return
            search.sampler = make_sampler(arm, len(ended), None if ended else space.own_point())
            trial = search.ask()
            point = space.suggest(trial)
            trial.set_user_attr(POINT, point)
            run_trial(search, trial, space.settings(point), seed_objectives, progress)


def run_trial(
    search: optuna.Study,
    trial: optuna.Trial,
    settings: Consolidation,
    seed_objectives: Sequence[SeedObjective],
    progress: Progress,
) -> None:
    """Distil a student on every seed and store the scores.

    A trial that diverges has ended too, without a result: it would diverge again.
    """
    scores: list[float] = []
    try:
        for seed_objective in seed_objectives:
            scores.append(_run_seed(trial, settings, seed_objective, scores, progress))
    except optuna.TrialPruned:
        search.tell(trial, state=TrialState.PRUNED)
    except UserError:
        raise
    except FedKDError as error:
        give_up(search, trial, error)
    else:
        search.tell(trial, sum(scores) / len(scores))


def _run_seed(
    trial: optuna.Trial,
    settings: Consolidation,
    seed_objective: SeedObjective,
    before: Sequence[float],
    progress: Progress,
) -> float:
    """Distil and score one seed's student, and store its scores with the trial."""
    reports = {-(-settings.all_epochs * k // REPORTS): k for k in range(1, REPORTS + 1)}

    def on_student(student: nn.Module, epoch: int, epochs: int) -> None:
        progress.on_epoch(seed_objective.seed, epoch, epochs)
        if epoch in reports:
            # The mean so far, so that one easy seed does not make a trial look good.
            mean = (sum(before) + seed_objective.score(student)) / (len(before) + 1)
            trial.report(mean, len(before) * REPORTS + reports[epoch])
            if trial.should_prune():
                raise optuna.TrialPruned

    scores = seed_objective.make_student(settings, on_student)
    store_scores(trial, seed_objective.seed, scores)
    return scores.score


def _run_grid(
    search: optuna.Study,
    space: Space,
    points: Sequence[Mapping[str, Value]],
    seed_objectives: Sequence[SeedObjective],
    *,
    arm: str,
    threads: int,
    progress: Progress,
) -> None:
    """Try every point that has not ended yet, each on one intra-op thread.

    No point depends on another's result, so the results depend neither on ``threads`` nor on the
    order in which points end. Nothing is pruned, so half-trained students are not scored.
    """
    ended = search.get_trials(deepcopy=False, states=ENDED)
    done = [trial.user_attrs[POINT] for trial in ended]

    def jobs() -> Iterator[_Job]:
        for fixed in points:
            if fixed not in done:
                search.sampler = make_sampler(arm, len(done), fixed)
                trial = search.ask()
                point = space.suggest_grid(trial)
                trial.set_user_attr(POINT, point)
                yield trial, point

    progress.on_trial(len(ended), len(points), best_value(ended))
    work = partial(_score, space, seed_objectives, progress)
    for (trial, _), outcome in run_each(jobs(), work, threads=threads):
        if isinstance(outcome, FedKDError):
            give_up(search, trial, outcome)
        else:
            for seed_objective, scores in zip(seed_objectives, outcome, strict=True):
                store_scores(trial, seed_objective.seed, scores)
            search.tell(trial, sum(scores.score for scores in outcome) / len(outcome))
        ended = search.get_trials(deepcopy=False, states=ENDED)
        progress.on_trial(len(ended), len(points), best_value(ended))


def _score(
    space: Space, seed_objectives: Sequence[SeedObjective], progress: Progress, job: _Job
) -> list[Scores] | FedKDError:
    """Return the scores of a point's students; the error if distillation diverged."""
    settings = space.settings(job[1])

    def on_student(seed: int, _: nn.Module, epoch: int, epochs: int) -> None:
        progress.on_epoch(seed, epoch, epochs)

    try:
        return [
            each.make_student(settings, partial(on_student, each.seed)) for each in seed_objectives
        ]
    except UserError:
        raise
    except FedKDError as error:
        return error
