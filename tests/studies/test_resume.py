"""Studies that are killed at any moment go on to the results of undisturbed ones."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from safetensors.torch import load_file

import fedkd
from fedkd.config.study_file import load_study, parse_study
from fedkd.errors import FedKDError, UserError
from fedkd.report.progress import StudyProgress
from fedkd.report.verdict import judge
from fedkd.results.folder import Results
from fedkd.results.record import Point
from fedkd.runner.run import Outcome, resume_study, run_study
from fedkd.util.lock import LOCK_FILE, lock_folder
from fedkd.util.safetensors_header import find_checkpoint_problem
from strategies.fedavg import SiloFedAvg

ROUNDS = 20
PATIENCE = 400

LONG = {
    "rounds/max": ROUNDS,
    "rounds/fraction": 0.67,
    "arms": {
        "fedavg": {"start": "random", "strategy": "fedadam"},
        "fedkd": {
            "start": "consolidated",
            "strategy": "fedavgm",
            "server": {"momentum": 0.5},
            "consolidation": {"weighting": "familiarity", "epochs": 5},
        },
    },
}


def settled(summary: dict[str, Any]) -> dict[str, Any]:
    """Return a summary without what the clock says."""
    summary = copy.deepcopy(summary)
    for run in summary["runs"]:
        for entry in (*run["curve"], *run["targets"]):
            entry["seconds"] = None
    for row in summary["comparison"]:
        row["seconds_saved_pct"] = None
    return summary


def assert_all_readable(folder: Path) -> None:
    """No file bears its final name before it is whole; a curve alone may end in half a line."""
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())
    for path in folder.rglob("*.safetensors"):
        assert find_checkpoint_problem(path) is None
        load_file(path)
    for path in folder.rglob("rounds.jsonl"):
        for line in path.read_text().splitlines(keepends=True):
            assert not line.endswith("\n") or Point(**json.loads(line)).round >= 0


@dataclass
class Victim:
    """A study in a process of its own, which can be killed and resumed."""

    begin: Callable[..., Any]
    place: Path
    study: dict[str, Any]
    engine: str = "inline"
    kills: int = 0
    printed: list[str] = field(default_factory=list)

    def start(self) -> Any:
        if self.folder is None:
            (self.place / "study.yaml").write_text(yaml.safe_dump(self.study, sort_keys=False))
            what = ["study.yaml", "--fresh", "--engine", self.engine, "--out", "out"]
        else:
            what = ["--resume", str(self.folder)]
        return self.begin(self.place, "compare", *what, cache=self.place / "cache")

    @property
    def folder(self) -> Path | None:
        return next(self.place.glob("out/*/[0-9]*"), None)

    def num_points(self) -> int:
        # Not in the cache, whose entries are renamed while somebody looks.
        found = self.place.glob("out/*/[0-9]*/*/seed-*/rounds.jsonl")
        return sum(path.read_bytes().count(b"\n") for path in found)

    def start_and_wait(self, points: int) -> Any:
        """Start or resume the study, and wait until the folder holds so many points."""
        process = self.start()
        deadline = time.monotonic() + PATIENCE
        while self.folder is None or self.num_points() < points:
            assert process.returncode is None, process.communicate()
            assert time.monotonic() < deadline, "the study does not get on"
            time.sleep(0.005)
        return process

    def kill_after(self, points: int, pause: float) -> None:
        """Kill the study a moment after the folder holds so many points."""
        process = self.start_and_wait(points)
        time.sleep(pause)
        process.kill()
        process.communicate()
        self.kills += 1
        assert self.folder is not None
        assert_all_readable(self.folder)

    def finish(self) -> dict[str, Any]:
        process = self.start()
        printed = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, printed
        assert self.folder is not None
        left = {path.name for path in self.folder.rglob("*") if path.is_file()}
        assert left == {
            *("study.yaml", "beginning.json", "summary.json", "report.html"),
            *("rounds.jsonl", "checkpoint.safetensors", "state.json", LOCK_FILE),
            "progress.safetensors",
        }
        read: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return read


def quiet() -> StudyProgress:
    return StudyProgress(Console(quiet=True), 2)


class Disturbed(StudyProgress):
    """Does something when an arm has come to a round; by default presses Ctrl-C."""

    def __init__(self, arm: str, after: int, what: Callable[[], Any] | None = None) -> None:
        super().__init__(Console(quiet=True), 2)
        self._at, self._what = (arm, after), what
        self.computed: list[tuple[str, int]] = []

    @contextmanager
    def run(self, arm: str, seed: int, rounds: int, targets: Any) -> Iterator[Any]:
        with super().run(arm, seed, rounds, targets) as bar:
            on_point = bar.on_point

            def watch(point: Any) -> None:
                on_point(point)
                if (arm, point.round) == self._at:
                    if self._what is None:
                        raise KeyboardInterrupt
                    self._what()

            bar.on_point = watch
            yield bar


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, make_cache: Any
) -> Callable[[dict[str, Any]], Outcome]:
    """Return a function that runs a study in this process, from its beginning to its end.

    Each study runs once.
    """
    folder = tmp_path_factory.mktemp("undisturbed")
    cache = make_cache(folder / "cache")

    @lru_cache
    def run(text: str) -> Outcome:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FEDKD_CACHE_DIR", str(cache))
            return run_study(parse_study(text), out=folder, fresh=True, progress=quiet())

    return lambda data: run(yaml.safe_dump(data, sort_keys=False))


@pytest.fixture(scope="module")
def interrupted(
    tmp_path_factory: pytest.TempPathFactory, make_cache: Any
) -> Callable[[str, str, int], Path]:
    """Return a function that interrupts a study in this process, once.

    It returns a folder, which holds the results and a cache.
    """

    @lru_cache
    def run(text: str, arm: str, after: int) -> Path:
        folder = tmp_path_factory.mktemp("interrupted")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FEDKD_CACHE_DIR", str(make_cache(folder / "cache")))
            progress = Disturbed(arm, after)
            study = parse_study(text)
            outcome = run_study(study, out=folder / "out", fresh=True, progress=progress)
        assert outcome.interrupted
        return folder

    return run


@pytest.fixture
def disturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: Any
) -> Callable[[dict[str, Any], str, int], Path]:
    """Return a function that gives a copy of the folder of a study that was interrupted."""

    def copy_of(data: dict[str, Any], arm: str, after: int) -> Path:
        first = interrupted(yaml.safe_dump(data, sort_keys=False), arm, after)
        own = shutil.copytree(first, tmp_path / "disturbed", symlinks=True)
        monkeypatch.setenv("FEDKD_CACHE_DIR", str(own / "cache"))
        (folder,) = own.glob("out/*/[0-9]*")
        return folder

    return copy_of


def assert_same_results(folder: Path, summary: dict[str, Any], expected: Outcome) -> None:
    assert settled(summary) == settled(expected.summary)
    assert judge(Results(summary, "x")).sentence == judge(Results(expected.summary, "x")).sentence
    for path in expected.folder.rglob("checkpoint.safetensors"):
        found = folder / path.relative_to(expected.folder)
        assert found.read_bytes() == path.read_bytes()


def kill_often(victim: Victim, kills: int, seed: int) -> None:
    total = len(victim.study["arms"]) * (ROUNDS + 1)
    chance = random.Random(seed)
    for points in sorted(chance.sample(range(total), kills)):
        # A place of its own for each kill: no later kill may wait for what is there already.
        victim.kill_after(max(points, victim.num_points() + 1), chance.uniform(0, 0.05))


def test_a_study_that_is_killed_again_and_again_ends_as_if_undisturbed(
    start: Any, tmp_path: Path, make_data: Any, undisturbed: Any
) -> None:
    victim = Victim(start, tmp_path / "victim", make_data(LONG))
    victim.place.mkdir()
    victim.kill_after(0, 0.0)
    kill_often(victim, 2, seed=7)
    summary = victim.finish()
    assert victim.kills == 3
    assert victim.folder is not None
    assert_same_results(victim.folder, summary, undisturbed(victim.study))


@pytest.mark.slow
def test_twenty_kills(start: Any, tmp_path: Path, make_data: Any, undisturbed: Any) -> None:
    victim = Victim(start, tmp_path / "victim", make_data(LONG))
    victim.place.mkdir()
    kill_often(victim, 20, seed=11)
    summary = victim.finish()
    assert victim.kills == 20
    assert victim.folder is not None
    assert_same_results(victim.folder, summary, undisturbed(victim.study))


# In this process: every kind of state that a run carries from round to round.

STARTS: dict[str, dict[str, Any]] = {
    "random": {"start": "random"},
    "average": {"start": "average"},
    "consolidated": {"start": "consolidated", "consolidation": {"epochs": 2}},
    "logits": {
        "start": "consolidated",
        "consolidation": {
            "weighting": "familiarity",
            "mode": "logits",
            "student": "fresh",
            "epochs": 2,
        },
    },
}


@pytest.mark.parametrize(
    ("start", "strategy"), zip(STARTS, ["fedavg", "fedavgm", "fedadam", "feddf"], strict=True)
)
def test_any_start_and_strategy_goes_on_to_the_same_bits(
    start: str, strategy: str, make_data: Any, undisturbed: Any, disturbed: Any
) -> None:
    """Neither knows of the other: each is in one pair."""
    arms = {"fedkd-it" if start in ("consolidated", "logits") else "it": STARTS[start]}
    (arm,) = arms
    arms[arm] = {**arms[arm], "strategy": strategy}
    data = make_data({"rounds/max": 3, "arms": arms, "baselines": []})
    folder = disturbed(data, arm, 2)
    resumed = resume_study(folder, progress=quiet())
    assert not resumed.interrupted
    assert_same_results(folder, resumed.summary, undisturbed(data))


def test_relative_targets_go_on_with_those_of_the_baseline(
    make_data: Any, undisturbed: Any, disturbed: Any
) -> None:
    changes = {"targets": {"of_baseline_best": [0.5, 1.0]}, "rounds/stop": "targets"}
    data = make_data({**changes, "rounds/max": 4})
    folder = disturbed(data, "fedkd", 0)
    expected = undisturbed(data)
    # Killed between the end of the baseline's run and the naming of its targets.
    state = folder / "fedavg/seed-0/state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "targets": []}))
    assert_same_results(folder, resume_study(folder, progress=quiet()).summary, expected)


def test_relative_targets_are_those_of_the_whole_curve_of_the_baseline(
    make_data: Any, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The baseline lacks silos after a round; its best accuracy until then is no measure."""
    changes = {"targets": {"of_baseline_best": [0.9, 1.0]}, "rounds/stop": "targets"}
    data = make_data({**changes, "rounds/max": 4})
    expected = undisturbed(data)
    answer, rounds = SiloFedAvg._train, [1]

    def lacking(self: SiloFedAvg, *arguments: Any) -> Any:
        if self.context.arm_name == "fedavg" and len(self.state.curve) > rounds[0]:
            return []
        return answer(self, *arguments)

    monkeypatch.setattr(SiloFedAvg, "_train", lacking)
    study = parse_study(yaml.safe_dump(data, sort_keys=False))
    first = run_study(study, out=tmp_path / "out", fresh=True, progress=quiet())
    assert [run["stopped"] for run in first.summary["runs"]] == ["quorum"]
    (failure,) = first.summary["failures"]
    assert "depend on fedavg, which failed or stopped for want of silos" in failure["reason"]
    rounds[0] = 100
    resumed = resume_study(first.folder, progress=quiet())
    assert_same_results(first.folder, resumed.summary, expected)


def test_a_run_that_stopped_at_other_targets_is_computed_anew(
    make_data: Any, undisturbed: Any, disturbed: Any
) -> None:
    changes = {"targets": {"of_baseline_best": [0.5, 1.0]}, "rounds/stop": "targets"}
    data = make_data({**changes, "rounds/max": 4})
    expected = undisturbed(data)
    folder = disturbed(data, "fedkd", 0)
    resume_study(folder, progress=quiet())
    state = folder / "fedkd/seed-0/state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "targets": [0.1, 0.2]}))
    assert_same_results(folder, resume_study(folder, progress=quiet()).summary, expected)


def test_kept_runs_are_not_computed_again(make_data: Any, disturbed: Any) -> None:
    folder = disturbed(make_data({"rounds/max": 2}), "fedkd", 1)
    before = (folder / "fedavg/seed-0/rounds.jsonl").read_text()
    first = (folder / "fedkd/seed-0/rounds.jsonl").read_text()
    progress = Disturbed("fedavg", 0)
    outcome = resume_study(folder, progress=progress)
    assert not outcome.interrupted, "the baseline would have been interrupted"
    assert (folder / "fedavg/seed-0/rounds.jsonl").read_text() == before
    # With their seconds: whole rounds are not computed again either.
    assert (folder / "fedkd/seed-0/rounds.jsonl").read_text().startswith(first)
    again = resume_study(folder, progress=quiet())
    assert settled(again.summary) == settled(outcome.summary), "a study that has ended is kept"


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines[:-1],
        lambda lines: [*lines, lines[-1].replace('"round": 2', '"round": 3')],
        lambda lines: [*lines, lines[-1][:-40]],
        lambda lines: [],
        lambda lines: [lines[0].replace("accuracy", "accurary"), *lines[1:]],
    ],
    ids=["a line less", "a line ahead", "half a line", "none", "spoilt"],
)
def test_the_curve_on_disk_is_made_to_agree_with_the_save_point(
    damage: Any, make_data: Any, undisturbed: Any, disturbed: Any
) -> None:
    data = make_data({"rounds/max": 4})
    folder = disturbed(data, "fedkd", 2)
    run = folder / "fedkd/seed-0"
    (run / "state.json").unlink()  # as a kill leaves it
    lines = (run / "rounds.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 3
    (run / "rounds.jsonl").write_text("".join(damage(lines)))
    resumed = resume_study(folder, progress=quiet())
    assert_same_results(folder, resumed.summary, undisturbed(data))


def test_a_run_killed_before_its_first_point_begins_anew(
    make_data: Any, undisturbed: Any, disturbed: Any
) -> None:
    data = make_data({"rounds/max": 2})
    folder = disturbed(data, "fedavg", 1)
    run = folder / "fedavg/seed-0"
    for name in ("state.json", "progress.safetensors"):
        (run / name).unlink()
    (run / ".progress.safetensors.abc.part").write_bytes(b"half of it")
    resumed = resume_study(folder, progress=quiet())
    assert_same_results(folder, resumed.summary, undisturbed(data))
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"]


# A study that gets longer.


def finished(study: dict[str, Any], place: Path) -> Outcome:
    text = yaml.safe_dump(study, sort_keys=False)
    return run_study(parse_study(text), out=place, fresh=True, progress=quiet())


@pytest.mark.parametrize("stop", ["budget", "targets"])
def test_a_study_that_is_lengthened_ends_as_one_that_was_long_from_the_start(
    stop: str, make_data: Any, undisturbed: Any, tmp_path: Path
) -> None:
    """With a state of the server's optimiser, and cohorts."""
    data = make_data({**LONG, "rounds/stop": stop})
    data = {**data, "rounds": {**data["rounds"], "max": 4}, "targets": [0.2, 0.9999]}
    short = {**data, "rounds": {**data["rounds"], "max": 2}}
    first = finished(short, tmp_path)
    assert [len(run["curve"]) for run in first.summary["runs"]] == [3, 3]
    before = (first.folder / "fedkd/seed-0/rounds.jsonl").read_text()
    longer = resume_study(first.folder, progress=quiet(), rounds=4)
    assert longer.folder == first.folder
    assert [len(run["curve"]) for run in longer.summary["runs"]] == [5, 5]
    assert_same_results(first.folder, longer.summary, undisturbed(data))
    # With their seconds: no round is computed twice.
    assert (first.folder / "fedkd/seed-0/rounds.jsonl").read_text().startswith(before)
    assert load_study(first.folder / "study.yaml").rounds.max == 4


def test_a_run_at_its_targets_stays_and_an_interrupted_lengthening_resumes(
    make_data: Any, undisturbed: Any, tmp_path: Path
) -> None:
    changes = {"rounds/max": 5, "rounds/stop": "targets", "rounds/local_epochs": 5}
    data = make_data({**changes, "targets": [0.3]})
    data["arms"]["never"] = {"start": "random", "rounds": {"lr": 1e-6}}
    expected = undisturbed(data)
    rounds = {run["arm"]: len(run["curve"]) - 1 for run in expected.summary["runs"]}
    assert rounds["fedkd"] < 3 < rounds["never"] == 5, "the test needs an arm at its target"
    first = finished({**data, "rounds": {**data["rounds"], "max": 3}}, tmp_path)
    disturbance = Disturbed("never", 4)
    assert resume_study(first.folder, progress=disturbance, rounds=5).interrupted
    summary = resume_study(first.folder, progress=quiet()).summary
    assert_same_results(first.folder, summary, expected)
    again = resume_study(first.folder, progress=quiet(), rounds=5)
    assert settled(again.summary) == settled(summary), "so long it is already"


def test_other_arms_go_on_to_the_targets_of_a_longer_baseline(
    make_data: Any, undisturbed: Any, tmp_path: Path
) -> None:
    changes = {"targets": {"of_baseline_best": [0.5, 1.0]}, "rounds/stop": "targets"}
    data = make_data({**changes, "rounds/max": 4, "rounds/lr": 0.02})
    expected = undisturbed(data)
    first = finished({**data, "rounds": {**data["rounds"], "max": 2}}, tmp_path)
    one, two = (each.summary["runs"][1]["targets"] for each in (first, expected))
    assert one[1]["target"] < two[1]["target"]
    longer = resume_study(first.folder, progress=quiet(), rounds=4)
    assert_same_results(first.folder, longer.summary, expected)


def test_a_run_from_the_cache_goes_on_too(
    make_data: Any, make_cache: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it was computed in a study with another name and other arms."""
    monkeypatch.setenv("FEDKD_CACHE_DIR", str(make_cache(tmp_path / "cache")))
    both = make_data({"rounds/max": 2})
    alone = {**both, "name": "alone", "arms": {"fedavg": both["arms"]["fedavg"]}}
    for data in (alone, both):
        study = parse_study(yaml.safe_dump(data))
        outcome = run_study(study, out=tmp_path, fresh=False, progress=quiet())
    assert outcome.summary["runs"][0]["cached"]
    longer = resume_study(outcome.folder, progress=quiet(), rounds=3)
    assert not longer.summary["failures"]
    assert [len(run["curve"]) for run in longer.summary["runs"]] == [4, 4]


NOT_LONGER: dict[str, tuple[dict[str, Any], int, str]] = {
    "shorter": ({}, 1, "arms.fedavg has 2 rounds, more than 1"),
    "an arm of its own length": (
        {"arms/average/rounds": {"max": 9}},
        8,
        "arms.average has 9 rounds",
    ),
    "cosine": ({"rounds/schedule": "cosine"}, 3, "has schedule: cosine"),
    "warm-up": ({"arms/average/rounds": {"warmup": 0.5}}, 3, "arms.average has warmup: 0.5"),
    "no state": ({}, 3, "has no progress.safetensors"),
}


@pytest.mark.parametrize("name", NOT_LONGER)
def test_what_cannot_get_longer_is_refused_and_left_alone(
    name: str, make_data: Any, disturbed: Any
) -> None:
    """The first of two arms has ended."""
    changes, rounds, said = NOT_LONGER[name]
    arms = {"fedavg": {"start": "random"}, "average": {"start": "average"}}
    folder = disturbed(make_data({"rounds/max": 2, "arms": arms, **changes}), "average", 0)
    if name == "no state":
        (folder / "fedavg/seed-0/progress.safetensors").unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as caught:
        resume_study(folder, progress=quiet(), rounds=rounds)
    assert said in str(caught.value)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_rounds_are_for_a_study_that_is_resumed(make_data: Any) -> None:
    with pytest.raises(UserError, match="rounds lengthens a study"):
        fedkd.compare(make_data(), rounds=3)


# What is refused.


def spoil(path: str, content: bytes | None) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        place = folder / path
        if content is None:
            place.unlink()
        else:
            place.write_bytes(content)

    return apply


def older(folder: Path) -> None:
    path = folder / "beginning.json"
    said = json.loads(path.read_text())
    said["environment"]["torch"] = "1.0"
    path.write_text(json.dumps(said))


def other_arm(folder: Path) -> None:
    state = folder / "fedavg/seed-0/state.json"
    state.write_text(state.read_text().replace('"fedavg"', '"fedkd"'))


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no study": (spoil("study.yaml", None), "no such file"),
    "study of another kind": (spoil("study.yaml", b"- 1"), "a study is a mapping"),
    "no beginning": (spoil("beginning.json", None), "run the study anew"),
    "beginning of brackets": (spoil("beginning.json", b"[" * 9999), "run the study anew"),
    "another version": (older, "torch (1.0)"),
    "state of half a line": (
        spoil("fedavg/seed-0/state.json", b'{"arm": '),
        "does not contain a finished run",
    ),
    "state of a list": (
        spoil("fedavg/seed-0/state.json", b"[]"),
        "does not contain a finished run",
    ),
    "state of another arm": (other_arm, "is of fedkd, seed 0"),
    "a curve of the wrong length": (spoil("fedavg/seed-0/rounds.jsonl", b""), "every round"),
    "no model": (spoil("fedavg/seed-0/checkpoint.safetensors", None), "there is no file"),
    "half a model": (spoil("fedavg/seed-0/checkpoint.safetensors", b"\x10" * 7), "truncated"),
    "a pickle for a save point": (
        spoil("fedkd/seed-0/progress.safetensors", b"\x80\x04\x95" + bytes(30)),
        "never unpickles",
    ),
    "nothing for a save point": (spoil("fedkd/seed-0/progress.safetensors", b""), "truncated"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_damaged_or_foreign_is_refused_and_left_alone(
    name: str, make_data: Any, disturbed: Any
) -> None:
    folder = disturbed(make_data({"rounds/max": 2}), "fedkd", 1)
    damage, expected = REFUSED[name]
    damage(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as caught:
        resume_study(folder, progress=quiet())
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_save_point_of_another_run_is_not_taken_up(make_data: Any, disturbed: Any) -> None:
    data = make_data({"rounds/max": 2, "seeds": [0, 1]})
    folder = disturbed(data, "fedkd", 1)
    other = folder / "fedkd/seed-1/progress.safetensors"
    other.parent.mkdir(parents=True)
    other.write_bytes((folder / "fedkd/seed-0/progress.safetensors").read_bytes())
    summary = resume_study(folder, progress=quiet()).summary
    (failure,) = summary["failures"]
    assert (failure["arm"], failure["seed"]) == ("fedkd", 1)
    assert "belongs to another study, arm, seed or version" in failure["reason"]
    other.unlink()
    assert not resume_study(folder, progress=quiet()).summary["failures"]


# The lock.


def test_a_folder_has_one_writer(make_data: Any, disturbed: Any) -> None:
    folder = disturbed(make_data({"rounds/max": 2}), "fedkd", 1)
    with (
        lock_folder(folder),
        pytest.raises(UserError, match=f"is being written by process {os.getpid()} on"),
    ):
        resume_study(folder, progress=quiet())
    assert not resume_study(folder, progress=quiet()).interrupted


# Disks.


def assert_kept_and_goes_on(folder: Path, expected: Outcome) -> None:
    """All files are whole, rounds 0 to 2 of the second arm are kept, and the study goes on."""
    assert_all_readable(folder)
    assert len((folder / "fedkd/seed-0/rounds.jsonl").read_text().splitlines()) == 3
    resumed = resume_study(folder, progress=quiet())
    assert_same_results(folder, resumed.summary, expected)


def test_a_file_that_may_not_grow_ends_the_study_in_words(
    make_data: Any, undisturbed: Any, tmp_path: Path
) -> None:
    """A limit on the size of files fails a write in its midst, as a full disk does."""
    data = make_data({"rounds/max": 4})
    own = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, own[1]))

    study = parse_study(yaml.safe_dump(data, sort_keys=False))
    try:
        with pytest.raises(FedKDError, match=r"File too large.*fedkd compare --resume"):
            run_study(study, out=tmp_path, fresh=True, progress=Disturbed("fedkd", 2, limit))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, own)
    (folder,) = tmp_path.glob("tiny/*")
    assert_kept_and_goes_on(folder, undisturbed(data))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of eight megabytes, where that is allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("no disk can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_ends_the_study_in_words(
    small_disk: Path, make_data: Any, undisturbed: Any
) -> None:
    data = make_data({"rounds/max": 4})
    filler = small_disk / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1024))

    study = parse_study(yaml.safe_dump(data, sort_keys=False))
    with pytest.raises(FedKDError, match=r"No space left.*fedkd compare --resume"):
        run_study(study, out=small_disk, fresh=True, progress=Disturbed("fedkd", 2, fill))
    (folder,) = small_disk.glob("tiny/*")
    filler.unlink()
    assert_kept_and_goes_on(folder, undisturbed(data))


def test_a_read_only_disk_is_told_and_left_alone(
    small_disk: Path, make_data: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = parse_study(yaml.safe_dump(make_data({"rounds/max": 2}), sort_keys=False))
    outcome = run_study(study, out=small_disk, fresh=True, progress=Disturbed("fedkd", 1))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(UserError, match="cannot be written to: Read-only file system"):
        resume_study(outcome.folder, progress=quiet())
    with pytest.raises(FedKDError, match=r"cannot be written to: Read-only .* by --out"):
        run_study(study, out=small_disk, fresh=False, progress=quiet())


# The command line and the API.


def test_from_python(make_data: Any, undisturbed: Any, disturbed: Any) -> None:
    data = make_data({"rounds/max": 2})
    folder = disturbed(data, "fedkd", 1)
    found = fedkd.compare(resume=folder)
    assert found.folder == folder
    assert_same_results(folder, found.summary, undisturbed(data))
    with pytest.raises(UserError, match="either a study or a results folder"):
        fedkd.compare()
    with pytest.raises(UserError, match="either a study or a results folder"):
        fedkd.compare(data, resume=folder)
