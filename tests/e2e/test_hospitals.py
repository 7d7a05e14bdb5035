"""The study of hospitals: networks that plain PyTorch trained, on every engine and on hosts."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import fedkd
from experiments.hospitals import make_checkpoints
from fedkd.config.study_file import parse_study
from fedkd.engines.loopback import CONNECTION, Loopback
from fedkd.report.progress import StudyProgress
from fedkd.runner.run import run_study

pytestmark = pytest.mark.slow

STUDY = Path(__file__).parents[2] / "experiments" / "hospitals.yaml"
FILES = {"north": "north.pt", "east": "east.pth"}
LORA = {"lora": {"rank": 2, "targets": ["layer4.0.conv1", "layer4.1.conv2"]}}
TRAINED = {
    "all": {"train": "all", "batch_norm": "recalibrate"},
    "lora": {"train": LORA, "batch_norm": "average"},
}
PATIENCE = 400


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """Return the folder of small hospitals, and the accuracy that the script prints of each."""
    folder = tmp_path_factory.mktemp("made") / "hospitals"
    sizes = "--pictures 80 --epochs 2 --public 192 --public-epochs 2"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", ["make_checkpoints", str(folder), *sizes.split()])
        make_checkpoints.main()
    lines = re.findall(r"/(\w+)\.\w+: accuracy ([\d.]+)$", printed.getvalue(), re.MULTILINE)
    assert len(lines) == 4
    return folder, {name: float(accuracy) for name, accuracy in lines}


def study(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return the shipped study with these hospitals and one seed."""
    text = STUDY.read_text().replace("../data/hospitals", str(folder))
    # Threads of a server wait for one another where tests run side by side.
    engine = {"name": "inline", "server_threads": 1}
    return {**yaml.safe_load(text), "seeds": [0], "engine": engine, **changes}


def partly_trained(folder: Path, kind: str, **changes: Any) -> dict[str, Any]:
    """Return a study of FedAvg on two hospitals, all of whose networks or adapters are trained."""
    whole = study(folder)
    silos = {name: f"folder:{folder}/{name}" for name in FILES}
    own = {name: str(folder / file) for name, file in FILES.items()}
    start = "average" if kind == "all" else "random"
    return {
        **whole,
        "partition": {"scheme": "given", "silos": silos},
        "model": whole["model"] | TRAINED[kind],
        "pretraining": {"checkpoints": own} if kind == "all" else {},
        "rounds": {"max": 3, "stop": "budget"},
        "arms": {"fedavg": {"start": start}},
        "baselines": [],
        **changes,
    }


def curve(summary: dict[str, Any]) -> list[tuple[Any, ...]]:
    assert not summary["failures"]
    (run,) = summary["runs"]
    assert not run["quarantined"]
    return [(p["round"], p["accuracy"], p["loss"], p["silos_ok"]) for p in run["curve"]]


def test_teachers_are_what_the_script_measured_and_their_average_is_calibrated(
    hospitals: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    folder, measured = hospitals
    arms = {"average": {"start": "average"}, "best": {"start": "best"}}
    one_round = {"rounds": {"max": 1, "stop": "budget"}, "arms": arms, "baselines": ["average"]}
    summary = fedkd.compare(study(folder, **one_round), out=tmp_path / "a").summary
    runs = {run["arm"]: run for run in summary["runs"]}
    teachers = runs["average"]["instruments"]["teachers"]
    assert {each["silo"]: round(each["accuracy"], 4) for each in teachers} == measured
    best = max(measured, key=lambda name: measured[name])
    assert round(runs["best"]["curve"][0]["accuracy"], 4) == measured[best]
    assert runs["average"]["curve"][0]["accuracy"] > 1 / 3
    plain = study(folder, **one_round)
    plain["model"]["batch_norm"] = "average"
    noted = fedkd.compare(plain, out=tmp_path / "b").summary
    starts = [run["curve"][0] for run in noted["runs"] if run["arm"] == "average"]
    assert starts[0]["loss"] > runs["average"]["curve"][0]["loss"]


@pytest.mark.parametrize("kind", TRAINED)
def test_ray_gives_the_same_curve_though_it_is_killed(
    kind: str, hospitals: tuple[Path, dict[str, float]], tmp_path: Path, start: Any
) -> None:
    settings = partly_trained(hospitals[0], kind)
    expected = curve(fedkd.compare(settings, out=tmp_path / "inline").summary)
    path, out = tmp_path / "study.yaml", tmp_path / "ray"
    path.write_text(yaml.safe_dump(settings))
    arguments = ("compare", path, "--engine", "ray", "--out", out, "--fresh")
    victim = start(tmp_path, *arguments, cache=tmp_path / "cache")
    deadline = time.monotonic() + PATIENCE
    while not any(len(each.read_text().splitlines()) > 1 for each in out.rglob("rounds.jsonl")):
        assert victim.returncode is None, victim.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    victim.kill()
    victim.communicate()
    (folder,) = out.glob("*/*")
    assert not (folder / "summary.json").exists()
    resumed = start(tmp_path, "compare", "--resume", folder, cache=tmp_path / "cache")
    printed = resumed.communicate()
    assert resumed.returncode == 0, printed
    assert curve(fedkd.Comparison.read(folder).summary) == expected
    assert len(expected) == 4


@pytest.fixture
def short() -> Iterator[Path]:
    """Return a folder whose name is short enough for sockets in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


@pytest.mark.parametrize("kind", TRAINED)
def test_two_hosts_give_the_curve_of_a_simulation(
    kind: str, hospitals: tuple[Path, dict[str, float]], short: Path, tmp_path: Path
) -> None:
    """Their ``silo.yaml`` says what the checkpoints were trained with; adapters have none."""
    folder, _ = hospitals
    silos = {name: short / name / "silo.yaml" for name in FILES}
    for name, path in silos.items():
        path.parent.mkdir()
        path.write_text(yaml.safe_dump(silo_file(folder, name, kind)))
    settings = partly_trained(folder, kind, rounds={"max": 2, "stop": "budget"})
    simulated = fedkd.compare(settings, out=tmp_path / "simulated").summary
    classes = list(make_checkpoints.CLASSES)
    deployed = {
        **settings,
        "data": {**settings["data"], "classes": classes, "channels": 3, "image_size": 32},
        "partition": {"scheme": "deployed", "names": list(FILES)},
        "pretraining": {},
        "rounds": {"max": 2, "stop": "budget", "timeout": PATIENCE},
        "engine": {"name": CONNECTION, "server_threads": 1},
    }
    made = parse_study(yaml.safe_dump(deployed))
    with Loopback(silos), StudyProgress(Console(quiet=True), 1) as progress:
        outcome = run_study(made, out=tmp_path / "hosts", fresh=True, progress=progress)
    assert curve(outcome.summary) == curve(simulated)


def silo_file(folder: Path, name: str, kind: str) -> dict[str, Any]:
    model = {
        "checkpoint": str(folder / FILES[name]),
        "arch": "torchvision:resnet18",
        "preprocessing": "imagenet",
    }
    return {
        "name": name,
        "data": f"folder:{folder}/{name}",
        "model": model if kind == "all" else {"weights": str(folder / "public.pt")},
        "share": {"teacher": "weights" if kind == "all" else "none", "class_counts": True},
        "approve": {"study": "any"},
        "threads": 1,  # as simulated silos have
        "audit": "audit.jsonl",
    }
