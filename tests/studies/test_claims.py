"""The page of claims is what the records say, and they are of the studies that stand here."""

from __future__ import annotations

import json
import os
import signal
from multiprocessing.context import BaseContext
from pathlib import Path

import pytest

from experiments.paper.__main__ import run_in_parallel
from experiments.paper.claims import write_results
from experiments.paper.plan import FOLDER, SOURCES, TUNED, Run, plan
from experiments.paper.recommendation import OUT, fit_and_evaluate
from experiments.paper.record import fingerprint, is_recorded
from experiments.paper.rounds import _Saving
from experiments.paper.tuned import TRIALS
from fedkd.config.study_file import load_study
from fedkd.federation.split import SPLIT_RULE
from fedkd.tuning.seeds import SEEDS


def test_the_page_is_rebuilt_from_the_records(tmp_path: Path) -> None:
    write_results(tmp_path / "RESULTS.md")
    built = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert built == (FOLDER / "RESULTS.md").read_text(encoding="utf-8")


def test_the_shipped_tree_is_fitted_on_the_records() -> None:
    assert json.loads(OUT.read_text(encoding="utf-8")) == json.loads(json.dumps(fit_and_evaluate()))


def test_every_variant_of_the_plan_is_a_valid_study() -> None:
    for run in plan():
        load_study(run.path, run.overrides)


def test_every_record_is_of_a_run_of_the_plan() -> None:
    assert set((FOLDER / "results").glob("*.json")) == {run.record for run in plan()}


def test_a_record_of_another_split_rule_is_not_of_this_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "record", property(lambda self: tmp_path / f"{self.study}.json"))
    run = next(iter(plan()))
    run.record.write_text(json.dumps({"study": fingerprint(run)}))
    assert is_recorded(run)
    monkeypatch.setattr("experiments.paper.record.SPLIT_RULE", SPLIT_RULE - 1)
    assert not is_recorded(run)


def test_the_page_says_which_records_are_not_of_this_code() -> None:
    outdated = sum(not is_recorded(run) for run in plan())
    said = f"Not of this version: {outdated} records, made by fedkd 0.1.0"
    assert (said in (FOLDER / "RESULTS.md").read_text(encoding="utf-8")) == (outdated > 0)


@pytest.mark.parametrize(
    ("arm_missed", "baseline_missed", "said"),
    [
        (False, False, "75.0 %"),
        (True, False, "at most 75.0 %"),
        (False, True, "at least 75.0 %"),
        (True, True, "not known (both missed a target)"),
    ],
)
def test_a_sum_with_a_run_that_missed_is_a_bound(
    arm_missed: bool, baseline_missed: bool, said: str
) -> None:
    saving = _Saving.of(5, 20, arm_missed=arm_missed, baseline_missed=baseline_missed)
    assert str(saving) == said


def test_a_tuned_study_is_its_source_with_other_settings_of_its_arms() -> None:
    for federation in TUNED:
        source = load_study(SOURCES[federation.data], federation.overrides)
        tuned = load_study(federation.tuned)
        assert tuned.model_copy(update={"arms": source.arms}) == source
        assert tuned.arms.keys() == source.arms.keys()
        search = {(arm.tuned.trials, *arm.tuned.seeds) for arm in tuned.arms.values() if arm.tuned}
        assert search == {(TRIALS, *SEEDS)}
        assert all(arm.tuned for arm in tuned.arms.values())


class Killed(Run):
    """A run whose process the system ends, as it does where memory is short."""

    @property
    def path(self) -> Path:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_run_that_fails_or_is_killed_is_told_and_ends_no_other(
    at_once: int, forks: BaseContext
) -> None:
    runs = [Run("no-such-study", ("a",)), Killed("killed", ("b",)), Run("no-such-study", ("c",))]
    found = dict(run_in_parallel(runs, at_once))
    assert set(found) == set(runs)
    assert "exit code -9" in str(found[runs[1]])
    assert all("no-such-study.yaml" in str(found[run]) for run in (runs[0], runs[2]))
