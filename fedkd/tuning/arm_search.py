"""The search for one arm's settings: whole runs on validation data, two trials at a time.

Trials are drawn in batches of :data:`BATCH`. What a batch draws, and where its trials are stopped,
depends on the batches before it alone. So the result depends neither on the number of cores nor on
interruptions: a trial that was killed is repeated with the same settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, Field, TypeAdapter

from fedkd.config import Study
from fedkd.errors import FedKDError
from fedkd.tuning.arm_space import ArmSpace, Point, step_beyond
from fedkd.tuning.exchanges import Limits, SeedRun, loss
from fedkd.tuning.progress import ArmProgress
from fedkd.tuning.space import Value
from fedkd.tuning.store import ENDED
from fedkd.tuning.trials import POINT, give_up, make_sampler, or_failure
from fedkd.util.parallel import available_cores, run_each

TRIALS = 16
"""Number of trials of an arm, by default."""
BATCH = 2
"""Number of trials that are drawn, and can run, at a time. A constant, so that results do not
depend on the machine."""
STARTUP_TRIALS = 6
"""Number of trials before the sampler uses a model of them; those before are random."""
SLOT, RUNS = "slot", "runs"
"""Further attributes of a trial: its place in the search and its runs by seed. A trial that was
killed has a successor in the same place."""


RunArm = Callable[[Study, str, int, Callable[[int, float], bool]], None]
"""Runs an arm of a study on one seed until the last argument returns false.

That is called after the start and every round, with the exchanges before round 1 and the accuracy
on validation data. A run that fails raises FedKDError.
"""


class ArmTrialAttributes(BaseModel, extra="forbid"):
    """What a trial holds beside Optuna's own values; see :data:`SLOT`."""

    slot: int = Field(ge=0)
    point: dict[str, float | int | str] = Field(min_length=1)
    runs: dict[int, SeedRun] = {}
    problem: str | None = None


@dataclass(frozen=True)
class ArmSearch:
    """The search of one arm.

    Attributes:
        study: the study, with the seeds of the trials.
        targets: accuracy to reach, by seed.
    """

    study: Study
    arm: str
    space: ArmSpace
    targets: Mapping[int, float]
    run: RunArm

    def measure(self, point: Point, limits: Limits) -> dict[int, SeedRun]:
        """Run the arm with a point's settings on all seeds, or until the limits exclude it."""
        changed = {**self.study.arms, self.arm: self.space.settings(point)}
        study = self.study.model_copy(update={"arms": changed})
        runs: dict[int, SeedRun] = {}
        for seed in study.seeds:
            spent = sum(run.bound for run in runs.values())
            runs[seed] = self._measure_seed(study, seed, spent, limits)
            if runs[seed].stopped:
                break
        return runs

    def _measure_seed(self, study: Study, seed: int, spent: int, limits: Limits) -> SeedRun:
        accuracies: list[float] = []
        before = 0
        excluded = False
        rounds, target = study.rounds_of(self.arm).max, self.targets[seed]

        def run_so_far(*, stopped: bool) -> SeedRun:
            return SeedRun(before, rounds, target, tuple(accuracies), stopped=stopped)

        def on_point(exchanges: int, accuracy: float) -> bool:
            nonlocal before, excluded
            before = exchanges
            accuracies.append(accuracy)
            if accuracy >= target:
                return False
            last = len(accuracies) > rounds
            excluded = not last and limits.exclude(spent, seed, run_so_far(stopped=False))
            return not excluded

        self.run(study, self.arm, seed, on_point)
        return run_so_far(stopped=excluded)


def search_arm(
    search: optuna.Study, arm_search: ArmSearch, *, trials: int, progress: ArmProgress
) -> None:
    """Search until this number of trials has ended, those of earlier calls included.

    Raises:
        UserError: what the settings ask for is impossible.
    """
    on_cpu = arm_search.study.engine.device == "cpu"
    threads = min(BATCH, available_cores()) if on_cpu else 1
    while True:
        ended = ended_trials(search.get_trials(deepcopy=False))
        missing = [slot for slot in range(trials) if slot not in ended]
        best = best_arm_trial(ended.values())
        exchanges = None if best is None else sum(run.bound for run in runs_of(best).values())
        progress.on_arm_trial(arm_search.arm, trials - len(missing), trials, exchanges)
        if not missing:
            return
        first = missing[0] - missing[0] % BATCH
        earlier = [ended[slot] for slot in range(first)]
        finished = [trial for trial in earlier if trial.state == TrialState.COMPLETE]
        limits = Limits.of(runs_of(trial) for trial in finished)
        # All of the batch are drawn before any of them runs.
        jobs = [
            (slot, *_draw(search, arm_search, slot, earlier))
            for slot in range(first, first + BATCH)
            if slot not in ended
        ]
        measure = partial(_measure_job, arm_search, limits)
        wanted = [(trial, point) for slot, trial, point in jobs if slot < trials]
        for (trial, _), outcome in run_each(wanted, measure, threads=threads):
            _tell(search, trial, outcome)


def _measure_job(
    arm_search: ArmSearch, limits: Limits, job: tuple[optuna.Trial, Point]
) -> dict[int, SeedRun] | FedKDError:
    return or_failure(partial(arm_search.measure, job[1], limits))


def _tell(
    search: optuna.Study, trial: optuna.Trial, outcome: dict[int, SeedRun] | FedKDError
) -> None:
    if isinstance(outcome, FedKDError):
        give_up(search, trial, outcome)
        return
    runs = list(outcome.values())
    trial.set_user_attr(RUNS, {str(seed): asdict(run) for seed, run in outcome.items()})
    if any(run.stopped for run in runs):
        trial.report(loss(runs), 0)
        search.tell(trial, state=TrialState.PRUNED)
    else:
        search.tell(trial, loss(runs))


def _draw(
    search: optuna.Study, arm_search: ArmSearch, slot: int, earlier: Sequence[FrozenTrial]
) -> tuple[optuna.Trial, Point]:
    """Draw the settings of a place in the search, and store them.

    The first trial is the arm as it is. In every batch, the first trial moves the best one beyond
    an edge at which it lies; the sampler draws the others.
    """
    space = arm_search.space
    tried = [trial.user_attrs[POINT] for trial in earlier]
    fixed = _killed_params(search, slot)
    if fixed is None and not tried and slot == 0:
        fixed = space.own_point()
    best = best_arm_trial(earlier)
    if fixed is None and best is not None and slot % BATCH == 0:
        step = step_beyond(best.user_attrs[POINT], space.ranges(tried))
        fixed = None if step in tried else step
    reached = [*tried, fixed] if fixed is not None else tried
    # The estimator treats every setting alone, as ranges change.
    search.sampler = make_sampler(
        f"tuning arm {arm_search.arm}", slot, fixed, n_startup_trials=STARTUP_TRIALS
    )
    trial = search.ask()
    point = space.suggest(trial, space.ranges(reached))
    trial.set_user_attr(SLOT, slot)
    trial.set_user_attr(POINT, point)
    return trial, point


def _killed_params(search: optuna.Study, slot: int) -> dict[str, Value] | None:
    """Return the parameters of a trial in this place that was killed, if there is one.

    Before rounding: the sampler's model of later trials rests on them.
    """
    for trial in search.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
        if trial.user_attrs.get(SLOT) == slot and POINT in trial.user_attrs:
            return dict(trial.params)
    return None


def ended_trials(trials: Iterable[FrozenTrial]) -> dict[int, FrozenTrial]:
    """Return the trials that have ended, by their place in the search."""
    return {trial.user_attrs[SLOT]: trial for trial in trials if trial.state in ENDED}


def best_arm_trial(trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """Return the finished trial with the smallest value, of equals the first; None if none has."""
    finished = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    return min(finished, key=lambda t: (t.value, t.user_attrs[SLOT]), default=None)


def runs_of(trial: FrozenTrial) -> dict[int, SeedRun]:
    """Return the runs of a trial by seed."""
    return _RUNS.validate_python(trial.user_attrs.get(RUNS, {}))


_RUNS: TypeAdapter[dict[int, Any]] = TypeAdapter(dict[int, SeedRun])


def check_arm_trial(trial: FrozenTrial, space: ArmSpace) -> None:
    """Check an ended trial that an earlier process has left.

    Raises:
        ValueError: it cannot be of a search in ``space``.
    """
    attributes = ArmTrialAttributes.model_validate(trial.user_attrs)
    space.settings(attributes.point)
    if trial.params.keys() != attributes.point.keys():
        raise ValueError("its parameters are incomplete")
    if trial.state == TrialState.COMPLETE:
        runs = list(attributes.runs.values())
        if not runs or trial.value is None or abs(trial.value - loss(runs)) > 1e-6:
            raise ValueError(f"its value is {trial.value}")
