"""The search for a start's settings: trials on all seeds.

A search that was killed resumes where it stopped and ends as if it had not been: what the sampler
draws depends on the trials that have ended, not on how often the search was started.
"""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.trial import TrialState
from torch import nn

from fedkd.config import Consolidation
from fedkd.errors import FedKDError, UserError
from fedkd.training.compute import intra_op_threads
from fedkd.tuning.grid import run_grid
from fedkd.tuning.objective import Judge
from fedkd.tuning.progress import Progress
from fedkd.tuning.store import ENDED, Kind
from fedkd.tuning.student import SeedObjective, make_space
from fedkd.tuning.trials import POINT, best_value, give_up, make_sampler, store_scores

TRIALS = 30
"""Number of trials of a TPE search, by default."""
REPORTS = 4
"""How often in each seed the pruner sees a trial's score: after each quarter of its epochs."""


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
        run_grid(
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

    Raises:
        UserError: what the settings ask for is impossible.
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
