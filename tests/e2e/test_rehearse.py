"""Real SuperLink and SuperNode processes on this machine, with a worker that is killed."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from rich.console import Console

from fedkd.config import Study
from fedkd.config.study_file import parse_study
from fedkd.deploy import rehearsal
from fedkd.deploy.audit_report import read_entries, sum_by_study
from fedkd.deploy.silo_file import load_silo_file
from fedkd.deploy.study_approvals import approve_study, read_requests
from fedkd.deploy.worker_folder import WorkerFolder
from fedkd.engines.loopback import CONNECTION, Loopback
from fedkd.errors import UserError
from fedkd.messages.describe import WAITING
from fedkd.report.progress import StudyProgress
from fedkd.runner.run import run_study

PATIENCE = 600.0
PROGRAMS = ("flower-superlink", "flower-supernode", "clients.worker")


def study(**changes: Any) -> Study:
    values = {
        "name": "lesions",
        "data": {
            "classes": ["healthy", "lesion"],
            "channels": 1,
            "image_size": 16,
            "transfer": {"source": "npz:/srv/none/transfer.npz", "size": 60},
        },
        "partition": {"scheme": "deployed", "names": ["north", "south"]},
        "model": {"arch": "mlp"},
        "rounds": {"max": 20, "timeout": 600},
        "targets": [0.85],
        "arms": {
            "fedavg": {"start": "random"},
            "fedkd": {
                "start": "consolidated",
                "consolidation": {
                    "mode": "logits",
                    "student": "fresh",
                    "weighting": "familiarity",
                    "epochs": 3,
                },
                "rounds": {"max": 30},
            },
        },
        "seeds": [3, 4],
        **changes,
    }
    return parse_study(yaml.safe_dump(values))


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder whose name is short enough for sockets in it."""
    # How often Flower looks whether there is a process to start, for every message.
    monkeypatch.setenv("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "0.2")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def running(folder: Path) -> list[psutil.Process]:
    """Return Flower's programs and workers whose files are in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if str(folder) in line and any(program in line for program in PROGRAMS):
            found.append(process)
    return found


def test_the_study_is_shortened_and_only_a_deployed_one(tmp_path: Path) -> None:
    short = rehearsal.shorten(study(), folder=tmp_path, engine=CONNECTION)
    assert short.seeds == [3]
    assert [short.rounds_of(arm).max for arm in short.arms] == [1, 1]
    assert short.data.transfer.source == f"npz:{tmp_path}/transfer.npz"
    simulated = study(partition={"scheme": "iid", "silos": 2}, data={"source": "digits"})
    with pytest.raises(UserError, match="a rehearsal is for studies"):
        rehearsal.shorten(simulated, folder=tmp_path, engine=CONNECTION)
    table = {"classes": ["ill", "well"], "table": {"label": "outcome"}}
    arms = {"fedavg": {"start": "random"}}
    with pytest.raises(UserError, match=r"try it on the hosts with one round: fedkd compare"):
        rehearsal.shorten(study(data=table, arms=arms), folder=tmp_path, engine=CONNECTION)


@pytest.mark.deploy
def test_a_killed_worker_costs_no_more_than_the_reply_and_an_approval_lets_a_silo_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    short = rehearsal.shorten(study(), folder=folder, engine=CONNECTION)
    rounds = {"max": 4, "stop": "budget", "timeout": 600, "quorum": 0.5, "max_failures": 20}
    values = {**short.to_dict(), "rounds": rounds, "arms": {"fedavg": {"start": "random"}}}
    short = parse_study(yaml.safe_dump(values))
    silos = {
        name: rehearsal.write_silo(short, name, folder / name, images=40)
        for name in short.silo_names
    }
    silos["south"].write_text(silos["south"].read_text().replace("any", "ask"))
    south = load_silo_file(silos["south"])
    assert south.approve.study == "ask"
    audit = folder / "north" / "audit.jsonl"
    printed = io.StringIO()

    def compare() -> dict[str, Any]:
        with StudyProgress(Console(file=printed, width=200), 1) as progress:
            return run_study(short, out=folder / "runs", fresh=True, progress=progress).summary

    with Loopback(silos) as place, ThreadPoolExecutor(1) as pool:
        # Workers of SuperNodes have their files in the folder that is removed with them.
        monkeypatch.setattr(tempfile, "tempdir", str(place.folder / "tmp"))
        workers = WorkerFolder.of(silos["north"])
        ended = pool.submit(compare)
        killed: set[int] = set()
        deadline = time.monotonic() + PATIENCE
        while not ended.done():
            for request in read_requests(south):
                if not request.approved and "waiting" in printed.getvalue():
                    approve_study(south, request.hash)
            trained = audit.exists() and '"type": "train"' in audit.read_text()
            current = workers.worker()
            if trained and current is not None and not killed:
                current[0].kill()
                killed.add(current[0].pid)
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (run,) = ended.result()["runs"]
        replaced = workers.worker()
        assert replaced is not None
        assert len(killed) == 1
        assert replaced[0].pid not in killed
    assert f"waiting it failed: south {WAITING}" in printed.getvalue()
    assert [point["round"] for point in run["curve"]] == [0, 1, 2, 3, 4]
    assert run["curve"][-1]["silos_ok"] == 2
    assert len([entry for entry in run["quarantined"] if entry["silo"] == "north"]) <= 1
    (total,) = sum_by_study(read_entries(audit))
    assert total["study"] == "lesions"
    assert total["kinds"]["train"] >= 4
    assert not running(folder)
