"""A study on a Ray cluster of two nodes: both take part, and the curves are the inline engine's."""

from __future__ import annotations

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
from pathlib import Path
from typing import Any

import pytest

from experiments.engines.processes import free_port

pytestmark = pytest.mark.ray

PROGRAMS = Path(sys.executable).parent
PATIENCE = 900
STUDY = """
name: tiny
data: {source: digits, train_size: 240, transfer: {size: 60, labelled: false}}
partition: {scheme: label-dirichlet, silos: 4, alpha: 0.5}
model: {arch: cnn}
pretraining: {epochs: 2}
rounds: {max: 2}
targets: [0.99]
baselines: [fedavg]
seeds: [0]
arms:
  fedavg: {start: random}
  fedkd: {start: consolidated, consolidation: {weighting: familiarity, epochs: 2}}
"""


class Cluster:
    """Two Ray nodes of one processor each on this machine, and all their processes."""

    def __init__(self, folder: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._mark = uuid.uuid4().hex
        self.environment = {
            **os.environ,
            "FEDKD_TEST": self._mark,
            # Ray's processes rename themselves, which by default hides their environment.
            "SPT_NOENV": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        _, _, port = self.address.partition(":")
        head = ["--head", "--port", port, "--include-dashboard", "false", "--temp-dir", str(folder)]
        for how in (head, ["--address", self.address]):
            subprocess.run(
                [PROGRAMS / "ray", "start", *how, "--num-cpus", "1", "--disable-usage-stats"],
                env=self.environment,
                check=True,
                capture_output=True,
                timeout=PATIENCE,
            )

    def processes(self) -> dict[int, str]:
        """Return ids and titles of all processes that carry the mark."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if f"FEDKD_TEST={self._mark}".encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().decode()
            except OSError:
                continue
        return found

    def busy_nodes(self) -> set[int]:
        """Return the parents of the processes that run silos: a raylet for each node."""
        parents = set()
        for pid, title in self.processes().items():
            if "ray::ClientAppActor" in title:
                status = Path(f"/proc/{pid}/stat")
                try:
                    parents.add(int(status.read_text().rpartition(")")[2].split()[1]))
                except OSError:
                    continue
        return parents

    def end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + 15
            while (pids := self.processes()) and time.monotonic() < deadline:
                for pid in pids:
                    try:
                        os.kill(pid, number)
                    except OSError:
                        continue
                time.sleep(0.5)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    # Not in tmp_path: Ray's sockets lie in it, and their paths must be short.
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="r"))
    started = None
    try:
        started = Cluster(folder)
        yield started
    finally:
        if started is not None:
            started.end()
        shutil.rmtree(folder, ignore_errors=True)


def curves(folder: Path) -> list[Any]:
    (path,) = folder.glob("*/*/summary.json")
    return [
        {**point, "arm": run["arm"], "seconds": None}
        for run in json.loads(path.read_text())["runs"]
        for point in run["curve"]
    ]


def test_two_nodes_give_the_curves_of_one_process(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    environment = {**cluster.environment, "FEDKD_CACHE_DIR": str(tmp_path / "cache")}
    command = [PROGRAMS / "fedkd", "compare", "study.yaml", "--fresh", "--out"]
    inline = subprocess.run(
        [*command, "inline"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert inline.returncode == 0, inline.stderr
    nodes: set[int] = set()
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            [*command, "ray", "--engine", "ray"],
            cwd=tmp_path,
            env={**environment, "RAY_ADDRESS": cluster.address},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < deadline:
            nodes |= cluster.busy_nodes()
            time.sleep(0.1)
        process.kill()
        log.seek(0)
        assert process.wait() == 0, log.read()
    assert len(nodes) == 2, "silos ran on one node alone"
    assert curves(tmp_path / "ray") == curves(tmp_path / "inline")
