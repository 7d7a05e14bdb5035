"""Models of runs on a SuperLink's host come to the results folder of who started the study."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.config.study_file import parse_study
from fedkd.engines import follower
from fedkd.engines.superlink import Connection
from fedkd.errors import FedKDError
from fedkd.messages import keys
from fedkd.report.progress import StudyProgress
from fedkd.results.record import BEST_FILE, CHECKPOINT_FILE, RunRecord
from fedkd.runner.run import run_study
from strategies.run_config import state_folder
from strategies.run_log import RunLog
from strategies.send_models import send_models

FILES = [BEST_FILE, CHECKPOINT_FILE, "round-0002.safetensors"]


class Host:
    """Stands for a SuperLink's host: its run is served in this process, its log is a file."""

    name, address = "deployed", "host:8000"

    def __init__(self, connection: Connection, place: Any) -> None:
        assert connection.name == self.name
        self.log = place.folder / "log.txt"

    def submit(self, values: Mapping[str, Any]) -> str:
        printing = self.log.open("w")
        with printing as file, contextlib.redirect_stdout(file), contextlib.suppress(FedKDError):
            send_models(values[keys.CONFIG_FETCH])
        return "7"

    def log_of(self, _: str) -> Path:
        return self.log

    def open_log(self, *_: Any, **__: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-S", "-c", ""])

    def state_of(self, _: str) -> tuple[str, str]:
        return "finished:completed", ""

    def stop(self, _: str) -> bool:
        return True


@pytest.fixture
def run(make_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a run whose models are on the host alone."""
    data = make_data({"rounds/max": 3, "rounds/keep": 2, "rounds/stop": "budget"})
    data["arms"] = {"fedavg": data["arms"]["fedavg"]}
    study = parse_study(yaml.safe_dump({**data, "baselines": ["fedavg"]}, sort_keys=False))
    progress = StudyProgress(Console(quiet=True), 1)
    folder = run_study(study, out=tmp_path / "out", fresh=False, progress=progress).folder
    run = folder / "fedavg" / "seed-0"
    monkeypatch.setenv("FEDKD_STATE_DIR", str(tmp_path / "state"))
    shutil.copytree(run, state_folder(study.name, "here", "fedavg", 0))
    (run / "flower-run.json").write_text(json.dumps({"run-name": "here"}))
    for name in FILES:
        (run / name).unlink()
    monkeypatch.setattr(follower, "SuperLink", Host)
    monkeypatch.setattr(follower, "read_connection", lambda name: Connection(name, Host.address))
    return run


def call(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_all_models_of_a_run_come_and_are_those_of_its_record(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, host = run.parents[1], state_folder(run.parents[2].name, "here", "fedavg", 0)
    exported = call("export", run, "--out", tmp_path / "model.safetensors")
    assert f"`fedkd fetch {study}` brings it" in str(exported.exception)
    fetched = call("fetch", study, "--engine", "deployed", "--json")
    assert [Path(path) for path in json.loads(fetched.stdout)] == [run / name for name in FILES]
    for name in FILES:
        assert (run / name).read_bytes() == (host / name).read_bytes()
    assert call("export", run, "--out", tmp_path / "model.safetensors").exit_code == 0
    # What is here is not asked for again; what is not the run's is.
    (run / BEST_FILE).write_bytes(b"other")
    asked: list[Any] = []
    monkeypatch.setattr("fedkd.runner.fetch.fetch_models", lambda *given: asked.append(given))
    assert call("fetch", study, "--engine", "deployed").exit_code == 0
    assert [list(given[1]) for given in asked] == [[run / BEST_FILE]]


def test_a_model_that_is_not_the_runs_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = state_folder(run.parents[2].name, "here", "fedavg", 0)
    with monkeypatch.context() as broken:
        broken.setattr(RunLog, "on_part", lambda log, _: vars(RunLog)["_print"](log, "part", "%"))
        refused = call("fetch", run.parents[1], "--engine", "deployed")
        assert "a part that is not valid" in str(refused.exception)
    tensors = load_file(host / CHECKPOINT_FILE)
    save_file({key: tensor + 1 for key, tensor in tensors.items()}, host / CHECKPOINT_FILE)
    refused = call("fetch", run.parents[1], "--engine", "deployed")
    assert "another checkpoint.safetensors" in str(refused.exception)
    assert not (run / CHECKPOINT_FILE).exists()
    (host / CHECKPOINT_FILE).unlink()
    refused = call("fetch", run.parents[1], "--engine", "deployed")
    assert "was it removed there?" in str(refused.exception)
    local = call("fetch", run.parents[1])
    assert "ran on this host" in str(local.exception)


@pytest.mark.parametrize("name", ["progress.safetensors", "../best.safetensors", "round-1"])
def test_a_host_sends_models_alone(name: str, run: Path) -> None:
    asked = {"study": run.parents[2].name, "run": "here", "arm": "fedavg", "seed": 0, "file": name}
    with pytest.raises(FedKDError, match="is not the name of a run's model"):
        send_models(json.dumps([asked]))


def test_the_best_model_is_that_of_the_best_validation_so_far(run: Path) -> None:
    from fedkd.models.card import read_card

    host = state_folder(run.parents[2].name, "here", "fedavg", 0)
    best = read_card(host / BEST_FILE, what="test")
    kept = read_card(host / "round-0002.safetensors", what="test")
    assert best is not None
    assert kept is not None
    assert kept.facts == {"round": 2}
    assert 0 <= best.facts["validation"] <= 1
    assert set(RunRecord.read(run).models) == set(FILES)
