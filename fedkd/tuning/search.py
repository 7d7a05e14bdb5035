"""The search: trials on all seeds, one after another, or several points of a grid at once.

A search that was killed goes on where it stopped and ends as if it had not been: what the sampler
draws depends on the trials that have ended, not on how often the search was started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import optuna
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from fedkd.config import Consolidation
from fedkd.errors import FedKDError, UserError
from fedkd.federation.federation import Federation
from fedkd.federation.simulated_teachers import SimulatedTeachers
from fedkd.models.build import build_model
from fedkd.training.compute import intra_op_threads
from fedkd.tuning.objective import Judge, Objective, label_free_weightings, make_objective
from fedkd.tuning.space import Space, Value
from fedkd.tuning.store import ENDED, Kind
from fedkd.util.parallel import run_each
from fedkd.util.seeding import derive_seed

TRIALS = 30
"""Of a TPE search, where nothing else is said."""
LOOKS = 4
"""How often in each seed the pruner sees how a trial does: after each quarter of its epochs."""
POINT, SCORES, ACCURACIES, PROBLEM = "point", "scores", "validation", "problem"
"""Attributes of a trial: its parameters as used, its mark by seed, the accuracy by seed of the same
students on validation data where another objective decides, and why it has no result."""


class Progress(Protocol):
    """Told how far a search is."""

    def on_trial(self, ended: int, total: int, best: float | None) -> None:
        """So many trials have ended."""

    def on_epoch(self, seed: int, epoch: int, epochs: int) -> None:
        """A student has learnt for one more epoch."""


@dataclass(frozen=True)
class SeedObjective:
    """One seed of a trial: where students learn, and how they are marked.

    Attributes:
        room: teachers and transfer set.
        objective: what decides.
        check: the objective with validation labels, where another decides and labels are to be had.
    """

    room: SimulatedTeachers
    objective: Objective
    check: Objective | None = None

    @classmethod
    def of(cls, federation: Federation, arm: str, judge: Judge) -> SeedObjective:
        """Prepare a seed."""
        room = SimulatedTeachers(federation, arm)
        compared = judge != "validation" and federation.study.data.validation > 0
        check = make_objective(room, "validation") if compared else None
        return cls(room, make_objective(room, judge), check)


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
    """Search until ``trials`` have ended, those of earlier starts included, or the grid has.

    Args:
        search: from :func:`fedkd.tuning.store.opened`.
        seed_objectives: one a seed.
        arm: name of the arm.
        kind: ``grid`` or ``tpe``.
        judge: which objective decides.
        trials: how many in all; by default the whole grid, or :data:`TRIALS`.
        progress: told of every step.

    Raises:
        UserError: what the settings ask for is impossible.
    """
    room = seed_objectives[0].room
    space = make_space(room, judge)
    points = space.grid_points() if kind == "grid" else []
    total = min(trials or len(points), len(points)) if kind == "grid" else trials or TRIALS
    threads = room.federation.study.engine.server_threads
    if kind == "grid":
        at_once = threads if room.federation.compute.device == "cpu" else 1
        _run_grid(search, space, points[:total], seed_objectives, arm, at_once, progress)
        return
    with intra_op_threads(threads):
        while True:
            ended = search.get_trials(deepcopy=False, states=ENDED)
            progress.on_trial(len(ended), total, _best(ended))
            if len(ended) >= total:
                return
            search.sampler = _sampler(arm, len(ended), None if ended else space.own_point())
            trial = search.ask()
            point = space.suggest(trial)
            trial.set_user_attr(POINT, point)
            _try(search, trial, space.settings(point), seed_objectives, progress)


def make_space(room: SimulatedTeachers, judge: Judge) -> Space:
    """Return what may be varied for the arm whose teachers these are."""
    weightings = label_free_weightings(room)
    own = room.own
    if judge == "validation" and own.mode == "weights" and not own.rests_on_densities:
        weightings.append("accuracy")
    labelled = room.federation.study.data.transfer.labelled
    return Space(room.own, labelled=labelled, weightings=weightings)


def _sampler(arm: str, ended: int, fixed: Mapping[str, Value] | None) -> BaseSampler:
    """Return the sampler of the next trial.

    Optuna does not keep a sampler's random state, so each trial has a sampler of its own, seeded
    by how many have ended: a search that was killed draws what it would have drawn. The grid's
    points are fixed one by one, as Optuna's own GridSampler takes a point for done whose trial
    was killed.
    """
    seed = derive_seed(0, f"tuning {arm}", round_number=ended) % 2**32
    if fixed is not None:
        return PartialFixedSampler(dict(fixed), RandomSampler(seed))
    return TPESampler(seed=seed, multivariate=True, group=True)


def _try(
    search: optuna.Study,
    trial: optuna.Trial,
    settings: Consolidation,
    seed_objectives: Sequence[SeedObjective],
    progress: Progress,
) -> None:
    """Make a student on every seed and tell the search what they are worth.

    A trial that diverges has ended too, without a result: it would diverge again.
    """
    scores: list[float] = []
    try:
        for seed_objective in seed_objectives:
            scores.append(_teach(trial, settings, seed_objective, scores, progress))
    except optuna.TrialPruned:
        search.tell(trial, state=TrialState.PRUNED)
    except UserError:
        raise
    except FedKDError as error:
        _give_up(search, trial, error)
    else:
        search.tell(trial, sum(scores) / len(scores))


def _teach(
    trial: optuna.Trial,
    settings: Consolidation,
    seed_objective: SeedObjective,
    before: Sequence[float],
    progress: Progress,
) -> float:
    """Make and mark one seed's student, and note its marks with the trial.

    Args:
        trial: the trial.
        settings: of the consolidation.
        seed_objective: the seed.
        before: marks of the trial's students on the seeds before.
        progress: told of every epoch.
    """
    federation = seed_objective.room.federation
    looks = {-(-settings.all_epochs * k // LOOKS): k for k in range(1, LOOKS + 1)}

    def look(student: nn.Module, epoch: int, epochs: int) -> None:
        progress.on_epoch(federation.seed, epoch, epochs)
        if epoch in looks:
            # The mean so far, so that one easy seed does not make a trial look good.
            so_far = (sum(before) + seed_objective.objective.mark(student, federation.compute)) / (
                len(before) + 1
            )
            trial.report(so_far, len(before) * LOOKS + looks[epoch])
            if trial.should_prune():
                raise optuna.TrialPruned

    scores = _make_student(settings, seed_objective, look)
    _note(trial, federation.seed, scores)
    return scores.score


@dataclass(frozen=True)
class _Scores:
    """Of one student: its objective, and validation accuracy where another objective decides."""

    score: float
    accuracy: float | None


def _make_student(
    settings: Consolidation,
    seed_objective: SeedObjective,
    look: Callable[[nn.Module, int, int], None],
) -> _Scores:
    """Make one seed's student and mark it; ``look`` is shown it after every epoch."""
    federation = seed_objective.room.federation
    learnt = seed_objective.room.consolidate(
        settings, rows=seed_objective.objective.rows, on_student=look
    )
    student = build_model(seed_objective.room.arch, federation.shape, seed=0).to(
        federation.compute.device
    )
    student.load_state_dict(learnt.state)
    score = seed_objective.objective.mark(student, federation.compute)
    check = seed_objective.check
    return _Scores(score, None if check is None else check.mark(student, federation.compute))


def _run_grid(
    search: optuna.Study,
    space: Space,
    points: Sequence[Mapping[str, Value]],
    seed_objectives: Sequence[SeedObjective],
    arm: str,
    threads: int,
    progress: Progress,
) -> None:
    """Try every point that has not ended yet, several at once, each on one intra-op thread.

    No point waits for another's result, so what they give depends neither on ``threads`` nor on
    the order in which they end. Nothing is pruned, so nobody looks at half-taught students.
    """
    ended = search.get_trials(deepcopy=False, states=ENDED)
    done = [trial.user_attrs[POINT] for trial in ended]

    def asked() -> Iterator[tuple[optuna.Trial, Mapping[str, Value]]]:
        for fixed in points:
            if fixed not in done:
                search.sampler = _sampler(arm, len(done), fixed)
                trial = search.ask()
                point = space.suggest_grid(trial)
                trial.set_user_attr(POINT, point)
                yield trial, point

    def learn(item: tuple[optuna.Trial, Mapping[str, Value]]) -> list[_Scores] | FedKDError:
        settings = space.settings(item[1])

        def look(seed: int, _: nn.Module, epoch: int, epochs: int) -> None:
            progress.on_epoch(seed, epoch, epochs)

        try:
            return [
                _make_student(
                    settings, seed_objective, partial(look, seed_objective.room.federation.seed)
                )
                for seed_objective in seed_objectives
            ]
        except UserError:
            raise
        except FedKDError as error:
            return error

    progress.on_trial(len(ended), len(points), _best(ended))
    for (trial, _), outcome in run_each(asked(), learn, threads=threads):
        if isinstance(outcome, FedKDError):
            _give_up(search, trial, outcome)
        else:
            for seed_objective, scores in zip(seed_objectives, outcome, strict=True):
                _note(trial, seed_objective.room.federation.seed, scores)
            search.tell(trial, sum(scores.score for scores in outcome) / len(outcome))
        ended = search.get_trials(deepcopy=False, states=ENDED)
        progress.on_trial(len(ended), len(points), _best(ended))


def _give_up(search: optuna.Study, trial: optuna.Trial, error: FedKDError) -> None:
    """End a trial without a result; it would diverge again."""
    trial.set_user_attr(PROBLEM, str(error))
    search.tell(trial, state=TrialState.PRUNED)


def _note(trial: optuna.Trial, seed: int, scores: _Scores) -> None:
    """Keep one seed's marks with the trial."""
    for what, value in ((SCORES, scores.score), (ACCURACIES, scores.accuracy)):
        if value is not None:
            trial.set_user_attr(what, {**trial.user_attrs.get(what, {}), str(seed): value})


def best_trial(trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """Return the trial with the best result, of equals the first; None if none has any."""
    complete = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    return max(complete, key=lambda t: (t.value, -t.number), default=None)


def _best(trials: Iterable[FrozenTrial]) -> float | None:
    found = best_trial(trials)
    return None if found is None else found.value
