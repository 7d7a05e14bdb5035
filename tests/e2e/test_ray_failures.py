"""On Flower's Simulation Runtime a fault ends the study or fails its arm as it does inline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ray

PATIENCE = 600
STUDY: dict[str, Any] = {
    "name": "faults",
    "data": {"source": "digits", "train_size": 150, "transfer": {"size": 60}},
    "partition": {"scheme": "iid", "silos": 2},
    "pretraining": {"epochs": 1},
    "rounds": {"max": 2, "stop": "budget"},
    "targets": [0.99],
    "model": {"arch": "mlp"},
    "baselines": [],
    "seeds": [0],
    "engine": {"name": "ray", "workers": 2},
}
CODE = """
def plain(num_classes, in_channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))

# What follows stands in for what no study can do: it changes fedkd in the silos' processes.

def of_silos(change):
    def build(num_classes, in_channels, image_size):
        if "clients.simulated" in sys.modules:
            import clients.silo
            import clients.simulated
            change(clients)
        return plain(num_classes, in_channels, image_size)
    return build

def make_ill(clients):
    honest = clients.silo.Silo

    class Ill(honest):
        def train(self, *arguments):
            if self.name == "silo-1":
                raise ValueError("ill")
            return honest.train(self, *arguments)

    if clients.simulated.Silo is honest:
        clients.simulated.Silo = Ill

def break_ours(clients):
    def broken(*_, **__):
        raise ZeroDivisionError("a fault of ours")
    clients.silo.train_locally = broken

def kill(clients):
    clients.silo.train_locally = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)

ill, faulty, killed = of_silos(make_ill), of_silos(break_ours), of_silos(kill)
"""


def compare(folder: Path, code: str, arms: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    (folder / "ownfaults.py").write_text(code)
    (folder / "study.json").write_text(json.dumps({**STUDY, "arms": arms}))
    return subprocess.run(
        [sys.executable, "-m", "fedkd.cli", "compare", "study.json", "--fresh", "--out", "out"],
        cwd=folder,
        env={**os.environ, "FEDKD_CACHE_DIR": str(folder / "cache")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_a_users_code_fails_its_arm_and_a_silo_of_their_own_its_reply(
    raising: str, tmp_path: Path
) -> None:
    method = {"epochs": 1, "method": "ownfaults:method"}
    done = compare(
        tmp_path,
        raising + CODE,
        {
            "raises": {"start": "random", "arch": "ownfaults:raises"},
            "fedkd-method": {"start": "consolidated", "consolidation": method},
            # The silos' processes know the class from the first round on at the latest.
            "ill": {"start": "random", "arch": "ownfaults:ill", "rounds": {"max": 3}},
        },
    )
    assert done.returncode == 1, done.stderr
    (path,) = tmp_path.glob("out/*/*/summary.json")
    summary = json.loads(path.read_text())
    reasons = {each["arm"]: each["reason"] for each in summary["failures"]}
    assert reasons.keys() == {"raises", "fedkd-method"}
    assert reasons["raises"] == (
        "architecture ownfaults:raises raised ArithmeticError: not today (ownfaults.py, line 13)"
    )
    assert "method ownfaults:method raised KeyError: 'loss' (ownf" in reasons["fedkd-method"]
    assert "ownfaults:raises raised ArithmeticError" in " ".join(done.stderr.split())
    (ill,) = summary["runs"]
    assert {entry["silo"] for entry in ill["quarantined"]} == {"silo-1"}
    assert {entry["reason"] for entry in ill["quarantined"]} == {"it failed: ValueError: ill"}
    assert ill["stopped"] == "budget"


@pytest.mark.parametrize(
    ("arch", "told"),
    [
        ("faulty", ["ZeroDivisionError: a fault of ours", "in broken", "train_locally("]),
        ("killed", ["a process of the simulation failed or was lost", "Actor"]),
    ],
)
def test_a_fault_of_ours_and_a_lost_worker_end_the_study(
    arch: str, told: list[str], raising: str, tmp_path: Path
) -> None:
    done = compare(
        tmp_path,
        raising + CODE,
        {
            "fedavg": {"start": "random", "arch": f"ownfaults:{arch}"},
            "later": {"start": "random"},
        },
    )
    assert done.returncode == 1, done.stderr
    assert "RemoteError" in done.stderr
    for words in told:
        assert words in done.stderr
    assert not list(tmp_path.glob("out/*/*/summary.json"))
    assert not list(tmp_path.glob("out/*/*/later"))
