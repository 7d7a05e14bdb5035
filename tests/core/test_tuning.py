"""Tuning of a start: the students that FedKD would make, scored without test data."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from fedkd.config import Consolidation, Study
from fedkd.config import Tuned as TunedBy
from fedkd.config.study_file import load_study
from fedkd.data.images import content_hash
from fedkd.distillation.targets import make_ensemble
from fedkd.distillation.teachers import Teachers
from fedkd.errors import FedKDError, UserError
from fedkd.federation.federation import Federation
from fedkd.federation.simulated_teachers import SimulatedTeachers
from fedkd.federation.split import load_split
from fedkd.models.build import build_model
from fedkd.training.evaluate import evaluate
from fedkd.tuning import command, store
from fedkd.tuning.command import tune
from fedkd.tuning.objective import (
    agreement,
    choose_judge,
    committee,
    make_objective,
    split_transfer,
)
from fedkd.tuning.outcome import Searched
from fedkd.tuning.search import StartSearch
from fedkd.tuning.space import Space
from fedkd.tuning.student import SeedObjective, make_space
from fedkd.tuning.trials import make_sampler

TRIAL_SEED = 100
TPE = {"multivariate": True, "group": True}
WEIGHTINGS = ["equal", "confidence", "familiarity"]

NETS = """
import torch
from torch import nn

class Noisy(nn.Module):
    def __init__(self, num_classes, in_channels, image_size):
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(in_channels * image_size ** 2, 24), nn.BatchNorm1d(24),
            nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, num_classes),
        )

    def forward(self, images):
        return self.body(images)
"""


class Watch:
    """Progress that counts, and may cut the power before a certain epoch of the whole search."""

    def __init__(self, cut_after: int | None = None) -> None:
        self.epochs = 0
        self.ended: list[int] = []
        self._cut_after = cut_after

    def warn(self, sentence: str) -> None:
        pass

    @contextmanager
    def pretraining(self, seed: int, total: int) -> Any:
        yield lambda: None

    def on_trial(self, ended: int, total: int, best: float | None) -> None:
        self.ended.append(ended)

    def on_epoch(self, seed: int, epoch: int, epochs: int) -> None:
        self.epochs += 1
        if self.epochs == self._cut_after:
            raise PowerCutError


class PowerCutError(Exception):
    """The process dies here."""


@pytest.fixture
def run_tune(tmp_path: Path, pool: ThreadPoolExecutor, few_epochs: None) -> Callable[..., Searched]:
    def run(study: Study, arm: str | None = None, *, out: str = "out", **options: Any) -> Searched:
        options.setdefault("progress", Watch())
        options.setdefault("seeds", [TRIAL_SEED])
        return tune(study, arm, out=tmp_path / out, pool=pool, **options)

    return run


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def simulated_teachers(study: Study, cache: Path, seed: int = 0) -> SimulatedTeachers:
    return SimulatedTeachers(Federation.load(study, seed, cache), "fedkd")


SETTINGS: dict[str, dict[str, Any]] = {
    "gaussian": {"weighting": "familiarity"},
    "knn, fewer dims, background": {
        "weighting": "familiarity",
        "familiarity": {"density": "knn", "dims": 7, "scale": 2, "background": True},
    },
    "densities alone": {"weighting": "familiarity", "teachers": "densities"},
    "predictions only": {"mode": "logits", "student": "fresh", "weighting": "familiarity"},
    "class priors": {"weighting": "class-prior", "temperature": 4, "pooling": "logits"},
    "judged on validation": {"weighting": "accuracy", "student": "best", "select": {"top": 2}},
    "mutual": {"method": "dml", "weighting": "confidence"},
    "one by one": {"method": "dp-kd", "sequence": "sequential", "epochs": 6},
    "a part": {"subset": {"size": 30, "by": "entropy"}},
    "blends of a part": {"subset": {"size": 30}, "mixed_inputs": 2, "weighting": "familiarity"},
    "pooled moments that teach": {
        "weighting": "familiarity",
        "teachers": "both",
        "familiarity": {"density": "pooled", "basis": "patches"},
        "mixed_inputs": 2,
    },
    "pooled moments alone": {
        "weighting": "familiarity",
        "teachers": "densities",
        "familiarity": {"density": "pooled", "dims": 9},
    },
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_student_is_the_one_that_fedkd_makes(
    settings: dict[str, Any], make_study: Any, run_arm: Any, cache_dir: Path
) -> None:
    study = make_study({"arms/fedkd/consolidation": {"epochs": 3, **settings}})
    room = simulated_teachers(study, cache_dir)
    mine, theirs = room.consolidate(room.own), run_arm(study, "fedkd").start
    assert same(mine.state, theirs.state)
    assert mine.notes == theirs.notes


def test_a_student_in_closed_form_is_tuned_by_what_it_rests_on(
    make_study: Any, run_arm: Any, cache_dir: Path
) -> None:
    settings = {
        "student": "lda-head",
        "weighting": "familiarity",
        "familiarity": {"density": "pooled", "basis": "patches", "filters": 200, "dims": 25},
        "epochs": 2,
        "lr": 0.001,
    }
    study = make_study({"arms/fedkd/arch": "patch-features", "arms/fedkd/consolidation": settings})
    room = simulated_teachers(study, cache_dir)
    mine, theirs = room.consolidate(room.own), run_arm(study, "fedkd").start
    assert same(mine.state, theirs.state)
    found = make_space(room, "validation")
    trial = optuna.trial.FixedTrial(found.own_point())
    assert found.settings(found.suggest(trial)).student == "lda-head"
    assert trial.distributions["weighting"].choices == ("familiarity",)


def test_without_a_basis_familiarity_falls_back_as_fedkd_does(
    make_study: Any, run_arm: Any, cache_dir: Path
) -> None:
    study = make_study({"data/transfer/size": 15})
    room = simulated_teachers(study, cache_dir)
    assert same(room.consolidate(room.own).state, run_arm(study, "fedkd").start.state)


@pytest.mark.parametrize("method", ["kd", "dml", "dp-kd"])
def test_whoever_looks_at_the_student_does_not_change_it(
    method: str,
    make_study: Any,
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "noisy_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "noisy_nets", raising=False)
    study = make_study(
        {
            "model/arch": "noisy_nets:Noisy",
            "arms/fedkd/consolidation": {"method": method, "epochs": 3},
        }
    )
    room = simulated_teachers(study, cache_dir)
    objective = make_objective(room, "validation")
    seen = []

    def look(student: torch.nn.Module, epoch: int, epochs: int) -> None:
        seen.append((epoch, epochs))
        objective.score(student, room.federation.compute)
        assert not student.training, "the look itself must be one that could do harm"

    watched = room.consolidate(room.own, on_student=look)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert same(watched.state, room.consolidate(room.own).state)


def test_a_part_of_the_transfer_set_is_known_by_its_images_not_their_places(
    make_study: Any, cache_dir: Path
) -> None:
    room = simulated_teachers(make_study(), cache_dir)
    rows = torch.tensor([40, 3, 17, 55])
    whole = room.ensemble(room.own)
    teachers, setup = room._prepare(room.own, rows)
    assert torch.equal(setup.transfer.images, room.transfer.images[rows])
    everyone, _ = room._prepare(room.own, None)
    predicted = everyone.predict(room.transfer.images)
    assert torch.equal(teachers.predict(setup.transfer.images), predicted[:, rows])
    part = make_ensemble(teachers, room.own, setup)
    assert torch.allclose(part.target, whole.target[rows], atol=1e-6)


def test_a_grid_of_25_points_asks_each_of_ten_teachers_once(
    make_study: Any, run_tune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(
        {
            "partition": {"scheme": "iid", "silos": 10},
            "data/transfer": {"size": 60, "labelled": True},
            "arms/fedkd/consolidation": {"weighting": "accuracy", "epochs": 1},
        }
    )
    asked: Counter[tuple[str, str]] = Counter()
    honest = Teachers._predict

    def counted(self: Teachers, index: int, images: torch.Tensor, found: str) -> torch.Tensor:
        asked[self.members[index].silo, content_hash(images)] += 1
        return honest(self, index, images, found)

    monkeypatch.setattr(Teachers, "_predict", counted)
    found = run_tune(study, kind="grid")
    split = load_split(study, TRIAL_SEED)
    assert split.transfer is not None
    sets = [content_hash(split.transfer.images), content_hash(split.validation.images)]
    assert asked == {(silo, images): 1 for silo in study.silo_names for images in sets}
    points = [tuple(trial["settings"].values()) for trial in found.results["trials"]]
    assert len(points) == len(set(points)) == 25


def test_a_grid_gives_the_same_on_any_number_of_threads(make_study: Any, run_tune: Any) -> None:
    found = []
    for threads in (1, 4):
        study = make_study(
            {
                "engine/server_threads": threads,
                "arms/fedkd/consolidation": {"weighting": "familiarity", "epochs": 2},
            }
        )
        found.append(run_tune(study, kind="grid", trials=6, out=f"on-{threads}").results)
    assert found[0] == found[1]


def test_test_data_have_no_say(
    make_study: Any, run_tune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study({"arms/fedkd/consolidation/epochs": 2})
    before = run_tune(study, trials=3, out="a").results
    honest = Federation.load

    def spoilt(study: Study, seed: int, cache: Path) -> Federation:
        federation = honest(study, seed, cache)
        test = replace(federation.split.test, labels=federation.split.test.labels.flip(0))
        return Federation(study, seed, replace(federation.split, test=test), cache)

    monkeypatch.setattr(Federation, "load", staticmethod(spoilt))
    assert run_tune(study, trials=3, out="b").results == before


@pytest.mark.parametrize("kind", ["tpe", "grid"])
def test_a_search_that_was_cut_off_ends_as_if_it_had_not_been(
    kind: store.Kind, make_study: Any, run_tune: Any
) -> None:
    study = make_study({"arms/fedkd/consolidation/epochs": 3})
    trials = 11 if kind == "tpe" else 4  # TPE's first ten are random
    whole = run_tune(study, kind=kind, trials=trials, out="whole").results
    spent = Watch()
    for cut_after in (2, 8, None):
        watch = Watch(cut_after)
        if cut_after is not None:
            with pytest.raises(PowerCutError):
                run_tune(study, kind=kind, trials=trials, out="cut", progress=watch)
        else:
            split = run_tune(study, kind=kind, trials=trials, out="cut", progress=watch).results
        assert watch.ended[0] == (spent.ended[-1] if spent.ended else 0), "trials were lost"
        spent = watch
    ended = [t for t in split["trials"] if t["state"] != "killed"]
    assert len(split["trials"]) == trials + 2, "each cut spoilt one trial"
    for mine, theirs in zip(ended, whole["trials"], strict=True):
        assert {**mine, "number": 0} == {**theirs, "number": 0}
    again = Watch()
    run_tune(study, kind=kind, trials=trials, out="cut", progress=again)
    assert again.epochs == 0, "a finished search has nothing to do"


def test_the_first_trial_is_the_arm_as_it_is(
    make_study: Any, run_tune: Any, cache_dir: Path
) -> None:
    study = make_study()
    found = run_tune(study, trials=1).results
    assert found["own"] == found["best"] == found["trials"][0]
    room = simulated_teachers(study, cache_dir, TRIAL_SEED)
    model = build_model("mlp", room.federation.shape, seed=0)
    model.load_state_dict(room.consolidate(room.own).state)
    accuracy = evaluate(model, room.federation.split.validation, compute=room.federation.compute)
    assert found["best"]["value"] == pytest.approx(accuracy.accuracy)


def test_the_score_is_the_mean_over_seeds_each_its_own_federation(
    make_study: Any, run_tune: Any
) -> None:
    both = run_tune(make_study(), trials=1, seeds=[100, 101]).results["best"]
    alone = [run_tune(make_study(), trials=1, out=str(seed), seeds=[seed]) for seed in (100, 101)]
    assert list(both["scores"].values()) == [a.results["best"]["value"] for a in alone]
    assert both["value"] == pytest.approx(sum(both["scores"].values()) / 2)


def test_a_trial_that_falls_behind_is_given_up(make_study: Any, monkeypatch: Any) -> None:
    study = optuna.create_study(
        direction="maximize", pruner=optuna.pruners.MedianPruner(store.STARTUP_TRIALS)
    )
    for _ in range(store.STARTUP_TRIALS):
        trial = study.ask()
        for step in range(1, 9):
            trial.report(0.9, step)
        study.tell(trial, 0.9)
    looked: list[int] = []

    class Room:
        federation = type("F", (), {"seed": 0, "compute": None, "shape": None})()

        def consolidate(self, settings: Any, *, rows: Any, on_student: Any) -> Any:
            for epoch in range(1, settings.epochs + 1):
                looked.append(epoch)
                on_student(None, epoch, settings.epochs)

    class Objective:
        rows = None

        def score(self, student: Any, compute: Any) -> float:
            return 0.1

    seed_objective: Any = SeedObjective(Room(), Objective())  # type: ignore[arg-type]
    trial = study.ask()
    space = Space(Consolidation(), labelled=False, weightings=["equal"])
    search = StartSearch(study, "fedkd", space, [seed_objective], Watch())
    search.run_trial(trial, Consolidation(epochs=20))
    assert looked == [1, 2, 3, 4, 5], "given up at the first look, after a quarter"
    assert study.trials[-1].state == optuna.trial.TrialState.PRUNED


def test_settings_that_diverge_are_tried_once_and_never_win(make_study: Any, run_tune: Any) -> None:
    study = make_study(
        {
            "model/arch": "resnet8",
            "pretraining/epochs": 1,
            "arms/fedkd/consolidation": {"lr": 1000, "epochs": 4},
        }
    )
    with pytest.raises(FedKDError, match=r"no trial of the search has a result \(distillation div"):
        run_tune(study, trials=1)
    watch = Watch()
    with pytest.raises(FedKDError, match="no trial"):
        run_tune(study, trials=1, progress=watch)
    assert watch.epochs == 0, "it would diverge again"
    found = run_tune(study, trials=3).results
    assert found["trials"][0]["state"] == "diverged"
    assert found["best"]["state"] == "finished"
    assert found["own"] is None


def test_the_tuned_study_is_the_study_but_for_the_arm(make_study: Any, run_tune: Any) -> None:
    study = make_study({"arms/fedkd/consolidation/epochs": 3})
    found = run_tune(study, trials=4)
    tuned = load_study(found.tuned)
    winner = Consolidation.model_validate(found.results["consolidation"])
    assert tuned.arms["fedkd"].consolidation == winner
    assert tuned.arms["fedkd"].tuned == TunedBy(trials=4, seeds=[TRIAL_SEED])
    own = study.arms["fedkd"]
    assert tuned.model_copy(update={"arms": {**tuned.arms, "fedkd": own}}) == study
    for key, value in found.results["best"]["settings"].items():
        section, _, leaf = key.rpartition(".")
        assert getattr(winner.familiarity if section else winner, leaf) == value
    header = found.tuned.read_text().splitlines()[:6]
    assert all(line.startswith("# ") for line in header)
    assert f"{found.results['best']['value']:.4f}" in "".join(header)


def test_without_validation_data_held_out_images_decide_and_it_is_said(
    make_study: Any, run_tune: Any
) -> None:
    study = make_study({"data/validation": 0, "arms/fedkd/consolidation/epochs": 2})
    found = run_tune(study, trials=2)
    assert found.results["judge"] == "committee"
    assert found.results["agreement"] is None
    assert "no label is used" in found.tuned.read_text()
    labelled = make_study({"data/validation": 0, "data/transfer": {"size": 60, "labelled": True}})
    assert choose_judge(labelled, proxy=False) == "transfer-labels"
    assert choose_judge(make_study(), proxy=False) == "validation"
    assert choose_judge(make_study(), proxy=True) == "committee"


def test_the_proxy_never_sees_a_label(
    make_study: Any, run_tune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study({"arms/fedkd/consolidation": {"weighting": "equal", "epochs": 2}})
    # With this seed the students differ, and so do their accuracies on other labels.
    before = run_tune(study, trials=4, proxy=True, out="a", seeds=[102]).results
    assert before["agreement"]["trials"] == 4
    honest = Federation.load

    def spoilt(study: Study, seed: int, cache: Path) -> Federation:
        federation = honest(study, seed, cache)
        labels = federation.split.validation.labels.flip(0)
        validation = replace(federation.split.validation, labels=labels)
        return Federation(study, seed, replace(federation.split, validation=validation), cache)

    monkeypatch.setattr(Federation, "load", staticmethod(spoilt))
    after = run_tune(study, trials=4, proxy=True, out="b", seeds=[102]).results
    assert [t["value"] for t in after["trials"]] == [t["value"] for t in before["trials"]]
    assert [t["validation"] for t in after["trials"]] != [t["validation"] for t in before["trials"]]


def test_held_out_images_are_not_learnt_from(make_study: Any, cache_dir: Path) -> None:
    learnt, held_out = split_transfer(60, seed=3)
    assert sorted([*learnt.tolist(), *held_out.tolist()]) == list(range(60))
    assert len(held_out) == 12
    room = simulated_teachers(make_study(), cache_dir)
    objective = make_objective(room, "committee")
    assert objective.rows is not None
    images = {image.numpy().tobytes() for image in room.transfer.images[objective.rows]}
    assert not images & {image.numpy().tobytes() for image in objective.images}
    assert torch.allclose(objective.target.sum(1), torch.ones(12, dtype=torch.float64))
    with pytest.raises(UserError, match="too few to hold out"):
        split_transfer(40, seed=3)


def test_the_committee_is_the_mean_of_the_weightings_whatever_the_arm_says(
    make_study: Any, cache_dir: Path
) -> None:
    plain = simulated_teachers(make_study({"arms/fedkd/consolidation": {}}), cache_dir)
    odd = simulated_teachers(
        make_study({"arms/fedkd/consolidation": {"temperature": 9, "pooling": "logits"}}), cache_dir
    )
    assert torch.equal(committee(plain), committee(odd))
    names = ["equal", "size", "confidence", "class-prior", "consensus", "familiarity"]
    by_hand = sum(
        plain.ensemble(Consolidation(weighting=name)).target.double() for name in names
    ) / len(names)
    assert torch.allclose(committee(plain), torch.as_tensor(by_hand))


def test_agreement_by_hand() -> None:
    perfect = agreement([0.1, 0.2, 0.3], [0.5, 0.6, 0.9])
    assert perfect == {"trials": 3, "spearman": 1.0, "regret": 0.0}
    # Ranks less 2.5: -1.5, 0, 0, 1.5 and 1.5, 0.5, -1.5, -0.5; products -3, squares 4.5 and 5.
    mixed = agreement([0.1, 0.2, 0.2, 0.4], [0.9, 0.8, 0.5, 0.7])
    assert mixed["spearman"] == pytest.approx(-3 / (4.5 * 5) ** 0.5, abs=1e-6)
    assert mixed["regret"] == pytest.approx(0.2)
    assert agreement([0.1, 0.1, 0.1], [0.2, 0.3, 0.4])["spearman"] is None
    assert agreement([], []) == {"trials": 0, "spearman": None, "regret": None}


@pytest.mark.parametrize(
    ("own", "labelled", "axes"),
    [
        ({}, True, {"temperature", "weight"}),
        ({}, False, {"temperature", "lr"}),
        ({"method": "dp-kd"}, True, {"temperature", "lr"}),
        ({"method": "dml"}, True, {"lr"}),
    ],
)
def test_the_grid_varies_what_has_an_effect(
    own: dict[str, Any], labelled: bool, axes: set[str]
) -> None:
    space = Space(Consolidation(**own), labelled=labelled, weightings=WEIGHTINGS)
    assert set(space.grid()) == axes
    points = space.grid_points()
    assert len(points) == 5 ** len(axes)
    assert space.settings(points[0]) == Consolidation(**own), "the arm's own point comes first"


def test_an_arm_off_the_grid_is_one_point_more() -> None:
    space = Space(Consolidation(temperature=3), labelled=True, weightings=WEIGHTINGS)
    points = space.grid_points()
    assert points[0] == {"temperature": 3, "weight": 0.5}
    assert len(points) == 26


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_space_holds_the_arms_own_settings_and_studies_that_load() -> None:
    own = Consolidation(lr=3.33333, epochs=7, temperature=50, weighting="my.module:function")
    space = Space(own, labelled=True, weightings=WEIGHTINGS)
    for seed in range(20):
        fixed = space.own_point() if seed == 0 else None
        study = optuna.create_study(sampler=make_sampler("tuning fedkd", seed, fixed, **TPE))
        point = space.suggest(study.ask())
        settings = space.settings(point)
        assert settings.weighting in [*WEIGHTINGS, "my.module:function"]
        if seed == 0:
            assert settings == own
        elif settings.weighting == "familiarity":
            assert 10 <= settings.familiarity.dims <= 100
            assert 1 <= settings.familiarity.effective_scale <= 10
        assert settings.mode == own.mode
        assert settings.momentum == own.momentum


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    ("own", "least", "most"),
    [
        ({"epochs": 50}, 10, 100),
        ({"epochs": 10, "mixed_inputs": 8}, 1, 11),
        ({"mixed_inputs": 500}, 1, 50),
    ],
)
def test_epochs_with_blends_are_as_much_work_as_without(
    own: dict[str, Any], least: int, most: int
) -> None:
    space = Space(Consolidation(**own), labelled=False, weightings=["equal"])
    study = optuna.create_study(sampler=make_sampler("tuning fedkd", 0, None, **TPE))
    trial = study.ask()
    space.suggest(trial)
    bounds = trial.distributions["epochs"]
    assert isinstance(bounds, optuna.distributions.IntDistribution)
    assert (bounds.low, bounds.high) == (least, most)


def test_the_wrong_arm_is_refused(make_study: Any) -> None:
    assert command.choose_arm(make_study(), None) == "fedkd"
    with pytest.raises(UserError, match=r"fedavg does not consolidate \(start: random\).*: fedkd"):
        command.choose_arm(make_study(), "fedavg")
    with pytest.raises(UserError, match=r"no arm is named 'fedk' \(did you mean 'fedkd'"):
        command.choose_arm(make_study(), "fedk")
    with pytest.raises(UserError, match="no arm consolidates"):
        command.choose_arm(make_study({"arms": {"fedavg": {"start": "random"}}}), None)
    at_silo = {
        "data/transfer": {"source": "student-silo"},
        "arms/fedkd/consolidation": {"student": "random"},
    }
    with pytest.raises(UserError, match="student-silo keeps the transfer examples"):
        command.choose_arm(make_study(at_silo), "fedkd")
    features = {"arms/fedkd/consolidation/familiarity": {"basis": "features"}}
    with pytest.raises(UserError, match="features is not tuned"):
        command.choose_arm(make_study(features), "fedkd")
    untaught = {
        "student": "lda-head",
        "weighting": "familiarity",
        "epochs": 0,
        "familiarity": {"density": "pooled", "basis": "patches", "filters": 200},
    }
    closed = {"arms/fedkd/arch": "patch-features", "arms/fedkd/consolidation": untaught}
    with pytest.raises(UserError, match=r"consolidation.epochs: 0 leaves nothing to tune"):
        command.choose_arm(make_study(closed), "fedkd")


def test_the_file_of_another_search_is_refused(
    make_study: Any, run_tune: Any, tmp_path: Path
) -> None:
    quick = {"arms/fedkd/consolidation/epochs": 1}
    study = make_study({**quick, "arms/fedkd-two": {"start": "consolidated"}})
    run_tune(study, trials=1)
    folder = tmp_path / "out" / "tiny"
    with pytest.raises(UserError, match="other data, settings, judge or kind"):
        run_tune(study, trials=1, seeds=[101])
    with pytest.raises(UserError, match="other data, settings, judge or kind"):
        run_tune(study, trials=1, kind="grid")
    (folder / "tune-fedkd.db").rename(folder / "tune-fedkd-two.db")
    with pytest.raises(UserError, match="contains the search for tiny/fedkd, not for"):
        run_tune(study, "fedkd-two", trials=1)
    (folder / "tune-fedkd.db").write_text("no database at all, but long enough to be read as one")
    with pytest.raises(UserError, match="is damaged, or is not a search of fedkd tune"):
        run_tune(study, trials=1)
    assert run_tune(study, trials=1, fresh=True).results["trials"][0]["state"] == "finished"


def test_two_searches_do_not_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "tune-fedkd.db"
    with (
        store.opened(path, "tiny/fedkd", "tpe", "key"),
        pytest.raises(UserError, match=f"is being written by process {os.getpid()} on"),
        store.opened(path, "tiny/fedkd", "tpe", "key"),
    ):
        pass
