"""The programs that run the bench's workload, each as a whole command."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from experiments.bench import pfl_environment
from experiments.bench.process import Measurement, measure
from experiments.bench.workload import HERE, STUDY
from fedkd.engines.processes import free_port

RIVALS = HERE / "rivals"
BEST_LOOP = RIVALS / "best_loop.py"
BEST_LOOP_SHA256 = "b80bbd1646bc7f6512929fba7d43ebc7bf5e9e640a840c8791bf4f87277351c5"
"""Hash of the hand-written loop, whose networks are in ``networks.py``."""

PFL = "pfl-research"
PROGRAMS = Path(sys.executable).parent


@dataclass(frozen=True)
class Contender:
    """A way to run the workload.

    Attributes:
        name: for tables.
        description: a phrase.
        run: takes an empty folder, the workload's file and the number of rounds.
    """

    name: str
    description: str
    run: Callable[[Path, Path, int], Measurement]


def contenders(
    cache: Path | None = None, settings: Sequence[str] = (), *, python: Path | None = None
) -> list[Contender]:
    """Return all contenders, in the order of a turn.

    Args:
        cache: fedkd's cache folder.
        settings: changes of the study.
        python: of the environment of pfl-research; without one it takes no part.
    """
    changes = [part for change in settings for part in ("--set", change)]
    fedkd_with = partial(_fedkd, cache, *changes)
    pfl = Contender(PFL, f"version {pfl_environment.VERSION}, one process", _loop("pfl", python))
    return [
        Contender("fedkd inline", "`fedkd compare --fresh`, one process", fedkd_with()),
        Contender(
            "fedkd inline bf16",
            "the same with `engine.precision=bf16`",
            fedkd_with("--set", "engine.precision=bf16"),
        ),
        Contender("fedkd ray", "the same with `--engine ray`", fedkd_with("--engine", "ray")),
        *([pfl] if python else []),
        Contender("Flower on Ray", "Flower's quickstart for PyTorch, by `flwr run`", _run_flower),
        Contender(
            "bare loop", "plain PyTorch, sequential silos, two threads, DataLoader", _loop("bare")
        ),
        Contender(
            "best loop",
            "the fastest by hand: one silo per thread, channels-last",
            _loop("best"),
        ),
    ]


def check_frozen() -> None:
    """Check that the hand-written loop has not changed.

    Raises:
        ValueError: it has changed.
    """
    digest = hashlib.sha256(BEST_LOOP.read_bytes()).hexdigest()
    if digest != BEST_LOOP_SHA256:
        raise ValueError(
            f"{BEST_LOOP} is frozen but its SHA-256 is {digest}: restore it, or update the hash "
            "and measure everything again"
        )


def fedkd(*arguments: str | Path, folder: Path, cache: Path | None = None) -> Measurement:
    """Run and measure a command of fedkd, with a cache of its own by default."""
    environment = {"FEDKD_CACHE_DIR": str(cache or folder / "cache")}
    return measure(
        [sys.executable, "-m", "fedkd.cli", *arguments],
        folder=folder,
        environment=environment,
        rounds=lambda: next(folder.glob("runs/*/*/*/seed-*/rounds.jsonl"), None),
    )


def _fedkd(cache: Path | None, *more: str) -> Callable[[Path, Path, int], Measurement]:
    def run(folder: Path, workload: Path, num_rounds: int) -> Measurement:  # noqa: ARG001 -- as all
        return fedkd(
            "compare",
            STUDY,
            "--fresh",
            "--set",
            f"rounds.max={num_rounds}",
            *more,
            folder=folder,
            cache=cache,
        )

    return run


def _loop(name: str, python: Path | None = None) -> Callable[[Path, Path, int], Measurement]:
    def run(folder: Path, workload: Path, num_rounds: int) -> Measurement:
        log = folder / "rounds.jsonl"
        command: list[str | Path] = [
            python or sys.executable,
            RIVALS / f"{name}_loop.py",
            workload,
            log,
            str(num_rounds),
        ]
        return measure(command, folder=folder, rounds=lambda: log)

    return run


def _run_flower(folder: Path, workload: Path, num_rounds: int) -> Measurement:
    """Run Flower's tutorial; `flwr run` starts a SuperLink, as it does for a user."""
    app, home, log = folder / "tutorial", folder / "home", folder / "rounds.jsonl"
    shutil.copytree(RIVALS / "flower-app", app)
    shutil.copy(RIVALS / "networks.py", app / "tutorial")
    home.mkdir()
    config = f"workload='{workload}' rounds-file='{log}' num-server-rounds={num_rounds}"
    environment = {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{PROGRAMS}:/usr/local/bin:/usr/bin:/bin",
    }
    simulation = "num-supernodes=10 client-resources-num-cpus=1"
    command: list[str | Path] = [PROGRAMS / "flwr", "run", app, "local", "--stream"]
    command += ["--run-config", config, "--federation-config", simulation]
    return measure(command, folder=folder, environment=environment, rounds=lambda: log)
