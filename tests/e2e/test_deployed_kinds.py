"""Two silos with tables or texts behind a real SuperLink, with SuperNode processes of their own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder whose name is short enough for sockets in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        for host in ("server", "north", "south"):
            (Path(name) / host).mkdir()
        yield Path(name)


def run(
    folder: Path, data: dict[str, Any], silo: dict[str, Any], **study: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run three rounds with silos that differ in their files alone; return study and run."""
    silos = {name: folder / name / "silo.yaml" for name in ("north", "south")}
    for name, path in silos.items():
        own = {"name": name, "audit": "audit.jsonl", "approve": "any", **silo}
        path.write_text(yaml.safe_dump(own))
    whole = {
        "name": "kinds",
        "data": {"classes": ["bad", "good"], "test": 0.9, "validation": 0, **data},
        "partition": {"scheme": "deployed", "names": list(silos)},
        "rounds": {"max": 3, "lr": 0.3, "stop": "budget", "timeout": 300},
        "targets": [0.9],
        "arms": {"fedavg": {"start": "random"}},
        "seeds": [0],
        "engine": {"name": CONNECTION},
        **study,
    }
    with Loopback(silos), StudyProgress(Console(quiet=True), 1) as progress:
        summary = run_study(
            parse_study(yaml.safe_dump(whole)), out=folder / "runs", fresh=True, progress=progress
        ).summary
    assert not summary["failures"]
    (found,) = summary["runs"]
    assert not found["quarantined"]
    assert [point["silos_ok"] for point in found["curve"]] == [0, 2, 2, 2]
    return whole, dict(found)


def write_table(path: Path, seed: int) -> None:
    draw = np.random.default_rng(seed)
    age, ward = draw.normal(50 + seed, 10, 80), draw.choice(["a", "b"], 80)
    outcome = np.where(age + 5 * (ward == "a") + draw.normal(size=80) > 53, "bad", "good")
    pd.DataFrame({"age": age, "ward": ward, "outcome": outcome}).to_csv(path, index=False)


def test_two_hosts_share_sums_train_and_measure_what_they_get(folder: Path) -> None:
    """They measure what a simulation on the same rows does."""
    for seed, host in ((7, "server"), (0, "north"), (1, "south")):
        write_table(folder / host / "table.csv", seed)
    data = {"source": f"csv:{folder}/server/table.csv", "table": {"label": "outcome"}}
    data["silo_test"] = 0.25
    share = {"teacher": "none", "table_sums": True, "min_samples": 3, "class_counts": True}
    silo = {"data": "csv:table.csv", "share": share, "threads": 1}
    study, found = run(folder, data, silo, model={"arch": "linear"}, metric="auroc")
    del study["data"]["classes"]
    simulated = {
        **study,
        "partition": {
            "scheme": "given",
            "silos": {name: f"csv:{folder}/{name}/table.csv" for name in ("north", "south")},
        },
        "engine": {"name": "inline"},
    }
    with StudyProgress(Console(quiet=True), 1) as progress:
        outcome = run_study(
            parse_study(yaml.safe_dump(simulated)),
            out=folder / "sim",
            fresh=True,
            progress=progress,
        )
    (expected,) = outcome.summary["runs"]
    assert found["silos_get"] == expected["silos_get"]
    assert [gets["num_held_out"] for gets in found["silos_get"]] == [20, 20]
    assert all(gets["fine_tuned"] and gets["adjusted"] for gets in found["silos_get"])
    assert "silos_get" not in found["notes"]
    metrics = [[point["metrics"] for point in each["curve"]] for each in (found, expected)]
    assert metrics[0] == metrics[1]
    assert found["exchanges_before_round_1"] == 1
    assert found["curve"][-1]["metrics"]["auroc"] > 0.9
    assert '"query.sums"' in (folder / "north" / "audit.jsonl").read_text()


def test_two_hosts_have_the_network_of_texts_in_their_folders(
    folder: Path, text_folder: Path
) -> None:
    rows = pd.read_csv(text_folder / "sentences.csv")
    for index, host in enumerate(("server", "north", "south")):
        rows[80 * index : 80 * index + 80].to_csv(folder / host / "texts.csv", index=False)
        shutil.copytree(text_folder / "minilm", folder / host / "minilm")
    data = {"source": f"text:{folder}/server/texts.csv", "text": {"max_length": 12}}
    silo = {
        "data": "text:texts.csv",
        "model": {"weights": "./minilm"},
        "share": {"teacher": "none"},
    }
    model = {"arch": f"hf:{folder}/server/minilm", "train": {"lora": {"rank": 2}}}
    _, found = run(folder, data, silo, model=model)
    assert found["curve"][-1]["accuracy"] > found["curve"][0]["accuracy"]
