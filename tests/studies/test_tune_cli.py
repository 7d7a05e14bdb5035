"""``fedkd tune`` from the command line: killed and begun again, its files, its refusals."""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from fedkd.config import Study
from fedkd.config.study_file import load_study
from fedkd.engines.base import Task
from fedkd.engines.inline import InlineEngine
from fedkd.federation.federation import Federation
from fedkd.federation.simulated_teachers import SimulatedTeachers
from fedkd.models.build import build_model
from fedkd.report.page import render_page
from fedkd.report.progress import StudyProgress
from fedkd.report.terminal import render
from fedkd.report.tuned import tuning_lines
from fedkd.results.folder import Results
from fedkd.results.record import RunRecord
from fedkd.runner.run import run_study
from fedkd.runner.trial import NullObserver, evaluated_on_validation
from fedkd.training.compute import intra_op_threads
from fedkd.training.evaluate import evaluate

PATIENCE = 400.0
"""Seconds in which a killed search must have ended some trials; never reached when all is well."""


@pytest.fixture
def write_study(tmp_path: Path, make_data: Any, few_epochs: None) -> Callable[..., str]:
    """Return a function that writes the tiny study, with changes, and gives its path."""

    def write(changes: dict[str, Any] | None = None) -> str:
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(make_data(changes), sort_keys=False))
        return str(path)

    return write


def ended(path: Path) -> dict[int, str]:
    """Read the trials that have ended, with when they began, past Optuna."""
    if not path.exists():
        return {}
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        try:
            rows = database.execute(
                "SELECT number, datetime_start FROM trials WHERE state IN ('COMPLETE', 'PRUNED')"
            ).fetchall()
        except sqlite3.OperationalError:
            return {}  # its tables are being made
    return dict(rows)


def test_killed_in_the_middle_it_repeats_no_finished_trial(
    start: Any, write_study: Any, tmp_path: Path, cache_dir: Path
) -> None:
    study = write_study({"arms/fedkd/consolidation/epochs": 20})
    command = ["tune", study, "--search", "grid", "--seeds", "100", "--json"]
    database = tmp_path / "runs" / "tiny" / "tune-fedkd.db"
    process = start(tmp_path, *command, cache=cache_dir)
    deadline = time.monotonic() + PATIENCE
    while len(ended(database)) < 3 and process.returncode is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    before = ended(database)
    assert 3 <= len(before) < 25
    again = start(tmp_path, *command, cache=cache_dir)
    printed, err = again.communicate()
    assert again.returncode == 0, err
    after = ended(database)
    assert {number: after[number] for number in before} == before, "a finished trial began anew"
    results = json.loads(printed)
    states = Counter(trial["state"] for trial in results["trials"])
    assert states["finished"] == 25
    assert states["killed"] <= 1
    points = [str(t["settings"]) for t in results["trials"] if t["state"] == "finished"]
    assert len(set(points)) == 25, "a point of the grid was tried twice"


def test_the_winner_is_a_study_that_runs(fedkd: Any, write_study: Any, tmp_path: Path) -> None:
    study = write_study({"arms/fedkd/consolidation/epochs": 3})
    code, out, err = fedkd("tune", study, "--trials", "3", "--seeds", "100", "--out", "here")
    assert (code, err) == (0, "")
    assert "0 (own)" in out
    assert "mean accuracy on the labelled validation data" in out
    tuned = Path("here/tiny/tuned.yaml")
    assert str(tuned) in out
    results = json.loads(Path("here/tiny/tune-fedkd.json").read_text())
    assert results["seeds"] == [100]
    assert len(results["trials"]) == 3
    assert results["interrupted"] is False
    code, out, _ = fedkd("compare", str(tuned), "--json", "--out", "there")
    assert code == 0
    resolved = json.loads(out)["resolved"]["arms"]["fedkd"]["consolidation"]
    assert resolved == results["consolidation"]


def test_the_proxy_says_how_well_it_agrees(fedkd: Any, write_study: Any) -> None:
    study = write_study({"arms/fedkd/consolidation": {"weighting": "equal", "epochs": 3}})
    code, out, _ = fedkd("tune", study, "--trials", "4", "--proxy", "--json")
    assert code == 0
    results = json.loads(out)
    assert results["judge"] == "committee"
    assert results["agreement"]["trials"] == 4
    assert results["agreement"]["regret"] >= 0
    code, out, _ = fedkd("tune", study, "--trials", "4", "--proxy")
    assert code == 0
    assert "rank correlation (Spearman)" in out
    assert "if all label-free weightings of the teachers" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--arm", "fedavg"], "fedavg does not consolidate"),
        (["--search", "random"], "'random' is not a valid search: give tpe or grid"),
        (["--seeds", "x"], "'x' is not a list of integers such as 0,1,2"),
        (["--set", "data.validation=0", "--set", "data.transfer.size=20"], "too few to hold out"),
        (["--arms", "fedavgg"], "no arm is named 'fedavgg' (did you mean 'fedavg'?)"),
        (["--arms", "all", "--arm", "fedkd"], "leave out --arm, --search and --proxy"),
        (["--arms", "all", "--seeds", "0,100"], "--seeds: 0 is a seed of the study"),
        (["--arm", "fedkd", "--seeds", "0"], "--seeds: 0 is a seed of the study"),
        (["--arms", "all", "--set", "data.validation=0"], "data.validation: is 0"),
    ],
)
def test_the_impossible_is_refused_in_a_sentence(
    arguments: list[str], sentence: str, fedkd: Any, write_study: Any
) -> None:
    code, out, err = fedkd("tune", write_study(), *arguments)
    assert (code, out) == (2, "")
    assert sentence in err
    assert "Traceback" not in err
    assert not list(Path().glob("runs/*/tuned.yaml"))


def test_ctrl_c_keeps_what_was_found(
    fedkd: Any, write_study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = SimulatedTeachers.consolidate
    calls = []

    def impatient(self: SimulatedTeachers, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return honest(self, *arguments, **options)

    monkeypatch.setattr(SimulatedTeachers, "consolidate", impatient)
    study = write_study({"arms/fedkd/consolidation/epochs": 2})
    code, _, err = fedkd("tune", study, "--trials", "4")
    assert code == 130
    assert "Interrupted. The same command resumes" in err
    code, out, _ = fedkd("tune", study, "--trials", "4", "--json")
    assert code == 0
    states = [trial["state"] for trial in json.loads(out)["trials"]]
    assert states.count("finished") + states.count("pruned") == 4
    assert states.count("killed") == 1


def test_what_is_tuned_is_what_compare_runs(
    make_study: Any, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    """Round 0 of the engine's run, and its notes, are those of the student that was scored."""
    study: Study = make_study({"engine/server_threads": 2, "arms/fedkd/consolidation/epochs": 3})
    quiet = StudyProgress(Console(quiet=True), 1)
    run = next(
        run
        for run in run_study(study, out=tmp_path, fresh=True, progress=quiet).summary["runs"]
        if run["arm"] == "fedkd"
    )
    federation = Federation.load(study, 0, Path(os.environ["FEDKD_CACHE_DIR"]))
    with intra_op_threads(2):
        room = SimulatedTeachers(federation, "fedkd")
        learnt = room.consolidate(room.own)
        model = build_model("mlp", federation.shape, seed=0)
        model.load_state_dict(learnt.state)
        found = evaluate(model, federation.split.test, compute=federation.compute)
    assert run["curve"][0]["accuracy"] == found.accuracy
    assert run["curve"][0]["loss"] == found.loss
    assert {key: run["notes"][key] for key in learnt.notes} == learnt.notes


def test_every_arm_is_tuned_and_the_tuned_study_says_so(
    fedkd: Any, write_study: Any, pool: ThreadPoolExecutor
) -> None:
    """On real runs: the first trial's curve is the one that compare has on validation data."""
    study = write_study(
        {"rounds": {"max": 3, "lr": 0.05}, "targets": [0.3, 0.6], "engine/server_threads": 1}
    )
    code, out, err = fedkd("tune", study, "--arms", "all", "--trials", "3", "--seeds", "100")
    assert code == 0, err
    assert "to 60.0% on validation data, summed over seeds 100" in out
    results = json.loads(Path("runs/tiny/tuning.json").read_text())
    assert list(results["arms"]) == ["fedavg", "fedkd"]
    assert {len(arm["trials"]) for arm in results["arms"].values()} == {3}
    for arm, found in results["arms"].items():
        assert found["own"]["accuracy"]["100"] == best_on_validation(study, arm, pool)
    tuned = load_study(Path("runs/tiny/tuned.yaml"))
    own = tuned.arms["fedavg"].tuned
    assert own is not None
    assert (own.trials, own.seeds) == (3, [100])
    best = results["arms"]["fedavg"]["best"]["settings"]
    assert tuned.rounds_of("fedavg").lr == best["rounds.lr"]
    assert tuned.rounds_of("fedavg").batch_size == best["rounds.batch_size"]

    code, again, _ = fedkd("tune", study, "--arms", "all", "--trials", "3", "--seeds", "100")
    assert (code, again) == (0, out), "a finished search gives the same"

    code, out, _ = fedkd("compare", "runs/tiny/tuned.yaml", "--out", "there")
    assert code == 0
    assert "Tuned on validation data with 3 trials, seeds 100: fedavg, fedkd." in out
    assert "Warning" not in out
    summary = Path(next(iter(Path("there/tiny").glob("*/summary.json"))))
    arms = json.loads(summary.read_text())["resolved"]["arms"]
    assert arms["fedkd"]["tuned"]["seeds"] == [100]
    code, _, err = fedkd("compare", "runs/tiny/tuned.yaml", "--seeds", "0,100")
    assert code == 2
    assert "arms.fedavg.tuned.seeds: the arm was tuned on seed 100" in err


def best_on_validation(path: str, arm: str, pool: ThreadPoolExecutor) -> float:
    """Return an arm's best accuracy up to the target, by an undisturbed run."""
    study = load_study(Path(path))
    federation = Federation.load(study, 100, Path(os.environ["FEDKD_CACHE_DIR"]))
    folder = Path("by-hand") / arm
    with InlineEngine(pool) as engine:
        task = Task(evaluated_on_validation(federation), arm, (0.6,), folder)
        engine.run(task, NullObserver())
    record = RunRecord.read(folder)
    reached = record.reached(0.6)
    points = record.curve if reached is None else record.curve[: reached + 1]
    return max(point.accuracy for point in points)


def test_an_arm_that_was_tuned_against_a_baseline_that_was_not_is_a_warning(
    make_summary: Any,
) -> None:
    tuned = {"trials": 16, "seeds": [100, 101], "at_edge": ["rounds.lr"]}
    curves = {"fedavg": [[0.1, 0.2, 0.6]], "fedkd": [[0.2, 0.7]]}
    plain = make_summary(curves)
    assert tuning_lines(plain) == []
    summary = make_summary(curves, changes={"resolved/arms/fedkd/tuned": tuned})
    lines = tuning_lines(summary)
    assert lines[0] == "Tuned on validation data with 16 trials, seeds 100, 101: fedkd."
    assert "Warning: the baseline fedavg was not tuned, unlike fedkd" in lines[1]
    assert "fedkd: the best value of rounds.lr lies at the edge" in lines[2]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render(summary))
    text = console.export_text()
    assert lines[1] in " ".join(text.split())
    assert "trials" in text
    page = render_page([Results(summary, "tiny")])
    assert all(line in page for line in lines)
    assert lines[0] not in render_page([Results(plain, "tiny")])
    both = {f"resolved/arms/{arm}/tuned": tuned for arm in curves}
    assert not any("Warning" in line for line in tuning_lines(make_summary(curves, changes=both)))


def test_ctrl_c_keeps_the_trials_of_arms(
    fedkd: Any, write_study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = InlineEngine.run
    runs = []

    def impatient(self: InlineEngine, task: Task, observer: Any) -> None:
        runs.append(task.arm)
        if len(runs) == 4:
            raise KeyboardInterrupt
        honest(self, task, observer)

    monkeypatch.setattr(InlineEngine, "run", impatient)
    study = write_study({"rounds/max": 1})
    command = ("tune", study, "--arms", "fedavg,fedkd", "--trials", "2", "--seeds", "100")
    code, _, err = fedkd(*command)
    assert code == 130
    assert "Interrupted. The same command resumes" in err
    assert not Path("runs/tiny/tuned.yaml").exists()
    code, out, _ = fedkd(*command, "--json")
    assert code == 0
    assert len(runs) in (5, 6), "the interrupted trial ran again, and one beside it at most"
    assert {len(arm["trials"]) for arm in json.loads(out)["arms"].values()} == {2}
