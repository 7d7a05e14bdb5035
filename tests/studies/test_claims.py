"""The page of claims is what the records say, and they are of the studies that stand here."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from experiments.paper.__main__ import run_in_parallel
from experiments.paper.claims import write_results
from experiments.paper.plan import FOLDER, Run, plan
from experiments.paper.recommendation import OUT, fit_and_evaluate
from experiments.paper.record import is_recorded
from fedkd.config.study_file import load_study


def test_the_page_is_rebuilt_from_the_records(tmp_path: Path) -> None:
    write_results(tmp_path / "RESULTS.md")
    built = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert built == (FOLDER / "RESULTS.md").read_text(encoding="utf-8")


def test_the_shipped_tree_is_fitted_on_the_records() -> None:
    assert json.loads(OUT.read_text(encoding="utf-8")) == json.loads(json.dumps(fit_and_evaluate()))


def test_every_variant_of_the_plan_is_a_valid_study() -> None:
    for run in plan():
        load_study(run.path, run.overrides)


def test_no_record_is_of_another_study_than_stands_here() -> None:
    kept = set((FOLDER / "results").glob("*.json"))
    assert kept == {run.record for run in plan() if is_recorded(run)}


def test_a_run_that_fails_is_told_and_ends_no_other() -> None:
    runs = [Run("no-such-study", (name,)) for name in "ab"]
    found = dict(run_in_parallel(runs, at_once=2))
    assert set(found) == set(runs)
    assert all("no-such-study.yaml" in str(said) for said in found.values())


class Killed(Run):
    """A run whose process the system ends, as it does where memory is short."""

    @property
    def path(self) -> Path:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


def test_a_run_whose_process_is_killed_is_told_and_ends_no_other() -> None:
    runs = [Run("no-such-study", ("a",)), Killed("killed", ("b",))]
    found = dict(run_in_parallel(runs, at_once=1))
    assert "exit code -9" in str(found[runs[1]])
    assert "no-such-study.yaml" in str(found[runs[0]])
