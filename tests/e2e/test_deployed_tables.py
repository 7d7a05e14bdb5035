"""Two silos with tables behind a real SuperLink, each in SuperNode processes of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console

from fedkd.config.study_file import parse_study
from fedkd.engines.loopback import CONNECTION, Loopback
from fedkd.report.progress import StudyProgress
from fedkd.runner.run import run_study

pytestmark = [pytest.mark.deploy, pytest.mark.slow]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder whose name is short enough for sockets in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def write_table(path: Path, seed: int) -> None:
    draw = np.random.default_rng(seed)
    age, ward = draw.normal(50 + seed, 10, 80), draw.choice(["a", "b"], 80)
    outcome = np.where(age + 5 * (ward == "a") + draw.normal(size=80) > 53, "ill", "well")
    pd.DataFrame({"age": age, "ward": ward, "outcome": outcome}).to_csv(path, index=False)


def test_two_hosts_share_sums_and_train(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    write_table(folder / "server.csv", 7)
    silos = {}
    for seed, name in enumerate(("north", "south")):
        (folder / name).mkdir()
        write_table(folder / name / "table.csv", seed)
        share = {"teacher": "none", "table_sums": True, "min_samples": 3}
        silo = {"name": name, "data": "csv:table.csv", "share": share, "audit": "audit.jsonl"}
        silos[name] = folder / name / "silo.yaml"
        silos[name].write_text(yaml.safe_dump({**silo, "approve": "any"}))
    study = {
        "name": "tables",
        "data": {
            "source": f"csv:{folder / 'server.csv'}",
            "table": {"label": "outcome"},
            "classes": ["well", "ill"],
            "test": 0.9,
            "validation": 0,
        },
        "partition": {"scheme": "deployed", "names": ["north", "south"]},
        "model": {"arch": "linear"},
        "rounds": {"max": 3, "lr": 0.3, "stop": "budget", "timeout": 300},
        "metric": "auroc",
        "targets": [0.9],
        "arms": {"fedavg": {"start": "random"}},
        "seeds": [0],
        "engine": {"name": CONNECTION},
    }
    with Loopback(silos), StudyProgress(Console(quiet=True), 1) as progress:
        summary = run_study(
            parse_study(yaml.safe_dump(study)), out=folder / "runs", fresh=True, progress=progress
        ).summary
    assert not summary["failures"]
    (run,) = summary["runs"]
    assert not run["quarantined"]
    assert [point["silos_ok"] for point in run["curve"]] == [0, 2, 2, 2]
    assert run["exchanges_before_round_1"] == 1
    assert run["curve"][-1]["metrics"]["auroc"] > 0.9
    assert '"query.sums"' in (folder / "north" / "audit.jsonl").read_text()
