"""Passing runs on to trackers: nothing is lost, and no tracker can end a study."""

from __future__ import annotations

import builtins
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedkd.errors import FedKDError, UserError
from fedkd.report.progress import StudyProgress
from fedkd.results.record import Point, RunRecord
from fedkd.runner.run import run_study
from fedkd.trackers import make_trackers
from fedkd.trackers.base import final_figures
from fedkd.trackers.tracking import Tracking


def point(number: int, accuracy: float, loss: float | None = 1.0) -> Point:
    return Point(number, accuracy, loss, 10, 20, 0.5, 3, 0, accuracy / 2)


RECORD = RunRecord(
    arm="fedavg",
    seed=0,
    engine="inline",
    curve=(point(0, 0.1), point(1, 0.5), point(2, 0.4)),
    stopped="budget",
    exchanges_before_round_1=0,
    max_rounds=2,
    targets=(0.3, 0.99),
)


class Remembering:
    """A tracker that keeps what it is told, and raises where it is asked to."""

    def __init__(self, raises: str = "") -> None:
        self.raises = raises
        self.told: list[Any] = []

    def note(self, call: str, *what: Any) -> None:
        if call == self.raises:
            raise OSError(f"no space left to {call}\nwith details")
        self.told.append((call, *what))

    def begin(self, run: Any) -> Any:
        self.note("begin", run.name)
        return self

    def log(self, logged: Point) -> None:
        self.note("log", logged.round)

    def end(self, figures: dict[str, float], *, status: str) -> None:
        self.note("end", status)

    def close(self) -> None:
        self.note("close")


class Deaf:
    def on_point(self, _: Point) -> None:
        pass

    def on_distillation(self, epoch: int, epochs: int) -> None:
        pass


@pytest.fixture
def track(make_study: Any, tmp_path: Path) -> Callable[..., Any]:
    def track(*trackers: Remembering) -> tuple[Tracking, list[str]]:
        warnings: list[str] = []
        return Tracking(trackers, make_study(), tmp_path, warnings.append), warnings

    return track


WHOLE = [
    ("begin", "fedavg-seed-0"),
    ("log", 0),
    ("log", 1),
    ("log", 2),
    ("end", "budget"),
    ("close",),
]


@pytest.mark.parametrize("announced", [0, 1, 3])
def test_every_point_is_told_once_whether_the_engine_announced_it_or_not(
    announced: int, track: Any
) -> None:
    tracker = Remembering()
    tracking, warnings = track(tracker)
    with tracking:
        observer = tracking.watch("fedavg", 0, Deaf())
        for each in RECORD.curve[:announced]:
            observer.on_point(each)
        tracking.finish(RECORD)
    assert tracker.told == WHOLE
    assert not warnings


@pytest.mark.parametrize("call", ["begin", "log", "end", "close"])
def test_a_tracker_that_fails_is_told_once_and_the_others_go_on(call: str, track: Any) -> None:
    failing, sound = Remembering(call), Remembering()
    tracking, warnings = track(failing, sound)
    with tracking:
        tracking.finish(RECORD)
        tracking.finish(replace(RECORD, seed=1))
    (warning,) = warnings
    assert re.fullmatch(
        f"Remembering is left out from here on: OSError: no space left to {call} with details "
        r"\(test_tracking.py, line \d+\)",
        warning,
    )
    assert [told for told in sound.told if told[-1] != "fedavg-seed-1"][:5] == WHOLE[:5]
    assert len(sound.told) == 11


def test_a_run_that_fails_half_way_is_closed_as_failed(track: Any) -> None:
    tracker = Remembering()
    tracking, _ = track(tracker)
    with tracking:
        tracking.watch("fedavg", 0, Deaf()).on_point(RECORD.curve[0])
        tracking.fail("fedavg", 0)
        tracking.fail("never-begun", 0)
        tracking.watch("fedkd", 0, Deaf()).on_point(RECORD.curve[0])
    assert [told for told in tracker.told if told[0] == "end"] == [("end", "failed")] * 2


def test_final_figures_name_targets_as_the_study_does(make_study: Any) -> None:
    study = make_study({"targets": {"of_baseline_best": [0.6, 1.0]}})
    assert final_figures(study, RECORD) == {
        "best_accuracy": 0.5,
        "final_accuracy": 0.4,
        "exchanges_to_0.6": 1,
        "bytes_to_0.6": 60,
        "seconds_to_0.6": 1.0,
    }


def test_an_unknown_tracker_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="did you mean 'tensorboard'"):
        make_trackers(["tensorbord"])


OWN = """
from pathlib import Path


class Lines:
    def begin(self, run):
        self.file = (run.folder.parent / f"{run.name}.txt").open("w")
        return self

    def log(self, point):
        print(point.round, point.accuracy, file=self.file)

    def end(self, figures, *, status):
        print(status, figures["best_accuracy"], file=self.file)
        self.file.close()

    def close(self):
        pass


class Half:
    def begin(self, run):
        pass


class Broken(Lines):
    def __init__(self):
        self.missing
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_trackers.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_trackers", raising=False)
    return "own_trackers"


def test_a_tracker_of_ones_own_logs_every_run(
    own_module: str, make_study: Any, tmp_path: Path
) -> None:
    progress = StudyProgress(Console(quiet=True), 2)
    out, track = tmp_path / "runs", [f"{own_module}:Lines"]
    outcome = run_study(make_study(), out=out, fresh=False, progress=progress, track=track)
    for run in outcome.summary["runs"]:
        log = (outcome.folder.parent / f"{run['arm']}-seed-0.txt").read_text().splitlines()
        points = [f"{point['round']} {point['accuracy']}" for point in run["curve"]]
        best = max(point["accuracy"] for point in run["curve"])
        assert log == [*points, f"{run['stopped']} {best}"]


@pytest.mark.parametrize(
    ("name", "refusal"),
    [
        ("Missing", "tracker own_trackers:Missing cannot be imported: module 'own_trackers' has"),
        ("Half", "--track own_trackers:Half: Half has no method close"),
        ("Broken", r"tracker own_trackers:Broken raised AttributeError: .*own_trackers.py, line"),
    ],
)
def test_what_is_not_a_tracker_is_refused(own_module: str, name: str, refusal: str) -> None:
    with pytest.raises(UserError, match=refusal):
        make_trackers([f"{own_module}:{name}"])


@pytest.mark.parametrize(
    ("name", "package"),
    [("tensorboard", "tensorboard"), ("mlflow", "mlflow"), ("wandb", "wandb")],
)
def test_a_missing_package_is_refused_before_anything_is_written(
    name: str,
    package: str,
    make_study: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = builtins.__import__

    def without(wanted: str, *arguments: Any, **more: Any) -> Any:
        if wanted.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(wanted, *arguments, **more)

    forgotten = (package, f"fedkd.trackers.{name}", "torch.utils.tensorboard")
    for loaded in list(sys.modules):
        if loaded.startswith(forgotten):
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setattr(builtins, "__import__", without)
    study = make_study()
    progress = StudyProgress(Console(quiet=True), 2)
    with pytest.raises(UserError, match=rf"pip install .*'{package}[^']*>="):
        run_study(study, out=tmp_path / "runs", fresh=False, progress=progress, track=[name])
    assert not (tmp_path / "runs").exists()


def test_a_study_is_the_same_whoever_watches(
    make_study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Remembering()
    monkeypatch.setattr("fedkd.runner.run.make_trackers", lambda _: [tracker])
    study = make_study({"rounds/max": 1})
    curves = []
    for fresh in (True, False):
        progress = StudyProgress(Console(quiet=True), 2)
        outcome = run_study(study, out=tmp_path, fresh=fresh, progress=progress, track=["x"])
        curves.append(json.dumps([run["curve"] for run in outcome.summary["runs"]]))
    assert curves[0] == curves[1]
    # The second time both runs come from the cache, and are told all the same.
    one_study = [
        *(("begin", "fedavg-seed-0"), ("log", 0), ("log", 1), ("end", "budget")),
        *(("begin", "fedkd-seed-0"), ("log", 0), ("log", 1), ("end", "budget")),
        ("close",),
    ]
    assert tracker.told == one_study * 2


def test_a_failed_arm_ends_its_run_at_the_trackers(
    make_study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Remembering()
    monkeypatch.setattr("fedkd.runner.run.make_trackers", lambda _: [tracker])

    def failing(self: Any, task: Any, observer: Any) -> None:
        observer.on_point(point(0, 0.1))
        raise FedKDError("it broke")

    monkeypatch.setattr("fedkd.engines.inline.InlineEngine.run", failing)
    progress = StudyProgress(Console(quiet=True), 2)
    outcome = run_study(
        make_study(), out=tmp_path, fresh=True, progress=progress, track=["anything"]
    )
    assert [failure["reason"] for failure in outcome.summary["failures"]] == ["it broke"] * 2
    assert [told[1] for told in tracker.told if told[0] == "end"] == ["failed", "failed"]
