"""Every method, weighting, student and transfer set in a whole study, over Flower's messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedkd.data.images import Images
from fedkd.distillation.density.basis import Basis
from fedkd.distillation.density.moments import Moments, moments_of
from fedkd.errors import UserError
from fedkd.registry import METHODS, WEIGHTINGS
from fedkd.report.progress import StudyProgress
from fedkd.runner.run import run_study
from fedkd.runner.study_runner import Outcome

LABELLED = {"data/transfer": {"size": 60, "labelled": True}}


@pytest.fixture
def run(tmp_path: Path, make_study: Any) -> Any:
    """Return a function that runs the test study with one arm, ``fedkd-new``.

    Tests share a cache: the silos' models are computed once.
    """

    def run(
        consolidation: dict[str, Any],
        changes: dict[str, Any] | None = None,
        *,
        fresh: bool = False,
    ) -> Outcome:
        arm = {"start": "consolidated", "consolidation": {"epochs": 3, **consolidation}}
        alone = {"arms": {"fedkd-new": arm}, "baselines": []}
        study = make_study({**alone, "rounds/max": 1, **(changes or {})})
        quiet = StudyProgress(Console(quiet=True), 10)
        return run_study(study, out=tmp_path / "runs", fresh=fresh, progress=quiet)

    return run


def new(outcome: Outcome) -> dict[str, Any]:
    assert outcome.summary["failures"] == []
    found: dict[str, Any] = next(r for r in outcome.summary["runs"] if r["arm"] == "fedkd-new")
    return found


@pytest.mark.parametrize("method", METHODS)
def test_every_method_improves_on_the_average_that_it_starts_from(run: Any, method: str) -> None:
    outcome = run({"method": method, "epochs": 40}, LABELLED)
    entry = new(outcome)
    assert entry["instruments"]["student"]["delta"] > 0
    assert entry["exchanges_before_round_1"] == 1


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_weighting_has_what_it_needs(run: Any, weighting: str) -> None:
    weights = new(run({"weighting": weighting}))["notes"]["mean_weights"]
    assert sum(weights.values()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("student", ["average", "best", "worst", "random", "fresh"])
def test_every_student_learns(run: Any, student: str) -> None:
    entry = new(run({"student": student, "epochs": 8}))
    if student in ("best", "worst", "random"):
        assert entry["notes"]["student"].startswith("silo-")
    assert entry["instruments"]["student"]["gain"] > 0 or student == "best"


def test_best_and_worst_are_not_the_same(run: Any) -> None:
    named = {
        choice: new(run({"student": choice}))["notes"]["student"] for choice in ("best", "worst")
    }
    assert named["best"] != named["worst"]


def test_instruments_agree_with_the_curve(run: Any) -> None:
    entry = new(run({}))
    found = entry["instruments"]
    first, last = (entry["curve"][index]["accuracy"] for index in (0, -1))
    assert found["rounds"]["delta"] == pytest.approx(last - first, abs=2e-6)
    assert len(found["teachers"]) == len(found["silos"])
    assert all(0 <= teacher["complementary"] <= 1 for teacher in found["teachers"])
    for silo in found["silos"]:
        assert 0 <= silo["before"] <= 1
        assert 0 <= silo["after"] <= 1


def test_a_start_without_teachers_has_instruments_of_its_rounds(run: Any) -> None:
    outcome = run({}, {"arms/fedavg": {"start": "random"}})
    random = next(r for r in outcome.summary["runs"] if r["arm"] == "fedavg")["instruments"]
    assert "student" not in random
    assert random["rounds"]["gain"] > 0
    assert {silo["before"] for silo in random["silos"]} == {None}


@pytest.mark.parametrize("by", ["accuracy", "complementary"])
def test_teachers_are_selected(run: Any, by: str) -> None:
    notes = new(run({"select": {"top": 2, "by": by}}))["notes"]
    assert len(notes["teachers"]) == 2
    assert set(notes["mean_weights"]) == set(notes["teachers"])


def test_a_rate_that_falls_is_the_constant_one_in_the_first_round_alone(run: Any) -> None:
    curves = []
    for schedule in ("constant", "cosine"):
        rounds = {"max": 3, "lr": 0.05, "schedule": schedule, "stop": "budget"}
        curves.append([p["loss"] for p in new(run({}, {"rounds": rounds}))["curve"]])
    constant, falling = curves
    assert constant[:2] == falling[:2]
    assert constant[2] != falling[2]


@pytest.mark.parametrize("mode", ["weights", "logits"])
def test_a_student_in_closed_form_needs_no_distillation_and_rounds_train_it_on(
    run: Any, mode: str
) -> None:
    moments = {"density": "pooled", "basis": "patches", "filters": 200}
    consolidation = {
        "weighting": "familiarity",
        "student": "lda-head",
        "epochs": 0,
        "mode": mode,
        "familiarity": moments,
    }
    rounds = {"max": 2, "schedule": "cosine", "lr": 0.01}
    entry = new(run(consolidation, {"arms/fedkd-new/arch": "patch-features", "rounds": rounds}))
    average = new(run({}))
    first, *later = (point["accuracy"] for point in entry["curve"])
    assert first > average["curve"][0]["accuracy"]
    assert len(later) == 2
    assert entry["notes"]["distillation_loss"] is None
    assert entry["instruments"]["student"]["delta"] == 0


def test_a_silo_whose_labels_are_wrong_is_left_out_by_validation_labels(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDKD_CACHE_DIR", str(tmp_path / "cache"))  # what liars give stays here

    def lying(data: Images, basis: Basis, **settings: Any) -> Moments | None:
        labels = (data.labels + 1) % 10 if len(data) == most else data.labels
        return moments_of(Images(data.images, labels), basis, **settings)

    changes = {
        "arms/fedkd-new/arch": "patch-features",
        "data": {
            "source": "digits",
            "validation": 0.1,
            "train_size": 600,
            "transfer": {"size": 100},
        },
        "partition": {"scheme": "quantity", "silos": 5, "alpha": 2},
        "pretraining/epochs": 1,
    }
    settings = {
        "weighting": "familiarity",
        "student": "lda-head",
        "epochs": 0,
        "familiarity": {"density": "pooled", "basis": "patches", "filters": 200},
    }
    outcome = run(settings, changes)
    honest = new(outcome)
    held = {row["silo"]: row["num_examples"] for row in outcome.summary["silos"]}
    most = max(held.values())
    monkeypatch.setattr("fedkd.federation.local_silo.moments_of", lying)
    spoilt = new(run(settings, changes, fresh=True))
    mended = new(run({**settings, "trust": "validation"}, changes, fresh=True))
    liar = next(silo for silo in held if held[silo] == most)
    assert list(mended["notes"]["doubted"]) == [liar]
    starts = [entry["curve"][0]["accuracy"] for entry in (spoilt, mended, honest)]
    assert starts[0] < starts[1] - 0.05
    assert starts[2] - starts[1] < 0.02


def test_a_student_of_another_architecture_learns_from_all_silos(run: Any) -> None:
    changes = {
        "arms/fedkd-new/arch": "cnn",
        "model/per_silo": {"silo-1": "lenet5"},
        "pretraining/epochs": 40,
    }
    entry = new(run({"student": "fresh", "epochs": 60}, changes))
    assert len(entry["notes"]["mean_weights"]) == len(entry["instruments"]["silos"])
    assert entry["curve"][0]["accuracy"] > 0.2


def test_the_average_is_over_the_silos_of_its_architecture(run: Any) -> None:
    mixed = new(run({"epochs": 1}, {"model/per_silo": {"silo-1": "cnn"}}))
    assert mixed["curve"][0]["accuracy"] != new(run({"epochs": 1}))["curve"][0]["accuracy"]


@pytest.mark.parametrize("by", ["random", "entropy"])
def test_a_subset_of_the_transfer_set_changes_what_is_learnt(run: Any, by: str) -> None:
    part = new(run({"subset": {"size": 20, "by": by}}))
    assert part["curve"][0]["loss"] != new(run({}))["curve"][0]["loss"]


def test_noise_can_carry_knowledge_or_not_but_it_runs(run: Any) -> None:
    entry = new(run({}, {"data/transfer": {"size": 60, "source": "noise"}}))
    assert 0 <= entry["curve"][0]["accuracy"] <= 1


FEATURES = {"weighting": "familiarity", "familiarity": {"basis": "features"}}
AT_SILO = {"data/transfer": {"source": "student-silo"}}


@pytest.mark.parametrize("density", ["gaussian", "knn"])
def test_densities_in_features_teach_better_than_none(run: Any, density: str) -> None:
    settings = {**FEATURES["familiarity"], "density": density}  # type: ignore[dict-item]
    entry = new(run({**FEATURES, "familiarity": settings, "epochs": 15}))
    equal = new(run({"epochs": 15}))
    assert entry["exchanges_before_round_1"] == 2
    assert entry["curve"][0]["accuracy"] > equal["curve"][0]["accuracy"]
    assert entry["curve"][0]["bytes_down"] > equal["curve"][0]["bytes_down"]
    for target in entry["targets"]:
        assert target["exchanges"] is None or target["exchanges"] == target["round"] + 2


@pytest.mark.parametrize("density", ["gaussian", "knn"])
def test_densities_in_patches_teach_better_than_none_at_once(run: Any, density: str) -> None:
    settings = {"weighting": "familiarity", "familiarity": {"basis": "patches", "density": density}}
    entry = new(run({**settings, "epochs": 15}))
    equal = new(run({"epochs": 15}))
    assert entry["exchanges_before_round_1"] == 1
    assert entry["curve"][0]["accuracy"] > equal["curve"][0]["accuracy"]


POOLED = {
    "weighting": "familiarity",
    "familiarity": {"density": "pooled", "basis": "patches"},
    "epochs": 15,
}


@pytest.mark.parametrize("teachers", ["models", "both", "densities"])
def test_pooled_moments_teach_better_than_none_at_once(run: Any, teachers: str) -> None:
    entry = new(run({**POOLED, "teachers": teachers}))
    equal = new(run({"epochs": 15}))
    assert entry["exchanges_before_round_1"] == 1
    assert entry["curve"][0]["accuracy"] > equal["curve"][0]["accuracy"]


def test_blends_in_a_study_of_unlike_teachers(run: Any) -> None:
    changes = {"model/per_silo": {"silo-1": "cnn"}}
    settings = {**POOLED, "teachers": "both", "epochs": 3, "student": "fresh"}
    plain = new(run(settings, changes))
    entry = new(run({**settings, "mixed_inputs": 3}, changes))
    assert entry["notes"]["distillation_loss"] != plain["notes"]["distillation_loss"]
    assert entry["curve"][0]["accuracy"] > plain["curve"][0]["accuracy"]
    assert entry["curve"][0]["bytes_up"] == plain["curve"][0]["bytes_up"]


def test_refined_blends_and_fewer_filters_in_a_study(run: Any) -> None:
    familiarity = {**POOLED["familiarity"], "basis": "patches"}
    settings = {**POOLED, "teachers": "both", "student": "fresh", "epochs": 3, "mixed_inputs": 3}
    plain = new(run({**settings, "familiarity": familiarity}))
    fewer = new(run({**settings, "familiarity": {**familiarity, "filters": 20}}))
    refined = new(run({**settings, "familiarity": familiarity, "finetune_epochs": 3}))
    assert fewer["curve"][0]["bytes_down"] < plain["curve"][0]["bytes_down"]
    assert refined["curve"][0]["bytes_up"] == plain["curve"][0]["bytes_up"]
    assert refined["notes"]["student_agreement"] > plain["notes"]["student_agreement"]


@pytest.mark.parametrize("density", ["gaussian", "knn"])
def test_blends_of_images_whose_densities_silos_told(run: Any, density: str) -> None:
    settings = {"weighting": "familiarity", "familiarity": {"density": density}, "epochs": 5}
    entry = new(run({**settings, "teachers": "both", "mixed_inputs": 2}))
    plain = new(run({**settings, "epochs": 15}))
    assert entry["curve"][0]["accuracy"] > plain["curve"][0]["accuracy"] - 0.1
    assert entry["notes"]["distillation_loss"] != plain["notes"]["distillation_loss"]


def test_features_of_the_students_architecture_among_others(run: Any) -> None:
    changes = {"model/per_silo": {"silo-1": "cnn"}}
    notes = new(run({**FEATURES, "student": "fresh"}, changes))["notes"]
    assert set(notes["mean_weights"]) == {"silo-0", "silo-1", "silo-2"}


def test_a_model_without_features_is_refused_before_anything_runs(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_convolution.py").write_text(
        "from torch import nn\n\n"
        "def net(num_classes, in_channels, image_size):\n"
        "    layer = nn.Conv2d(in_channels, num_classes, image_size)\n"
        "    return nn.Sequential(layer, nn.Flatten())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    said = r"^arms\.fedkd-new\.consolidation\.familiarity\.basis: features .* use basis: pixels$"
    with pytest.raises(UserError, match=said):
        run(FEATURES, {"model/arch": "my_convolution:net"})
    assert not (tmp_path / "runs").exists()


def test_a_student_learns_on_its_own_silo(run: Any) -> None:
    entry = new(run({"student": "best", "epochs": 10}, AT_SILO))
    assert entry["exchanges_before_round_1"] == 2
    assert entry["instruments"]["student"]["gain"] > 0
    names = [teacher["silo"] for teacher in entry["instruments"]["teachers"]]
    assert entry["notes"]["student"] in names
    assert len(names) == 3


@pytest.mark.parametrize(
    ("consolidation", "changes"),
    [(FEATURES, {}), ({"student": "best", "method": "dml"}, AT_SILO)],
    ids=["features", "student-silo"],
)
def test_starts_of_two_exchanges_are_the_same_to_the_bit(
    consolidation: dict[str, Any], changes: dict[str, Any], run: Any
) -> None:
    """With one worker and two, and without the cache."""
    outcomes = [
        run(
            consolidation,
            {**changes, "engine/workers": workers, "name": f"study-{workers}"},
            fresh=True,
        )
        for workers in (1, 2)
    ]
    entries = [new(outcome) for outcome in outcomes]
    assert not any(entry["cached"] for entry in entries)
    strip = [[{**point, "seconds": 0} for point in entry["curve"]] for entry in entries]
    assert strip[0] == strip[1]
    place = "fedkd-new/seed-0/checkpoint.safetensors"
    first, second = ((outcome.folder / place).read_bytes() for outcome in outcomes)
    assert first == second
