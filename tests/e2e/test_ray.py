"""Flower's Simulation Runtime gives what the inline engine gives, and leaves nothing behind."""

import contextlib
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

STUDY = """
name: tiny
data: {source: digits, train_size: 240, transfer: {size: 60, labelled: false}}
partition: {scheme: label-dirichlet, silos: 3, alpha: 0.5}
pretraining: {epochs: 2}
targets: [0.99]
baselines: [fedavg]
seeds: [0]
rounds: {max: 14}
model: {arch: "ownmodels.nets:with_dropout"}
arms:
  fedavg: {start: average, strategy: fedadam}
  fedkd:
    start: consolidated
    consolidation:
      weighting: familiarity
      teachers: both
      familiarity: {density: pooled, basis: patches}
      mixed_inputs: 2
      epochs: 2
  fedkd-discriminant:
    arch: patch-features
    start: consolidated
    consolidation:
      weighting: familiarity
      student: lda-head
      trust: validation
      epochs: 0
      familiarity: {density: pooled, basis: patches, filters: 200}
    rounds: {max: 3, schedule: cosine}
"""
NETS = """
from torch import nn

def with_dropout(*, num_classes, in_channels, image_size):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(in_channels * image_size**2, 32), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(32, num_classes),
    )
"""
PATIENCE = 600
"""Seconds before a wait is given up; no test measures time."""


@dataclass
class Place:
    """A folder for a study on one engine, whose processes all carry a mark."""

    folder: Path
    temporary: Path
    engine: str
    mark: str = field(default_factory=lambda: f"FEDKD_TEST={uuid.uuid4().hex}")

    def start(self) -> subprocess.Popen[str]:
        (self.folder / "study.yaml").write_text(STUDY)
        return self.compare("study.yaml", "--engine", self.engine, "--fresh", "--out", "out")

    def resume(self) -> subprocess.Popen[str]:
        return self.compare("--resume", "out/tiny")

    def compare(self, *arguments: str) -> subprocess.Popen[str]:
        name, _, value = self.mark.partition("=")
        return subprocess.Popen(
            [sys.executable, "-m", "fedkd.cli", "compare", *arguments],
            cwd=self.folder,
            env={
                **os.environ,
                name: value,
                "FEDKD_CACHE_DIR": str(self.folder / "cache"),
                "TMPDIR": str(self.temporary),
                "PYTHONPATH": os.pathsep.join(
                    [str(self.folder / "lib"), os.environ.get("PYTHONPATH", "")]
                ),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def summary(self) -> dict[str, Any]:
        (path,) = self.folder.glob("out/*/*/summary.json")
        read: dict[str, Any] = json.loads(path.read_text())
        return read

    def num_rounds(self) -> int:
        curves = self.folder.glob("out/*/*/*/*/rounds.jsonl")
        return sum(path.read_text().count("\n") for path in curves)

    def wait_for_round(self, process: subprocess.Popen[str], number: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.num_rounds() < number:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "no round was written"
            time.sleep(0.05)

    def processes(self) -> dict[int, str]:
        """Name all processes that carry the mark; ended ones have no environment left."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
                if self.mark.encode() in environment:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(entry.name)] = command.decode()
            except OSError:
                continue
        return found

    def left_over(self) -> dict[int | str, str]:
        """Return processes and temporary folders of the study."""
        return {**self.processes(), **{p.name: "folder" for p in self.temporary.glob("fedkd-*")}}

    def end(self) -> None:
        """Kill whatever a test that failed has left."""
        deadline = time.monotonic() + 30
        while (pids := self.processes()) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)


@contextlib.contextmanager
def make_place(folder: Path, engine: str) -> Iterator[Place]:
    package = folder / "lib" / "ownmodels"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(NETS)
    # Not in the test's folder: Ray's sockets lie in it, and their paths must be short.
    temporary = Path(tempfile.mkdtemp(dir="/tmp", prefix="t"))
    place = Place(folder, temporary, engine)
    try:
        yield place
    finally:
        place.end()
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass
class Disturbed:
    """What was seen of a study on Ray that was interrupted, killed and went on each time.

    Every start of Ray takes long, so that one study serves all tests.
    """

    inline: Place
    ray: Place
    killed: dict[int | str, str]
    interrupted: dict[int | str, str]
    ended: dict[int | str, str]
    code: int
    printed: str
    summary: dict[str, Any]


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disturbed]:
    folder = tmp_path_factory.mktemp("disturbed")
    # They share no folder, and so both run at once.
    with (
        make_place(folder / "inline", "inline") as inline,
        make_place(folder / "ray", "ray") as ray,
    ):
        aside = inline.start()
        process = ray.start()
        ray.wait_for_round(process, 15 + 4)  # all of the first arm, and some of the second
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=PATIENCE)
        code, interrupted, summary = process.returncode, ray.left_over(), ray.summary()
        rounds = ray.num_rounds()
        process = ray.resume()
        ray.wait_for_round(process, rounds + 2)
        before = ray.left_over()
        assert before
        process.kill()  # the resumed study begins while the server of this one may yet write
        process.communicate()
        process = ray.resume()
        deadline = time.monotonic() + 60
        while (killed := common(before, ray.left_over())) and time.monotonic() < deadline:
            time.sleep(0.1)
        finish(process)
        ended = ray.left_over()
        finish(aside)
        yield Disturbed(inline, ray, killed, interrupted, ended, code, printed, summary)


def common(before: dict[int | str, str], now: dict[int | str, str]) -> dict[int | str, str]:
    return {key: name for key, name in before.items() if key in now}


def finish(process: subprocess.Popen[str]) -> None:
    printed, _ = process.communicate(timeout=2 * PATIENCE)
    assert process.returncode == 0, printed


def test_a_killed_study_leaves_nothing(disturbed: Disturbed) -> None:
    assert not disturbed.killed


def test_an_interrupted_run_keeps_its_rounds_and_leaves_nothing(disturbed: Disturbed) -> None:
    assert disturbed.code == 130, disturbed.printed
    assert not disturbed.interrupted
    before, run = disturbed.summary["runs"]
    assert before["stopped"] == "budget"
    assert run["stopped"] == "interrupted"
    assert run["curve"]


def test_ray_and_inline_give_equal_curves_and_leave_nothing(disturbed: Disturbed) -> None:
    """However often the study on Ray was disturbed: see :class:`Disturbed`."""
    assert not disturbed.ended
    assert not disturbed.inline.left_over()
    summary, other = disturbed.ray.summary(), disturbed.inline.summary()
    assert curves(summary) == curves(other)
    assert [len(run["curve"]) for run in summary["runs"]] == [15, 15, 4]
    assert [run["engine"] for run in summary["runs"]] == ["ray"] * 3
    assert [run["cached"] for run in summary["runs"]] == [False] * 3
    for ray, inline in zip(summary["runs"], other["runs"], strict=True):
        assert ray["instruments"] == inline["instruments"]
        assert ray["notes"] == inline["notes"]


def curves(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {**point, "arm": run["arm"], "seconds": None}
        for run in summary["runs"]
        for point in run["curve"]
    ]
