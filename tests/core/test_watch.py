"""Watching a study from outside, at every moment of its life."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.cli.notify import read_command, run_command
from fedkd.config.study_file import dump_study
from fedkd.errors import UserError
from fedkd.report.watch import read_state, render, watch
from fedkd.results.record import Point, RunRecord, append_point, write_state

START = 1_700_000_000


def point(index: int, accuracy: float) -> Point:
    return Point(index, accuracy, 1.0, 1, 1, 0.5, 3, 0)


@pytest.fixture
def folder(tmp_path: Path, make_study: Any) -> Path:
    study = make_study({"rounds/max": 10, "seeds": [0, 1]})
    (tmp_path / "study.yaml").write_text(dump_study(study))
    os.utime(tmp_path / "study.yaml", (START, START))
    return tmp_path


def write(folder: Path, arm: str, seed: int, accuracies: list[float], *, ended: bool) -> Path:
    own = folder / arm / f"seed-{seed}"
    curve = tuple(point(index, accuracy) for index, accuracy in enumerate(accuracies))
    for each in curve:
        append_point(own, each)
    if ended:
        write_state(own, RunRecord(arm, seed, "inline", curve, "budget", 0, 10, (0.3, 0.99)))
    return own


def show(folder: Path, *, rows: int = 40) -> str:
    console = Console(width=160, record=True, file=Path(os.devnull).open("w"))  # noqa: SIM115 -- closed with the process
    console.print(render(read_state(folder), rows))
    return console.export_text().replace("\u00a0", " ")


def test_before_anything_ran_all_is_waiting(folder: Path) -> None:
    state = read_state(folder)
    assert [(run.arm, run.seed, run.phase) for run in state.runs] == [
        ("fedavg", 0, "waiting"),
        ("fedkd", 0, "waiting"),
        ("fedavg", 1, "waiting"),
        ("fedkd", 1, "waiting"),
    ]
    assert state.seconds_left is None
    assert "30 % pending" in show(folder)


def test_a_run_under_way_shows_rounds_accuracy_and_targets(folder: Path) -> None:
    write(folder, "fedavg", 0, [0.1] * 10 + [0.2], ended=True)
    own = write(folder, "fedkd", 0, [0.1, 0.2, 0.35], ended=False)
    os.utime(own / "rounds.jsonl", (START + 24, START + 24))
    os.utime(folder / "fedavg/seed-0/rounds.jsonl", (START + 20, START + 20))
    state = read_state(folder)
    assert [run.phase for run in state.runs] == ["budget", "running", "waiting", "waiting"]
    # 12 rounds took 24 seconds; 8 + 10 + 10 are left.
    assert state.seconds_left == pytest.approx(56)
    text = show(folder)
    assert "2/10" in text
    assert "30 % in round 2" in text
    assert "99 % pending, best 35 %" in text
    assert "30 % not reached" in text
    assert "at most about 0:00:56 left" in text


def test_a_line_still_being_written_is_left_out(folder: Path) -> None:
    own = write(folder, "fedavg", 0, [0.1, 0.2], ended=False)
    with (own / "rounds.jsonl").open("a") as file:
        file.write('{"round": 2, "accu')
    assert read_state(folder).runs[0].points[-1].round == 1


def test_reused_runs_do_not_count_for_the_pace(folder: Path) -> None:
    own = write(folder, "fedavg", 0, [0.1] * 11, ended=True)
    write_state(own, replace(RunRecord.read(own), cached=True))
    assert read_state(folder).runs[0].phase == "cached"
    assert read_state(folder).seconds_left is None


def test_targets_that_depend_on_a_baseline_appear_when_it_has_ended(
    tmp_path: Path, make_study: Any
) -> None:
    study = make_study({"targets": {"of_baseline_best": [0.5, 1.0]}, "rounds/max": 10})
    (tmp_path / "study.yaml").write_text(dump_study(study))
    assert {run.targets for run in read_state(tmp_path).runs} == {()}
    write(tmp_path, "fedavg", 0, [0.1] * 11, ended=True)
    assert [run.targets for run in read_state(tmp_path).runs] == [(0.3, 0.99)] * 2


def test_too_many_runs_leave_those_under_way(folder: Path) -> None:
    write(folder, "fedkd", 1, [0.1, 0.2], ended=False)
    text = show(folder, rows=2)
    assert text.count("fedkd") == 1
    assert "fedavg" not in text
    assert "0 of 4 runs have ended, 1 running" in text


def test_watching_ends_when_the_summary_appears(folder: Path) -> None:
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        write(folder, "fedavg", len(looks) - 1, [0.1], ended=True)
        if len(looks) == 2:
            (folder / "summary.json").write_text("{}")

    console = Console(width=160, record=True, force_terminal=True, file=Path(os.devnull).open("w"))  # noqa: SIM115 -- closed with the process
    assert watch(folder, console, sleep=sleep)
    assert len(looks) == 2
    assert "the study has ended" in console.export_text()


def test_once_looks_once(folder: Path) -> None:
    def sleep(seconds: float) -> None:
        raise AssertionError("it waited")

    console = Console(quiet=True)
    assert not watch(folder, console, once=True, sleep=sleep)
    with pytest.raises(UserError, match="is not a results folder"):
        watch(folder / "fedavg", console)


def test_programs_read_it_as_json_and_as_prometheus_text(folder: Path) -> None:
    write(folder, "fedavg", 0, [0.1, 0.35], ended=True)
    write(folder, "fedkd", 0, [0.2], ended=False)
    text = folder / "fedkd.prom"
    words = ["watch", str(folder), "--once", "--json", "--prometheus", str(text)]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    state = json.loads(found.stdout)
    assert (state["study"], state["ended"], len(state["runs"])) == ("tiny", False, 4)
    first, second = state["runs"][:2]
    assert (first["state"], first["round"], first["metric"]) == ("budget", 1, 0.35)
    assert (first["bytes"], first["seconds"], first["silos_ok"]) == (4, 1.0, 3)
    assert (second["state"], second["round"]) == ("running", 0)
    lines = text.read_text().splitlines()
    assert 'fedkd_run_metric{study="tiny",arm="fedavg",seed="0"} 0.35' in lines
    assert 'fedkd_run_ended{study="tiny",arm="fedkd",seed="0"} 0' in lines
    assert not [line for line in lines if "run_metric" in line and 'seed="1"' in line]
    assert lines[:2] == ["# TYPE fedkd_study_ended gauge", 'fedkd_study_ended{study="tiny"} 0']
    sample = re.compile(r'fedkd_\w+\{(\w+="[^"]*",?)+\} [\d.e+-]+')
    assert all(line.startswith("#") or sample.fullmatch(line) for line in lines)


def test_a_command_is_told_how_a_study_ended(
    tmp_path: Path, make_data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, study = tmp_path / "told.json", tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(make_data({"rounds/max": 1})))
    words = ["--out", str(tmp_path / "runs"), "--notify", f"sh -c 'cat > {told}'"]
    compare = ["compare", str(study), *words]
    assert CliRunner().invoke(app, compare).exit_code == 0
    found = json.loads(told.read_text())
    assert (found["study"], found["status"]) == ("tiny", "ended")
    assert (Path(found["folder"]) / "summary.json").exists()

    def fail(*_: Any, **__: Any) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr("fedkd.runner.run.execute", fail)
    assert str(CliRunner().invoke(app, compare).exception) == "the disk is full"
    assert json.loads(told.read_text()) == {"study": "tiny", "status": "failed"}


def test_a_command_that_fails_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(["false"], {})
    assert capsys.readouterr().err.startswith("--notify: Command '['false']' returned")
    with pytest.raises(UserError, match="is not a command"):
        read_command("mail 'me")
