"""Whole studies with every local loss and every strategy, and with two from both starts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedkd.config import Study
from fedkd.registry import LOCAL_LOSSES, STRATEGIES
from fedkd.report.progress import StudyProgress
from fedkd.runner.run import run_study
from fedkd.runner.study_runner import Outcome

# What an arm does otherwise than plain FedAvg, by the arm's name.
OPTIONS: dict[str, dict[str, Any]] = {
    "logit-adjusted": {"rounds": {"local_loss": "logit-adjusted"}},
    "proximal": {"rounds": {"local_loss": "proximal", "mu": 0.3}},
    "not-true": {"rounds": {"local_loss": "not-true"}},
    "fedavgm": {"strategy": "fedavgm", "server": {"momentum": 0.5}},
    "fedadam": {"strategy": "fedadam"},
    "feddf": {"strategy": "feddf"},
    "both": {"strategy": "fedadam", "rounds": {"local_loss": "not-true"}},
}
STARTS: dict[str, dict[str, Any]] = {
    "random": {"start": "random"},
    "fedkd": {
        "start": "consolidated",
        "consolidation": {"weighting": "familiarity", "epochs": 3, "student": "fresh"},
    },
}
ALL_ARMS = {
    f"{start}-{name}": {**settings, **option}
    for start, settings in STARTS.items()
    for name, option in {"plain": {}, **OPTIONS}.items()
    if start == "random" or name in ("plain", "both")
}
STUDY = {
    "data": {"source": "digits", "train_size": 300, "transfer": {"size": 60}},
    "partition": {"scheme": "label-dirichlet", "silos": 4, "alpha": 0.3, "min_size": 12},
    "arms": ALL_ARMS,
    "baselines": [],
    "rounds": {"max": 6, "stop": "budget", "lr": 0.1},
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_cache: Any) -> Any:
    """Return a function that runs a study, and finds no runs of other tests in the cache."""
    monkeypatch.setenv("FEDKD_CACHE_DIR", str(make_cache(tmp_path / "cache")))

    def run(study: Study, *, fresh: bool = False) -> Outcome:
        progress = StudyProgress(Console(quiet=True), len(study.arms) * len(study.seeds))
        return run_study(study, out=tmp_path / "runs", fresh=fresh, progress=progress)

    return run


def curves(outcome: Outcome) -> dict[str, list[dict[str, Any]]]:
    """Return every arm's curve without its seconds."""
    assert outcome.summary["failures"] == []
    return {
        run["arm"]: [{k: v for k, v in point.items() if k != "seconds"} for point in run["curve"]]
        for run in outcome.summary["runs"]
    }


def test_the_options_are_all_there_are() -> None:
    losses = {option["rounds"]["local_loss"] for option in OPTIONS.values() if "rounds" in option}
    assert losses | {"cross-entropy"} == set(LOCAL_LOSSES)
    assert {option.get("strategy", "fedavg") for option in OPTIONS.values()} == set(STRATEGIES)


def test_every_option_improves_on_its_start_and_repeats_to_the_last_bit(
    run: Any, make_study: Any
) -> None:
    found = curves(run(make_study({**STUDY, "engine/workers": 2})))
    again = curves(run(make_study({**STUDY, "engine/workers": 1, "rounds/max": 2}), fresh=True))
    assert {arm: curve[:3] for arm, curve in found.items()} == again
    assert list(found) == list(ALL_ARMS)
    for arm, curve in found.items():
        start, _, option = arm.partition("-")
        plain = found[f"{start}-plain"]
        assert [p["round"] for p in curve] == list(range(7)), arm
        assert all(math.isfinite(p["accuracy"]) and math.isfinite(p["loss"]) for p in curve), arm
        assert all(p["silos_failed"] == 0 for p in curve), arm
        assert curve[0] == plain[0], "options concern the rounds, not the start"
        assert max(p["accuracy"] for p in curve) > curve[0]["accuracy"] + 0.05, arm
        assert curve[-1]["loss"] < curve[0]["loss"], arm
        assert (curve[1:] == plain[1:]) == (option == "plain"), arm
        assert [p["bytes_down"] for p in curve] == [p["bytes_down"] for p in plain], arm


def test_a_cohort_of_one_silo_goes_with_every_option(run: Any, make_study: Any) -> None:
    changes = {**STUDY, "rounds": {"max": 2, "stop": "budget", "fraction": 0.01, "lr": 0.05}}
    found = curves(run(make_study(changes)))
    for arm, curve in found.items():
        assert [p["silos_ok"] for p in curve[1:]] == [1, 1], arm
        assert all(math.isfinite(p["loss"]) for p in curve), arm
        start, _, option = arm.partition("-")
        # A model that teaches itself learns nothing: feddf of one silo is fedavg but for rounding.
        if option not in ("plain", "feddf"):
            assert curve[1:] != found[f"{start}-plain"][1:], arm


@pytest.mark.parametrize(
    ("loss", "key", "value"),
    [
        ("proximal", "mu", 2.0),
        ("not-true", "beta", 3.0),
        ("not-true", "tau", 4.0),
        ("logit-adjusted", "tau", 0.3),
    ],
)
def test_an_arm_sets_what_its_loss_takes(
    loss: str, key: str, value: float, run: Any, make_study: Any
) -> None:
    """Set for the study or for one arm, a key does the same; left alone, it does otherwise."""
    own = {"local_loss": loss, key: value}
    one_arm = {
        "arms": {
            "own": {"start": "random", "rounds": own},
            "default": {"start": "random", "rounds": {"local_loss": loss}},
            "plain": {"start": "random"},
        },
        "baselines": [],
        "rounds/max": 1,
    }
    for_all = {"arms": {"all": {"start": "random"}}, "baselines": [], "rounds/max": 1}
    found = curves(run(make_study(one_arm)))
    shared = curves(run(make_study({**for_all, "rounds/local_loss": loss, f"rounds/{key}": value})))
    assert found["own"] == shared["all"]
    assert found["own"] != found["default"] != found["plain"]
