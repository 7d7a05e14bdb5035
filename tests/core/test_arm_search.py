"""Tuning of whole arms: what a trial costs, when it is stopped, how a search goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedkd.config import Arm, Study
from fedkd.errors import FedKDError, UserError
from fedkd.tuning import store
from fedkd.tuning.arm_search import (
    ArmSearch,
    best_arm_trial,
    check_arm_trial,
    ended_trials,
    runs_of,
    search_arm,
)
from fedkd.tuning.arm_space import ArmSpace, at_edge, step_beyond
from fedkd.tuning.arms_command import choose_arms, find_targets
from fedkd.tuning.arms_outcome import summarise_arm
from fedkd.tuning.exchanges import LEAST_TRIALS, Limits, SeedRun, loss
from fedkd.tuning.importance import importances
from fedkd.tuning.ranges import Range
from fedkd.tuning.seeds import tuning_study

SEEDS = [100, 101]
ROUNDS = 40


class PowerCutError(Exception):
    """The process dies here."""


class Silent:
    """Progress that is not shown."""

    def on_arm_trial(self, arm: str, ended: int, total: int, best: int | None) -> None:
        pass


SILENT: Any = Silent()


class Surface:
    """Stands for runs: the rounds to the target follow from the settings, without training.

    Args:
        rounds_needed: of an arm's settings, on any seed.
        cut_after: number of points after which the power is cut.
    """

    def __init__(
        self, rounds_needed: Callable[[Study, str], float], cut_after: int | None = None
    ) -> None:
        self.points = 0
        self.runs: list[tuple[float, int]] = []
        self._rounds_needed = rounds_needed
        self._cut_after = cut_after

    def __call__(
        self, study: Study, arm: str, seed: int, on_point: Callable[[int, float], bool]
    ) -> None:
        needed = self._rounds_needed(study, arm) + seed - SEEDS[0]
        self.runs.append((study.rounds_of(arm).lr, seed))
        for number in range(study.rounds_of(arm).max + 1):
            self.points += 1
            if self.points == self._cut_after:
                raise PowerCutError
            if not on_point(0, min(0.9, 0.9 * number / needed)):
                return


def best_at(lr: float, epochs: float = 5) -> Callable[[Study, str], float]:
    """Return rounds needed that are fewest, 6, at a learning rate and number of epochs."""

    def needed(study: Study, arm: str) -> float:
        rounds = study.rounds_of(arm)
        return (
            6
            + 8 * abs(math.log10(rounds.lr / lr))
            + 4 * abs(math.log2(rounds.local_epochs / epochs))
        )

    return needed


@pytest.fixture
def study(make_study: Any) -> Study:
    found: Study = make_study({"rounds": {"max": ROUNDS, "lr": 0.05}, "targets": [0.5, 0.9]})
    return tuning_study(found, SEEDS)


@pytest.fixture
def tune(tmp_path: Path, study: Study, quick_searches: None) -> Callable[..., Any]:
    def tune(run: Any, trials: int, name: str = "a", arm: str = "fedavg") -> list[Any]:
        targets = find_targets(study, run)
        search = ArmSearch(study, arm, ArmSpace(study, arm), targets, run)
        path = tmp_path / f"{name}.db"
        with store.opened(path, "tiny/fedavg", "arm", "key") as file:
            store.check_trials(
                path,
                file.get_trials(deepcopy=False),
                lambda trial: check_arm_trial(trial, search.space),
            )
            search_arm(file, search, trials=trials, progress=SILENT)
            ended = ended_trials(file.get_trials())
        assert sorted(ended) == list(range(len(ended)))
        return [ended[slot] for slot in sorted(ended)]

    return tune


def curve(*accuracies: float, stopped: bool = False, before: int = 1) -> SeedRun:
    return SeedRun(before, 10, 0.9, accuracies, stopped=stopped)


def test_a_run_costs_its_exchanges_or_its_whole_budget() -> None:
    assert curve(0.1, 0.5, 0.95).exchanges == 3
    assert curve(0.9).exchanges == 1, "reached at the start"
    missed = curve(*[0.5] * 11)
    assert (missed.exchanges, missed.bound) == (None, 11)
    stopped = curve(0.1, 0.2, stopped=True)
    assert (stopped.exchanges, stopped.bound) == (None, 3), "round 2 is the first that could do"


def test_accuracy_decides_between_equal_numbers_of_exchanges_only() -> None:
    worse, better = curve(0.1, 0.2, 0.9), curve(0.1, 0.2, 1.0)
    assert loss([better]) < loss([worse])
    assert loss([curve(0.1, 0.9)]) < loss([better])


def test_a_trial_is_stopped_as_soon_as_it_is_past_the_cap() -> None:
    best = {0: curve(0.1, 0.9), 1: curve(0.1, 0.3, 0.9)}
    limits = Limits.of([best, {0: curve(*[0.1] * 11), 1: curve(*[0.1] * 11)}])
    assert limits.cap == 1.5 * 5
    assert not limits.exclude(3, 1, curve(*[0.1] * 3)), "3 + 1 + 3 = 7 exchanges are allowed"
    assert limits.exclude(3, 1, curve(*[0.1] * 4))
    assert not Limits.of([]).exclude(1000, 0, curve(*[0.1] * 9))


def test_accuracy_is_compared_with_the_median_of_finished_trials() -> None:
    trials = [{0: curve(*[top * n / 10 for n in range(11)])} for top in (0.2, 0.4, 0.6, 0.8)]
    assert not Limits.of(trials[: LEAST_TRIALS - 1]).medians
    limits = Limits.of(trials)
    assert limits.medians == {(0, 2): pytest.approx(0.1), (0, 5): pytest.approx(0.25)}
    assert limits.exclude(0, 0, curve(0, 0, 0.09))
    assert not limits.exclude(0, 0, curve(0, 0.2, 0.09)), "the best so far counts"
    assert not limits.exclude(0, 0, curve(0, 0, 0.09, 0.09)), "not a round of comparison"
    arrived = {0: curve(0.1, 0.9)}
    assert Limits.of([*trials, arrived]).medians[0, 2] == pytest.approx(0.12), "0.9 from round 1"


@pytest.mark.parametrize(
    ("value", "side"), [(0.01, "low"), (0.012, "low"), (0.05, None), (0.24, "high"), (0.3, "high")]
)
def test_an_edge_is_a_tenth_of_the_range(value: float, side: str | None) -> None:
    assert Range(0.01, 0.3, least=1e-5, most=10).edge(value) == side


def test_a_range_is_extended_up_to_its_bounds() -> None:
    epochs = Range(1, 10, least=1, most=30, kind="int")
    assert epochs.edge(1) is None, "there are no fewer epochs than one"
    assert epochs.beyond("high") == 20
    wider = epochs.including([20])
    assert (wider.edge(20), wider.beyond("high"), wider.edge(10)) == ("high", 30, None)
    assert wider.including([30]).edge(30) is None
    assert Range(16, 64, least=4, most=512, kind="power").beyond("low") == 8


def test_every_arm_is_searched_over_the_same_kinds_of_settings(make_study: Any) -> None:
    study = make_study(
        {
            "arms/average": {"start": "average"},
            "arms/fedavgm": {"start": "random", "strategy": "fedavgm"},
            "arms/feddf": {"start": "random", "strategy": "feddf"},
            "arms/fedkd-equal": {"start": "consolidated"},
        }
    )
    plain = set(ArmSpace(study, "fedavg").own_point())
    assert plain == {
        "rounds.lr",
        "rounds.local_epochs",
        "rounds.batch_size",
        "rounds.momentum",
        "rounds.schedule",
    }
    start = {f"consolidation.{key}" for key in ("lr", "epochs", "temperature")}
    density = {f"consolidation.familiarity.{key}" for key in ("scale", "dims")}
    more = {
        "average": set(),
        "fedavgm": {"server.lr"},
        "feddf": {"fusion.lr"},
        "fedkd-equal": start,
        "fedkd": start | density,
    }
    for arm, keys in more.items():
        space = ArmSpace(study, arm)
        assert set(space.own_point()) == plain | keys
        for key, each in space.ranges().items():
            if key.startswith("rounds."):
                assert each == ArmSpace(study, "fedavg").ranges()[key]


def test_a_point_becomes_the_arms_own_settings(make_study: Any) -> None:
    study = make_study({"arms/fedavg": {"start": "random", "strategy": "fedadam"}})
    space = ArmSpace(study, "fedavg")
    own = space.settings(space.own_point())
    assert own.server.lr == 0.01
    assert own.rounds.lr == study.rounds.lr
    point = {**space.own_point(), "rounds.local_epochs": 7, "rounds.schedule": "cosine"}
    arm = space.settings(point)
    assert (arm.rounds.local_epochs, arm.rounds.schedule) == (7, "cosine")
    with pytest.raises(ValueError, match="not those of the search"):
        space.settings({"rounds.lr": 0.1})


def test_a_start_in_closed_form_has_no_epochs_to_tune(make_study: Any) -> None:
    untaught = {
        "student": "lda-head",
        "weighting": "familiarity",
        "epochs": 0,
        "familiarity": {"density": "pooled", "basis": "patches", "filters": 200},
    }
    study = make_study({"arms/fedkd/arch": "patch-features", "arms/fedkd/consolidation": untaught})
    keys = {key for key in ArmSpace(study, "fedkd").own_point() if key.startswith("consol")}
    assert keys == {f"consolidation.familiarity.{key}" for key in ("scale", "dims")}


def test_the_first_trial_is_the_arm_as_it_is_and_each_runs_on_all_seeds(
    tune: Any, study: Study
) -> None:
    run = Surface(best_at(0.05, 1))
    trials = tune(run, 1)
    assert [lr for lr, _ in run.runs] == [0.05, 0.05]
    assert [seed for _, seed in run.runs] == SEEDS
    assert {seed: each.exchanges for seed, each in runs_of(trials[0]).items()} == {100: 6, 101: 7}
    assert trials[0].value == pytest.approx(13 + 0.5 * 0.1)


def test_a_search_finds_what_the_arm_lacks_and_stopped_trials_save_rounds(tune: Any) -> None:
    run = Surface(best_at(0.05, 6))
    trials = tune(run, 16)
    best = best_arm_trial(trials)
    assert best is not None
    assert best.value < trials[0].value - 8, "one epoch takes twice the exchanges of six"
    assert {trial.state.name for trial in trials} == {"COMPLETE", "PRUNED"}
    stopped = [t for t in trials if t.state.name == "PRUNED"]
    assert stopped
    assert run.points < 16 * 2 * ROUNDS / 2
    assert all(runs[-1].exchanges is None for t in stopped if (runs := list(runs_of(t).values())))


def test_a_range_grows_while_the_best_lies_at_its_edge(tune: Any, study: Study) -> None:
    trials = tune(Surface(best_at(2.0)), 16)
    space = ArmSpace(study, "fedavg")
    points = [trial.user_attrs["point"] for trial in trials]
    best = best_arm_trial(trials)
    assert best is not None
    assert best.user_attrs["point"]["rounds.lr"] > 0.6, "twice the upper end of the range"
    assert max(point["rounds.lr"] for point in points) >= 1.2
    assert space.ranges()["rounds.lr"].high == 0.3
    few = tune(Surface(best_at(2.0)), 2, name="few")
    point = min(few, key=lambda trial: trial.value).user_attrs["point"]
    high = {**point, "rounds.lr": 0.3}
    assert "rounds.lr" in at_edge(high, space.ranges())
    step = step_beyond(high, space.ranges())
    assert step is not None
    assert step["rounds.lr"] == 0.6


def test_a_search_that_was_cut_off_ends_as_if_it_had_not_been(tune: Any) -> None:
    surface = best_at(0.1, 6)
    whole = [(t.user_attrs, t.value) for t in tune(Surface(surface), 8, name="whole")]
    for cut_after in (3, 60, 50, 25):
        with pytest.raises(PowerCutError):
            tune(Surface(surface, cut_after), 8, name="cut")
    again = Surface(surface)
    assert [(t.user_attrs, t.value) for t in tune(again, 8, name="cut")] == whole
    done = Surface(surface)
    tune(done, 8, name="cut")
    assert done.points == 0, "a finished search has nothing to do"


def test_more_trials_go_on_from_fewer(tune: Any) -> None:
    surface = best_at(0.1, 6)
    whole = [t.user_attrs for t in tune(Surface(surface), 5, name="whole")]
    tune(Surface(surface), 3, name="parts")
    assert [t.user_attrs for t in tune(Surface(surface), 5, name="parts")] == whole


def test_settings_that_fail_have_no_result_and_others_go_on(tune: Any) -> None:
    def run(study: Study, arm: str, seed: int, on_point: Callable[[int, float], bool]) -> None:
        if study.rounds_of(arm).lr > 0.05:
            raise FedKDError("it diverged")
        Surface(best_at(0.02))(study, arm, seed, on_point)

    trials = tune(run, 8)
    problems = [t.user_attrs["problem"] for t in trials if "problem" in t.user_attrs]
    assert problems
    assert set(problems) == {"it diverged"}
    best = best_arm_trial(trials)
    assert best is not None
    assert best.user_attrs["point"]["rounds.lr"] <= 0.05


def test_an_arm_without_any_result_is_an_error(tune: Any, study: Study) -> None:
    def run(study: Study, arm: str, seed: int, on_point: Callable[[int, float], bool]) -> None:
        raise FedKDError("it diverged")

    with pytest.raises(FedKDError, match=r"arms.fedavg: no trial .* result \(it diverged\)"):
        summarise_arm("fedavg", tune(run, 2), ArmSpace(study, "fedavg"))


def test_importances_name_what_decides(tune: Any, study: Study) -> None:
    def needed(study: Study, arm: str) -> float:
        return 6 + 12 * abs(math.log10(study.rounds_of(arm).lr / 0.05))

    space = ArmSpace(study, "fedavg")
    trials = tune(Surface(needed), 16)
    shares = importances(trials, space)
    assert set(shares) == set(space.own_point())
    assert next(iter(shares)) == "rounds.lr"
    assert shares["rounds.lr"] > 0.5
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)
    assert importances(trials[:3], space) == {}


def test_a_file_with_another_result_is_refused(tune: Any, tmp_path: Path) -> None:
    import sqlite3

    tune(Surface(best_at(0.05)), 2)
    for statement in (
        "UPDATE trial_values SET value = 1",
        """UPDATE trial_user_attributes SET value_json = '{"rounds.lr": 1}' WHERE key = 'point'""",
        "DELETE FROM trial_user_attributes WHERE key = 'slot'",
    ):
        content = (tmp_path / "a.db").read_bytes()
        with sqlite3.connect(tmp_path / "a.db") as database:
            database.execute(statement)
        with pytest.raises(UserError, match="is damaged, or is not a search"):
            tune(Surface(best_at(0.05)), 2)
        database.close()
        (tmp_path / "a.db").write_bytes(content)


def test_targets_as_shares_are_of_a_whole_run_of_the_baseline(make_study: Any) -> None:
    study = make_study({"targets": {"of_baseline_best": [0.5, 0.8]}, "rounds/max": 9})
    run = Surface(lambda *_: 18)
    targets = find_targets(tuning_study(study, SEEDS), run)
    assert targets == {100: pytest.approx(0.8 * 0.45), 101: pytest.approx(0.8 * 0.9 * 9 / 19)}
    assert run.points == 20


def test_baselines_are_tuned_first(make_study: Any) -> None:
    study = make_study({"arms/average": {"start": "average"}, "baselines": ["average", "fedavg"]})
    assert choose_arms(study, None) == ["average", "fedavg", "fedkd"]
    assert choose_arms(study, ["fedkd", "fedavg"]) == ["fedavg", "fedkd"]
    with pytest.raises(UserError, match=r"--arms: no arm is named 'fedk' \(did you mean 'fedkd'"):
        choose_arms(study, ["fedk"])
    with pytest.raises(UserError, match="names no arm, or one twice"):
        choose_arms(study, ["fedkd", "fedkd"])


def test_seeds_of_trials_are_never_those_of_the_study(make_study: Any) -> None:
    study = make_study()
    with pytest.raises(UserError, match="--seeds: 0 is a seed of the study, on which its arms"):
        tuning_study(study, [100, 0])
    with pytest.raises(UserError, match="not a list of different seeds"):
        tuning_study(study, [100, 100])
    tuned = {"trials": 4, "seeds": [100]}
    again = make_study({"arms/fedavg": {"start": "random", "tuned": tuned}})
    assert tuning_study(again, [100]).arms["fedavg"] == Arm(start="random")
    with pytest.raises(UserError, match=r"arms.fedavg.tuned.seeds: the arm was tuned on seed 7"):
        make_study(
            {"arms/fedavg": {"start": "random", "tuned": {"trials": 4, "seeds": [7]}}, "seeds": [7]}
        )


def test_rounds_that_no_trial_made_keep_the_settings_of_the_study(tune: Any, study: Study) -> None:
    def at_start(study: Study, arm: str, seed: int, on_point: Callable[[int, float], bool]) -> None:
        accuracy = 0.99 - 0.02 * abs(math.log10(study.rounds_of(arm).lr / 0.3))
        assert not on_point(1, accuracy), "the trial goes on, though its start reached the target"

    space = ArmSpace(study, "fedavg")
    trials = tune(at_start, 8)
    found = summarise_arm("fedavg", trials, space)
    best = best_arm_trial(trials)
    assert best is not None
    assert best.user_attrs["point"] != space.own_point(), "a tie goes to the better accuracy"
    assert found["reached_by_start"]
    assert found["best"]["settings"] == space.own_point()
    assert found["at_edge"] == []
    made = summarise_arm("fedavg", tune(Surface(best_at(0.02)), 8, name="made"), space)
    assert not made["reached_by_start"]
    assert made["best"]["settings"] != space.own_point()
