"""Whole studies on the inline engine: the same bits every time, the cache, the summary."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedkd.config import Study
from fedkd.config.study_file import load_study
from fedkd.engines.base import Task
from fedkd.errors import UserError
from fedkd.federation.federation import Federation
from fedkd.report import print_summary
from fedkd.report.progress import StudyProgress
from fedkd.results.record import RunRecord
from fedkd.runner.run import run_study
from fedkd.runner.run_cache import cached_run
from fedkd.runner.study_runner import Outcome
from fedkd.util.cache_entries import KINDS, has_entry
from fedkd.util.lock import LOCK_FILE

USER_MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, in_channels, image_size):
        super().__init__()
        self.first = nn.Linear(in_channels * image_size ** 2, 32)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(32, num_classes)

    def forward(self, images):
        hidden = self.drop(torch.relu(self.first(images.flatten(1))))
        return self.last(hidden + 0.1 * torch.rand(32) if self.training else hidden)
"""

DIVERGING = {
    "model/arch": "resnet8",
    "pretraining/epochs": 1,
    "arms/fedkd/consolidation": {"lr": 1000, "epochs": 5},
    "rounds/max": 1,
}


def quiet(study: Study) -> StudyProgress:
    return StudyProgress(Console(quiet=True), len(study.arms) * len(study.seeds))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_cache: Any) -> Any:
    """Return a function that runs a study, and finds no runs of other tests in the cache."""
    monkeypatch.setenv("FEDKD_CACHE_DIR", str(make_cache(tmp_path / "cache")))

    def run(study: Study, *, fresh: bool = False, progress: Any = None) -> Outcome:
        out = tmp_path / "runs"
        return run_study(study, out=out, fresh=fresh, progress=progress or quiet(study))

    return run


def curves(outcome: Outcome) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Return every run's curve without its seconds."""
    return {
        (run["arm"], run["seed"]): [
            {key: value for key, value in point.items() if key != "seconds"}
            for point in run["curve"]
        ]
        for run in outcome.summary["runs"]
    }


ALL_STARTS = {
    "arms/fedkd": {
        "start": "consolidated",
        "consolidation": {
            "weighting": "familiarity",
            "epochs": 3,
            "familiarity": {"density": "knn"},
        },
    },
    "arms/fedkd-logits": {
        "start": "consolidated",
        "consolidation": {
            "weighting": "confidence",
            "mode": "logits",
            "student": "fresh",
            "epochs": 3,
        },
    },
    "arms/avg": {"start": "average"},
    "arms/best": {"start": "best"},
    "rounds/fraction": 0.67,
}


def test_one_and_two_workers_give_identical_curves(run: Any, make_study: Any) -> None:
    one = run(make_study({**ALL_STARTS, "engine/workers": 1}), fresh=True)
    two = run(make_study({**ALL_STARTS, "engine/workers": 2}), fresh=True)
    assert len(curves(one)) == 5
    assert curves(one) == curves(two)
    assert not any(r["cached"] for r in one.summary["runs"] + two.summary["runs"])
    for entry in one.summary["runs"]:
        place = f"{entry['arm']}/seed-{entry['seed']}/checkpoint.safetensors"
        assert (one.folder / place).read_bytes() == (two.folder / place).read_bytes()


def test_a_users_dropout_model_too(
    run: Any, make_study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_dropout_model.py").write_text(USER_MODEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    changes = {"model/arch": "my_dropout_model:Net", "rounds/max": 2}
    found = [
        curves(run(make_study({**changes, "engine/workers": workers}), fresh=True))
        for workers in (1, 2)
    ]
    assert found[0] == found[1]


def test_seeds_differ_and_arms_share_what_they_should(run: Any, make_study: Any) -> None:
    random = {"start": "random"}
    arms = {"fedavg": random, "twin": random, "long": {**random, "rounds": {"max": 3}}}
    study = make_study({"seeds": [0, 1], "arms": arms})
    found = curves(run(study))
    assert found["fedavg", 0] == found["twin", 0]
    assert found["long", 0][:3] == found["fedavg", 0]
    assert len(found["long", 0]) == 4
    assert found["fedavg", 0] != found["fedavg", 1]


def cached(outcome: Outcome) -> dict[str, bool]:
    return {run["arm"]: run["cached"] for run in outcome.summary["runs"]}


def test_the_cache_is_hit_missed_and_rewritten(run: Any, make_study: Any) -> None:
    first = run(make_study())
    assert cached(first) == {"fedavg": False, "fedkd": False}
    assert all(row["seconds_saved_pct"] is not None for row in first.summary["comparison"])
    second = run(make_study({"name": "renamed", "engine/workers": 1}))
    assert cached(second) == {"fedavg": True, "fedkd": True}
    assert curves(first) == curves(second)
    assert all(row["seconds_saved_pct"] is None for row in second.summary["comparison"])
    fresh = run(make_study(), fresh=True)
    assert cached(fresh) == {"fedavg": False, "fedkd": False}
    assert curves(fresh) == curves(first)


SMALL = {"rounds/max": 1, "pretraining/epochs": 1}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, make_study: Any) -> tuple[Outcome, Path]:
    """Return what a small study gave, and the cache that it filled, which is its own."""
    folder, study = tmp_path_factory.mktemp("small"), make_study(SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDKD_CACHE_DIR", str(folder / "cache"))
        outcome = run_study(study, out=folder / "runs", fresh=False, progress=quiet(study))
    return outcome, folder / "cache"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "renamed", "engine/workers": 1}, {"fedavg": True, "fedkd": True}),
        ({"rounds/lr": 0.04}, {"fedavg": False, "fedkd": False}),
        ({"targets": [0.31, 0.99]}, {"fedavg": False, "fedkd": False}),
        ({"partition/alpha": 0.6}, {"fedavg": False, "fedkd": False}),
        ({"engine/server_threads": 2}, {"fedavg": False, "fedkd": False}),
        ({"engine/silo_threads": 2}, {"fedavg": False, "fedkd": False}),
        # A random start knows nothing of what the silos trained before.
        ({"pretraining/epochs": 2}, {"fedavg": True, "fedkd": False}),
        ({"arms/fedkd/consolidation/epochs": 4}, {"fedavg": True, "fedkd": False}),
        ({"arms/fedkd/rounds": {"lr": 0.04}}, {"fedavg": True, "fedkd": False}),
    ],
)
def test_a_changed_key_misses_the_cache(
    changes: dict[str, Any],
    expected: dict[str, bool],
    small: tuple[Outcome, Path],
    make_study: Any,
    tmp_path: Path,
) -> None:
    shutil.copytree(small[1] / "arms", tmp_path / "cache" / "arms")
    study = make_study({**SMALL, **changes})
    federation = Federation.load(study, 0, tmp_path / "cache")
    tasks = [Task(federation, arm, tuple(study.targets), tmp_path / arm) for arm in study.arms]
    assert {task.arm: has_entry(cached_run(task)) for task in tasks} == expected


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"features"}))  # see test_feature_store
def test_a_flipped_bit_in_the_cache_changes_no_result(
    kind: str,
    small: tuple[Outcome, Path],
    make_study: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = make_study(SMALL)
    first, whole = small
    cache = shutil.copytree(whole, tmp_path / "cache")
    monkeypatch.setenv("FEDKD_CACHE_DIR", str(cache))
    if kind != "arms":
        shutil.rmtree(cache / "arms")
    entries = sorted((cache / kind).iterdir())
    for entry in entries:
        largest = max(entry.iterdir(), key=lambda path: path.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[-1] ^= 1
        largest.write_bytes(content)
    second = run_study(study, out=tmp_path / "runs", fresh=False, progress=quiet(study))
    assert not any(cached(second).values())
    assert curves(first) == curves(second)
    assert not second.summary["failures"]
    assert entries
    for entry in entries:
        assert f"the cache entry {entry} is damaged" in caplog.text
        assert has_entry(entry)


RUN_KEYS = [
    "arm",
    "seed",
    "engine",
    "cached",
    "accuracy_source",
    "stopped",
    "exchanges_before_round_1",
    "curve",
    "targets",
    "best_accuracy",
    "final_accuracy",
    "quarantined",
]
POINT_KEYS = [
    "round",
    "accuracy",
    "loss",
    "bytes_up",
    "bytes_down",
    "seconds",
    "silos_ok",
    "silos_failed",
]


def test_the_summary_has_exactly_the_contracts_keys(run: Any, make_study: Any) -> None:
    outcome = run(make_study())
    summary = json.loads((outcome.folder / "summary.json").read_text())
    assert summary == json.loads(json.dumps(outcome.summary))
    contract = ["schema", "study", "resolved", "versions", "machine", "runs", "comparison"]
    assert list(summary) == [
        *contract,
        "failures",
        "warnings",
        "constant_accuracy",
        "classes",
        "silos",
    ]
    assert summary["schema"] == 1
    for entry in summary["runs"]:
        assert set(entry) == {*RUN_KEYS, "max_rounds", "notes", "instruments", "silos_get"}
        for point in entry["curve"]:
            assert set(point) == {*POINT_KEYS, "macro_f1", "metrics"}
        for target in entry["targets"]:
            assert list(target) == ["target", "round", "exchanges", "bytes", "seconds"]
        assert [p["round"] for p in entry["curve"]] == [0, 1, 2]
        assert entry["final_accuracy"] == entry["curve"][-1]["accuracy"]
    # Every figure that a reader could compute from the curves is what the summary says.
    fedkd = next(entry for entry in summary["runs"] if entry["arm"] == "fedkd")
    assert [t["target"] for t in fedkd["targets"]] == [0.3, 0.99]
    assert fedkd["targets"][1] == dict.fromkeys(
        ("round", "exchanges", "bytes", "seconds"), None
    ) | {"target": 0.99}
    assert fedkd["exchanges_before_round_1"] == 1
    row = next(r for r in summary["comparison"] if r["target"] == 0.99)
    assert row["exchanges"] == {"arm": 3, "baseline": 2}
    assert row["bound"] == "undefined"


def test_what_lies_on_disk_is_the_study_and_its_runs(run: Any, make_study: Any) -> None:
    study = make_study()
    outcome = run(study)
    assert load_study(outcome.folder / "study.yaml") == study
    for arm in study.arms:
        folder = outcome.folder / arm / "seed-0"
        assert {p.name for p in folder.iterdir()} - {LOCK_FILE} == {
            "rounds.jsonl",
            "checkpoint.safetensors",
            "progress.safetensors",
            "state.json",
        }
        assert RunRecord.read(folder).arm == arm
    again = run(study)
    assert again.folder != outcome.folder


def test_targets_of_baseline_best(run: Any, make_study: Any) -> None:
    study = make_study(
        {
            "targets": {"of_baseline_best": [0.5, 1.0]},
            "rounds/stop": "targets",
            "rounds/max": 6,
            "arms": {"fedkd": {"start": "consolidated"}, "fedavg": {"start": "random"}},
        }
    )
    for _ in range(2):
        outcome = run(study)
        by_arm = {r["arm"]: r for r in outcome.summary["runs"]}
        assert list(by_arm) == ["fedkd", "fedavg"], "in the study's order"
        best = by_arm["fedavg"]["best_accuracy"]
        assert len(by_arm["fedavg"]["curve"]) == 7, "the baseline uses its whole budget"
        for entry in by_arm.values():
            assert [t["target"] for t in entry["targets"]] == [0.5 * best, best]
        assert by_arm["fedavg"]["targets"][1]["round"] is not None
        stopped = by_arm["fedkd"]
        if stopped["stopped"] == "targets":
            assert stopped["curve"][-1]["accuracy"] >= best
        assert [r["target"] for r in outcome.summary["comparison"]] == [0.5, 1.0]
    assert cached(outcome) == {"fedavg": True, "fedkd": True}


def test_targets_follow_the_metric(run: Any, make_study: Any) -> None:
    changes = {"metric": "auroc", "rounds/stop": "targets", "rounds/max": 4, "targets": [0.75]}
    summary = run(make_study(changes)).summary
    for entry in summary["runs"]:
        values = [point["metrics"]["auroc"] for point in entry["curve"]]
        reached = [number for number, value in enumerate(values) if value >= 0.75]
        assert entry["targets"][0]["round"] == (reached[0] if reached else None)
        assert entry["best_accuracy"] < 0.75, "it is not accuracy that reached it"
    assert any(entry["targets"][0]["round"] is not None for entry in summary["runs"])
    relative = make_study({"metric": "auroc", "targets": {"of_baseline_best": [0.9]}})
    for entry in run(relative).summary["runs"]:
        best = max(p["metrics"]["auroc"] for p in entry["curve"])
        if entry["arm"] == "fedavg":
            assert entry["targets"][0]["target"] == 0.9 * best


def test_all_metrics_are_in_every_point_and_leave_the_curve_as_it_is(
    run: Any, make_study: Any
) -> None:
    runs = {
        metric: run(make_study({"metric": metric})).summary["runs"]
        for metric in ("accuracy", "macro-f1")
    }
    for one, other in zip(*runs.values(), strict=True):
        for first, second in zip(one["curve"], other["curve"], strict=True):
            assert {**first, "seconds": 0} == {**second, "seconds": 0}
            assert first["metrics"]["accuracy"] == first["accuracy"]
            assert first["metrics"]["macro_f1"] == first["macro_f1"]
            assert None not in first["metrics"].values()


def test_a_metric_that_the_test_images_do_not_define_is_refused(run: Any, make_study: Any) -> None:
    study = make_study({"metric": "auroc", "data/test_size": 8})
    with pytest.raises(UserError, match="metric: auroc ranks the test examples of each class"):
        run(study)


class Impatient(StudyProgress):
    """Presses Ctrl-C after a round of an arm."""

    def __init__(self, arm: str, after: int) -> None:
        super().__init__(Console(quiet=True), 2)
        self._stop_at = (arm, after)

    @contextmanager
    def run(self, arm: str, seed: int, rounds: int, targets: Any) -> Iterator[Any]:
        with super().run(arm, seed, rounds, targets) as bar:
            stop_at, on_point = self._stop_at, bar.on_point

            def watch(point: Any) -> None:
                on_point(point)
                if (arm, point.round) == stop_at:
                    raise KeyboardInterrupt

            bar.on_point = watch
            yield bar


def test_an_interrupted_study_keeps_what_it_measured(run: Any, make_study: Any) -> None:
    study = make_study({"rounds/max": 3})
    outcome = run(study, progress=Impatient("fedkd", 1))
    assert outcome.interrupted
    summary = json.loads((outcome.folder / "summary.json").read_text())
    whole, part = summary["runs"]
    assert (whole["arm"], whole["stopped"], len(whole["curve"])) == ("fedavg", "budget", 4)
    assert (part["arm"], part["stopped"], len(part["curve"])) == ("fedkd", "interrupted", 2)
    assert summary["comparison"] == [], "half a run is compared with nothing"
    again = run(study)
    assert not again.interrupted
    assert cached(again) == {"fedavg": True, "fedkd": False}
    assert curves(again)["fedkd", 0][:2] == curves(outcome)["fedkd", 0]


def test_an_interrupted_run_says_what_its_start_cost(run: Any, make_study: Any) -> None:
    settings = {"weighting": "familiarity", "familiarity": {"basis": "features"}, "epochs": 1}
    changes = {
        "rounds/max": 2,
        "arms/fedkd/consolidation": settings,
        "arms/avg": {"start": "average"},
    }
    interrupted = run(make_study(changes), progress=Impatient("fedkd", 0))
    whole = run(make_study({**changes, "name": "whole"}))
    cost = {r["arm"]: r["exchanges_before_round_1"] for r in interrupted.summary["runs"]}
    assert cost == {"fedavg": 0, "fedkd": 2}
    for entry in whole.summary["runs"]:
        assert entry["exchanges_before_round_1"] == {**cost, "avg": 1}[entry["arm"]]


def test_one_failed_run_leaves_the_others(run: Any, make_study: Any) -> None:
    study = make_study(DIVERGING)
    outcome = run(study)
    assert [r["arm"] for r in outcome.summary["runs"]] == ["fedavg"]
    (failure,) = outcome.summary["failures"]
    assert failure["arm"] == "fedkd"
    assert "diverged" in failure["reason"]
    console = Console(record=True, width=160, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123 -- closed with the process
    print_summary(outcome.summary, console)
    assert "failed: fedkd, seed 0: arms.fedkd: distillation diverged" in console.export_text()


def test_a_study_that_cannot_run_writes_nothing(run: Any, make_study: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        run(make_study({"data/train_size": None, "data/transfer/size": 100_000}))
    assert not (tmp_path / "runs").exists()


GOLDEN_STUDY = {
    "data/train_size": 300,
    "pretraining/epochs": 15,
    "rounds/max": 3,
    "rounds/lr": 0.1,
    "rounds/local_epochs": 3,
    "rounds/batch_size": 16,
    "arms/fedkd/consolidation/epochs": 30,
}


def test_the_curve_is_that_of_the_golden_file(run: Any, make_study: Any, golden: Path) -> None:
    """A changed curve is a changed method: say in the commit why it changed.

    Accuracies are compared to within a single image of the 360, losses to three in a hundred: after
    three rounds the last bits of another processor have come to half of that.
    """
    outcome = run(make_study(GOLDEN_STUDY), fresh=True)
    expected = json.loads((golden / "curve.json").read_text())
    found = {
        r["arm"]: [{k: p[k] for k in ("accuracy", "loss", "macro_f1")} for p in r["curve"]]
        for r in outcome.summary["runs"]
    }
    assert found.keys() == expected.keys()
    for arm, curve in expected.items():
        assert len(found[arm]) == len(curve) == 4
        for point, wanted in zip(found[arm], curve, strict=True):
            assert point["accuracy"] == pytest.approx(wanted["accuracy"], abs=1.01 / 360)
            assert point["loss"] == pytest.approx(wanted["loss"], rel=3e-2)
