"""The files in experiments/examples: each is used by its name from a folder outside the project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TOP = Path(__file__).parents[2]
EXAMPLES = TOP / "experiments" / "examples"


def compare(folder: Path, study: str, *options: str) -> dict[str, Any]:
    """Run a study in a folder and return its summary."""
    done = subprocess.run(
        [sys.executable, "-m", "fedkd.cli", "compare", study, "--json", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(TOP), "FEDKD_CACHE_DIR": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def run_of(summary: dict[str, Any], arm: str) -> dict[str, Any]:
    (run,) = [run for run in summary["runs"] if run["arm"] == arm]
    return run


def measured(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a run's curve without its seconds."""
    return [{k: v for k, v in point.items() if k != "seconds"} for point in run["curve"]]


# What makes the study of examples.yaml run in seconds.
SHORT = [
    *("--set", "rounds.max=2", "--set", "rounds.stop=budget", "--set", "pretraining.epochs=3"),
    *("--set", "data.options.images=400", "--set", "data.transfer.size=60"),
]
NO_PENALTY = (
    "arms.fedavg-no-penalty={start: random, rounds: {local_loss: 'prox_entropy:prox_entropy', "
    "mu: 0, options: {entropy: 0}}}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a scratch folder with a copy of every example, and nothing else."""
    folder = tmp_path_factory.mktemp("scratch")
    for file in EXAMPLES.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def summary(folder: Path) -> dict[str, Any]:
    return compare(folder, "examples.yaml", *SHORT, "--set", NO_PENALTY)


def test_the_source_gives_the_images(summary: dict[str, Any]) -> None:
    assert summary["classes"] == [f"at {degrees} degrees" for degrees in (0, 72, 144, 216, 288)]
    # 80 test images, 32 for validation and 60 for transfer are not in silos.
    assert sum(silo["num_examples"] for silo in summary["silos"]) == 400 - 80 - 32 - 60


def test_the_partition_gives_the_sizes(summary: dict[str, Any]) -> None:
    shares = np.array([rank**-1.2 for rank in range(1, 6)])
    sizes = [silo["num_examples"] for silo in summary["silos"]]
    assert np.abs(np.array(sizes) - 228 * shares / shares.sum()).max() <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_the_local_loss_trains_the_silos(summary: dict[str, Any]) -> None:
    plain, own = (measured(run_of(summary, arm)) for arm in ("fedavg", "fedavg-prox-entropy"))
    assert own[0] == plain[0]
    assert own[1] != plain[1]
    assert measured(run_of(summary, "fedavg-no-penalty")) == plain


def test_the_method_distils_the_student(summary: dict[str, Any]) -> None:
    plain, own = (run_of(summary, arm) for arm in ("fedkd", "fedkd-annealed"))
    assert own["notes"]["mean_weights"] == plain["notes"]["mean_weights"]
    assert measured(own)[0] != measured(plain)[0]


def test_an_edit_of_an_example_makes_new_runs_of_the_arms_that_use_it(
    folder: Path, summary: dict[str, Any]
) -> None:
    assert not any(run["cached"] for run in summary["runs"])
    file = folder / "prox_entropy.py"
    text = file.read_text()
    file.write_text(text.replace("- entropy *", "+ entropy *"))
    try:
        again = compare(folder, "examples.yaml", *SHORT, "--set", NO_PENALTY)
    finally:
        file.write_text(text)
    cached = {run["arm"] for run in again["runs"] if run["cached"]}
    assert cached == {"fedavg", "fedkd", "fedkd-annealed"}
    arm = "fedavg-prox-entropy"
    assert measured(run_of(again, arm)) != measured(run_of(summary, arm))
