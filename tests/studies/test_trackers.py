"""TensorBoard, MLflow and W&B themselves give back the very curve that rounds.jsonl holds."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.report.progress import StudyProgress
from fedkd.runner.run import run_study

pytestmark = pytest.mark.slow

Curve = dict[str, list[tuple[int, float]]]
"""Name of a figure to its steps and values, in order."""

FIGURES = (
    *("accuracy", "loss", "bytes_up", "bytes_down", "seconds", "silos_ok", "silos_failed"),
    *("macro_f1", "balanced_accuracy", "auroc", "average_precision"),
)


@pytest.fixture
def tracked(
    make_study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Any]:
    """Return a function that runs a study twice, the second time from the cache, and tracks it."""
    for variable in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_DIR", "WANDB_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("FEDKD_CACHE_DIR", str(tmp_path / "cache"))

    def run(name: str) -> list[Any]:
        study = make_study({"seeds": [0, 1]})
        outcomes = []
        for _ in range(2):
            progress = StudyProgress(Console(), 4)
            out = tmp_path / "runs"
            outcomes.append(run_study(study, out=out, fresh=False, progress=progress, track=[name]))
        assert [run["cached"] for run in outcomes[1].summary["runs"]] == [True] * 4
        return outcomes

    return run


def on_disk(folder: Path) -> Curve:
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    points = [{**line.pop("metrics"), **line} for line in lines]
    return {name: [(point["round"], point[name]) for point in points] for name in FIGURES}


def test_tensorboard_gives_back_the_curve(tracked: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    for outcome in tracked("tensorboard"):
        for run in outcome.summary["runs"]:
            place = Path(run["arm"]) / f"seed-{run['seed']}"
            events = EventAccumulator(str(outcome.folder / "tensorboard" / place))
            events.Reload()

            def read(name: str, events: Any = events) -> list[tuple[int, float]]:
                return [
                    (event.step, float(tensor_util.make_ndarray(event.tensor_proto)))
                    for event in events.Tensors(name)
                ]

            assert {name: read(name) for name in FIGURES} == on_disk(outcome.folder / place)
            assert read("final/best_accuracy") == [(0, run["best_accuracy"])]
            text = tensor_util.make_ndarray(events.Tensors("settings/text_summary")[0].tensor_proto)
            assert b"lr: 0.05" in text.item()


def test_mlflow_gives_back_the_curve(tracked: Any, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    outcomes = tracked("mlflow")
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert len(found) == 8
    by_place = {(run.data.tags["results"], run.info.run_name): run for run in found}
    for outcome in outcomes:
        for run in outcome.summary["runs"]:
            name = f"{run['arm']}-seed-{run['seed']}"
            kept = by_place[str(outcome.folder), name]
            curve = {
                figure: [
                    (metric.step, metric.value)
                    for metric in client.get_metric_history(kept.info.run_id, figure)
                ]
                for figure in FIGURES
            }
            assert curve == on_disk(outcome.folder / run["arm"] / f"seed-{run['seed']}")
            assert kept.info.status == "FINISHED"
            assert kept.data.params["rounds.lr"] == "0.05"
            assert kept.data.metrics.get("exchanges_to_0.3") == run["targets"][0]["exchanges"]
            assert kept.data.tags["stopped"] == "budget"
    # An exported model becomes a version in the registry, with its files.
    source, out = outcomes[0].folder / "fedavg" / "seed-0", tmp_path / "runs" / "model.safetensors"
    words = ["export", str(source), "--out", str(out), "--register", "lesions"]
    for number in ("1", "2"):
        exported = CliRunner().invoke(app, words)
        assert f"MLflow: lesions, version {number}" in exported.output, exported.output
    version = client.get_model_version("lesions", "2")
    assert version.tags["arm"] == "fedavg"
    stored = Path(url2pathname(urlparse(version.source).path))
    assert (stored / out.name).read_bytes() == out.read_bytes()


def read_wandb(path: Path) -> Iterator[Any]:
    """Yield the records of an offline run, as ``wandb sync`` would read them.

    After a header of seven bytes the file is a LevelDB log: blocks of 32 KiB, in them chunks with
    a checksum, a length and a type (1 whole, 2 first, 3 middle, 4 last); the records are W&B's.
    """
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, parts = 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        _, size, kind = struct.unpack_from("<IHB", content, position)
        if left < 7 or kind == 0:
            position += left
            continue
        parts += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""
    assert not parts


def values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_an_offline_wandb_run_gives_back_the_curve(tracked: Any) -> None:
    for outcome in tracked("wandb"):
        curves: dict[str, Curve] = {}
        summaries: dict[str, dict[str, Any]] = {}
        for path in outcome.folder.glob("wandb/offline-run-*/*.wandb"):
            records = list(read_wandb(path))
            name = next(r.run.display_name for r in records if r.HasField("run"))
            rows = [values(r.history.item) for r in records if r.HasField("history")]
            curves[name] = {
                figure: [(row["round"], row[figure]) for row in rows] for figure in FIGURES
            }
            summaries[name] = {}
            for record in records:
                if record.HasField("summary"):
                    summaries[name].update(values(record.summary.update))
        assert len(curves) == 4
        for run in outcome.summary["runs"]:
            name = f"{run['arm']}-seed-{run['seed']}"
            assert curves[name] == on_disk(outcome.folder / run["arm"] / f"seed-{run['seed']}")
            assert summaries[name]["best_accuracy"] == run["best_accuracy"]
            assert summaries[name]["stopped"] == "budget"


def test_a_tracker_without_a_place_to_write_costs_no_result(
    make_study: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/taken/mlflow.db")
    study = make_study({"rounds/max": 1})
    progress = StudyProgress(Console(width=400), 2)
    outcome = run_study(study, out=tmp_path, fresh=False, progress=progress, track=["mlflow"])
    assert len(outcome.summary["runs"]) == 2
    assert not outcome.summary["failures"]
    assert capsys.readouterr().out.count("MLflow is left out from here on") == 1
