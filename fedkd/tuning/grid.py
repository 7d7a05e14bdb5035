"""The grid search for a start's settings: every point once, several at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import optuna
from torch import nn

from fedkd.errors import FedKDError, UserError
from fedkd.tuning.progress import Progress
from fedkd.tuning.space import Space, Value
from fedkd.tuning.store import ENDED
from fedkd.tuning.student import Scores, SeedObjective
from fedkd.tuning.trials import POINT, best_value, give_up, make_sampler, store_scores
from fedkd.util.parallel import run_each

_Job = tuple[optuna.Trial, Mapping[str, Value]]


def run_grid(
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
