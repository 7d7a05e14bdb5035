"""On real SuperLink and SuperNode processes: a longer study, and given models on silos."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.config.study_file import dump_study, parse_study
from fedkd.deploy import rehearsal
from fedkd.deploy.audit_report import read_entries
from fedkd.engines.connection import RUN_FILE
from fedkd.engines.loopback import CONNECTION, Loopback
from fedkd.report.progress import StudyProgress
from fedkd.results.record import RunRecord
from fedkd.runner.run import resume_study, run_study

NAMES = ["north", "south"]
STUDY: dict[str, Any] = {
    "name": "lesions",
    "data": {"classes": ["healthy", "lesion"], "channels": 1, "image_size": 16},
    "partition": {"scheme": "deployed", "names": NAMES},
    "model": {"arch": "mlp"},
    "rounds": {"max": 1, "stop": "budget", "timeout": 600},
    "targets": [0.85],
    "arms": {"fedavg": {"start": "random", "strategy": "fedavgm"}},
    "seeds": [3],
    "engine": {"name": CONNECTION},
}


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder whose name is short enough for sockets in it."""
    # How often Flower looks whether there is a process to start, for every message.
    monkeypatch.setenv("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "0.2")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


@pytest.mark.deploy
def test_a_study_on_hosts_gets_longer_and_its_model_is_measured_at_every_silo(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    study = parse_study(yaml.safe_dump(STUDY))
    silos = {
        name: rehearsal.write_silo(study, name, folder / name, images=40)
        for name in study.silo_names
    }
    path = folder / "study.yaml"
    path.write_text(dump_study(study))

    def quiet() -> StudyProgress:
        return StudyProgress(Console(quiet=True), 1)

    with Loopback(silos) as place:
        monkeypatch.setattr(tempfile, "tempdir", str(place.folder / "tmp"))
        first = run_study(study, out=folder / "runs", fresh=True, progress=quiet())
        run = first.folder / "fedavg" / "seed-3"
        begun = RunRecord.read(run)
        longer = resume_study(first.folder, progress=quiet(), rounds=2)
        ended = RunRecord.read(run)
        assert not longer.summary["failures"]
        assert ended.curve[:2] == begun.curve, "no round is computed twice, nor timed anew"
        assert (len(ended.curve), ended.max_rounds) == (3, 2)
        # Its model, by the run here and by its file on the SuperLink's host.
        name = json.loads((run / RUN_FILE).read_text())["run-name"]
        there = place.folder / "state/lesions" / name / "fedavg/seed-3/checkpoint.safetensors"
        found = CliRunner().invoke(app, ["evaluate", str(run), str(there), str(path), "--json"])
    assert found.exit_code == 0, found.output
    rows = json.loads(found.stdout)["measured"]
    assert [row["silo"] for row in rows] == NAMES * 2
    assert [row["num_examples"] for row in rows] == [40] * 4
    mean = sum(row["accuracy"] for row in rows[:2]) / 2
    assert mean == pytest.approx(ended.curve[-1].accuracy), "the server has no test images"
    assert [row["accuracy"] for row in rows[:2]] == [row["accuracy"] for row in rows[2:]]
    kinds = [entry["type"] for entry in read_entries(folder / "north" / "audit.jsonl")]
    assert kinds.count("train") == 2, "an evaluation trains nothing"
    assert kinds[-2:] == ["evaluate", "evaluate"]
