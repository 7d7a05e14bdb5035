"""A study on a Ray cluster of two nodes: both take part, and the curves are the inline engine's.

Each node has a network namespace and a cache of its own, and the second one none of the data. That
needs root.
"""

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

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedkd.engines.processes import free_port

pytestmark = pytest.mark.ray

PROGRAMS = Path(sys.executable).parent
PATIENCE = 900
STUDY = """
name: tiny
data: {source: "npz:data.npz", train_size: 240, transfer: {size: 60, labelled: false}}
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


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Cluster:
    """Two Ray nodes of one processor each, in namespaces of this machine, and their processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mark = uuid.uuid4().hex
        self.namespaces = [f"fr{self._mark[:6]}{end}" for end in "ab"]
        self._host = f"10.{77 + int(self._mark[:2], 16) % 100}.{int(self._mark[2:4], 16)}"
        self.address = f"{self._host}.1:{free_port()}"
        self.environment = {
            **{key: value for key, value in os.environ.items() if "proxy" not in key.lower()},
            "FEDKD_TEST": self._mark,
            # Ray's processes rename themselves, which by default hides their environment.
            "SPT_NOENV": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }

    def start(self) -> None:
        first, second = self.namespaces
        for name in self.namespaces:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", first, "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", second)
        for number, name in enumerate(self.namespaces, 1):
            ip("-n", name, "addr", "add", f"{self._host}.{number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        _, _, port = self.address.partition(":")
        folder = str(self._folder)
        head = ["--head", "--port", port, "--include-dashboard", "false", "--temp-dir", folder]
        for number, how in enumerate((head, ["--address", self.address])):
            own = ["--node-ip-address", f"{self._host}.{number + 1}", "--num-cpus", "1"]
            subprocess.run(
                self.inside(number, PROGRAMS / "ray", "start", *how, *own, "--disable-usage-stats"),
                env={**self.environment, "FEDKD_CACHE_DIR": str(self.cache(number))},
                check=True,
                capture_output=True,
                timeout=PATIENCE,
                cwd=folder,
            )

    def inside(self, number: int, *command: str | Path) -> list[str | Path]:
        """Return a command that runs in the namespace of a node."""
        return ["ip", "netns", "exec", self.namespaces[number], *command]

    def cache(self, number: int) -> Path:
        return self._folder / f"cache-{number}"

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
                    parent = int(status.read_text().rpartition(")")[2].split()[1])
                    # A worker that is just being started may be the child of another process.
                    if "raylet" in Path(f"/proc/{parent}/comm").read_text():
                        parents.add(parent)
                except OSError:
                    continue
        return parents

    def end(self) -> None:
        # Some of Ray's processes do not end when they are asked to.
        for number, patience in ((signal.SIGTERM, 3), (signal.SIGKILL, 15)):
            deadline = time.monotonic() + patience
            while (pids := self.processes()) and time.monotonic() < deadline:
                for pid in pids:
                    try:
                        os.kill(pid, number)
                    except OSError:
                        continue
                time.sleep(0.2)
        for name in self.namespaces:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the program ip")
    # Not in tmp_path: Ray's sockets lie in it, and their paths must be short.
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="r"))
    made = Cluster(folder)
    try:
        made.start()
        yield made
    finally:
        made.end()
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
    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=digits.target)
    fedkd = [sys.executable, "-m", "fedkd.cli"]
    cluster.environment |= {"RAY_ADDRESS": cluster.address}
    doctor = subprocess.run(
        cluster.inside(0, *fedkd, "doctor"),
        env={**cluster.environment, "FEDKD_CACHE_DIR": str(tmp_path / "cache-ray")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert doctor.stdout.count("(1 cores, 0 GPUs)") == 2, doctor.stdout
    running = {}
    for engine in ("ray", "inline"):
        arguments = ("--engine", engine, "--fresh", "--out", engine)
        # Both run at once: nothing that one writes may serve the other.
        cache = {"FEDKD_CACHE_DIR": str(tmp_path / f"cache-{engine}")}
        with (tmp_path / f"{engine}.log").open("w") as log:
            running[engine] = subprocess.Popen(
                cluster.inside(0, *fedkd, "compare", "study.yaml", *arguments),
                cwd=tmp_path,
                env={**cluster.environment, **cache},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
    nodes: set[int] = set()
    deadline = time.monotonic() + PATIENCE
    while running["ray"].poll() is None and time.monotonic() < deadline:
        nodes |= cluster.busy_nodes()
        time.sleep(0.1)
    running["ray"].kill()
    for engine, process in running.items():
        assert process.wait(PATIENCE) == 0, (tmp_path / f"{engine}.log").read_text()
    assert len(nodes) == 2, "silos ran on one node alone"
    assert curves(tmp_path / "ray") == curves(tmp_path / "inline")
    assert len(list((tmp_path / "cache-ray" / "pretrained").iterdir())) == 4
    for number in range(2):
        assert not any(cluster.cache(number).glob("*/*")), "a node decoded or trained again"
