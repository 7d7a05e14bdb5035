"""Flower's Simulation Runtime gives what the inline engine gives, and leaves nothing behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ray

FEDKD = Path(sys.executable).parent / "fedkd"
BASE = """
name: tiny
data: {source: digits, train_size: 240, transfer: {size: 60, labelled: false}}
partition: {scheme: label-dirichlet, silos: 3, alpha: 0.5}
pretraining: {epochs: 2}
targets: [0.99]
baselines: [fedavg]
seeds: [0]
"""
TWO_STARTS = """
model: {arch: cnn}
rounds: {max: 2}
arms:
  fedavg: {start: random}
  fedkd: {start: consolidated, consolidation: {weighting: familiarity, epochs: 2}}
"""
OWN_MODEL = """
rounds: {max: 2}
model: {arch: "ownmodels.nets:with_dropout"}
arms:
  fedavg: {start: average}
  fedkd: {start: consolidated, consolidation: {weighting: familiarity, epochs: 2}}
"""
NETS = """
from torch import nn

def with_dropout(*, num_classes, in_channels, image_size):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(in_channels * image_size**2, 32), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(32, num_classes),
    )
"""
ENDLESS = TWO_STARTS.replace(
    "fedavg: {start: random}", "fedavg: {start: random, rounds: {max: 5000}}"
)
PATIENCE = 180


@dataclass
class Place:
    """A folder to work in, whose processes all carry a mark."""

    folder: Path
    temporary: Path
    mark: str = field(default_factory=lambda: f"FEDKD_TEST={uuid.uuid4().hex}")

    def start(self, study: str, engine: str) -> subprocess.Popen[str]:
        (self.folder / "study.yaml").write_text(BASE + study)
        return self.compare("study.yaml", "--engine", engine, "--fresh", "--out", engine)

    def resume(self, engine: str) -> subprocess.Popen[str]:
        return self.compare("--resume", f"{engine}/tiny")

    def compare(self, *arguments: str) -> subprocess.Popen[str]:
        name, _, value = self.mark.partition("=")
        return subprocess.Popen(
            [FEDKD, "compare", *arguments],
            cwd=self.folder,
            env={
                **os.environ,
                name: value,
                "FEDKD_CACHE_DIR": str(self.folder / "cache"),
                "TMPDIR": str(self.temporary),
                "PYTHONPATH": str(self.folder / "lib"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def summary(self, engine: str) -> dict[str, Any]:
        (path,) = (self.folder / engine).glob("*/*/summary.json")
        read: dict[str, Any] = json.loads(path.read_text())
        return read

    def curves(self, engine: str) -> list[dict[str, Any]]:
        return [
            {**point, "arm": run["arm"], "seconds": None}
            for run in self.summary(engine)["runs"]
            for point in run["curve"]
        ]

    def num_rounds(self) -> int:
        curves = (self.folder / "ray").glob("*/*/*/*/rounds.jsonl")
        return sum(path.read_text().count("\n") for path in curves)

    def wait_for_round(self, process: subprocess.Popen[str], number: int = 1) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.num_rounds() < number:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "no round was written"
            time.sleep(0.1)

    def processes(self) -> list[str]:
        """Name all processes that carry the mark; ended ones have no environment left."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
                if self.mark.encode() in environment:
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found

    def left_over(self) -> list[str]:
        return [*self.processes(), *(path.name for path in self.temporary.glob("fedkd-*"))]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    package = tmp_path / "lib" / "ownmodels"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(NETS)
    # Not in tmp_path: Ray's sockets lie in it, and their paths must be short.
    temporary = Path(tempfile.mkdtemp(dir="/tmp", prefix="t"))
    yield Place(tmp_path, temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def test_ray_and_inline_give_equal_curves_and_ray_leaves_nothing(place: Place) -> None:
    for engine in ("inline", "ray"):
        process = place.start(OWN_MODEL, engine)
        printed, _ = process.communicate(timeout=2 * PATIENCE)
        assert process.returncode == 0, printed
        assert not place.left_over()
    assert place.curves("ray") == place.curves("inline")
    assert {run["engine"] for run in place.summary("ray")["runs"]} == {"ray"}


def test_an_interrupted_run_keeps_its_rounds_and_leaves_nothing(place: Place) -> None:
    process = place.start(ENDLESS, "ray")
    place.wait_for_round(process)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, printed
    assert not place.left_over()
    (run,) = place.summary("ray")["runs"]
    assert run["stopped"] == "interrupted"
    assert run["curve"]


def test_a_killed_study_leaves_nothing(place: Place) -> None:
    process = place.start(ENDLESS, "ray")
    place.wait_for_round(process)
    assert place.processes()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while place.left_over() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not place.left_over()


def test_a_study_killed_twice_goes_on_to_the_curves_of_the_inline_engine(place: Place) -> None:
    study = TWO_STARTS.replace("random}", "random, strategy: fedadam}").replace(
        "max: 2}", "max: 10}"
    )
    inline = place.start(study, "inline")
    assert inline.wait(timeout=PATIENCE) == 0, inline.communicate()[0]
    for attempt, number in enumerate((4, 15)):
        process = place.resume("ray") if attempt else place.start(study, "ray")
        place.wait_for_round(process, number)
        process.kill()  # the resumed study begins while the server of this one may yet write
        process.communicate()
    process = place.resume("ray")
    printed, _ = process.communicate(timeout=2 * PATIENCE)
    assert process.returncode == 0, printed
    assert place.curves("ray") == place.curves("inline")
    summary = place.summary("ray")
    assert [run["cached"] for run in summary["runs"]] == [False, False]
    for run, other in zip(summary["runs"], place.summary("inline")["runs"], strict=True):
        assert run["instruments"] == other["instruments"]
        assert run["notes"] == other["notes"]
    assert not place.left_over()
