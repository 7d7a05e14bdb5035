"""Who runs the bench's workload, each as a whole command."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.bench.process import Taken, watch
from experiments.bench.workload import HERE, STUDY
from fedkd.engines.processes import free_port

RIVALS = HERE / "rivals"
BEST_LOOP = RIVALS / "best_loop.py"
BEST_LOOP_SHA256 = "dfe64327195b10ef1f30e0b5b1b0ca9a9c1516a927511ec396cb239810a23e80"
"""Of the hand-written loop as it was when the engine was first measured against it."""

PROGRAMS = Path(sys.executable).parent


@dataclass(frozen=True)
class Contender:
    """A way to run the workload.

    Attributes:
        name: in tables.
        describes: a phrase.
        run: takes an empty folder, the workload's file and the number of rounds.
    """

    name: str
    describes: str
    run: Callable[[Path, Path, int], Taken]


def contenders(cache: Path | None = None) -> list[Contender]:
    """Return all of them, in the order of a turn; fedkd keeps decoded images in ``cache``."""
    return [
        Contender("fedkd inline", "`fedkd compare --fresh`, one process", _fedkd(cache)),
        Contender(
            "fedkd inline bf16",
            "the same with `engine.precision=bf16`",
            _fedkd(cache, "--set", "engine.precision=bf16"),
        ),
        Contender("fedkd ray", "the same with `--engine ray`", _fedkd(cache, "--engine", "ray")),
        Contender("Flower on Ray", "Flower's quickstart for PyTorch, by `flwr run`", _run_flower),
        Contender(
            "bare loop", "plain PyTorch, silo after silo, two threads, DataLoader", _loop("bare")
        ),
        Contender(
            "best loop", "the best loop by hand: a silo a thread, channels-last", _loop("best")
        ),
    ]


def check_frozen() -> None:
    """Refuse to compare with a hand-written loop that has changed.

    Raises:
        ValueError: it has.
    """
    found = hashlib.sha256(BEST_LOOP.read_bytes()).hexdigest()
    if found != BEST_LOOP_SHA256:
        raise ValueError(
            f"{BEST_LOOP} is frozen but its SHA-256 is {found}: put it back, or freeze it anew "
            "and measure everything again"
        )


def fedkd(*arguments: str | Path, folder: Path, cache: Path | None = None) -> Taken:
    """Run a command of fedkd under watch, with a cache of its own."""
    environment = {"FEDKD_CACHE_DIR": str(cache or folder / "cache")}
    return watch(
        [PROGRAMS / "fedkd", *arguments],
        folder=folder,
        environment=environment,
        rounds=lambda: next(folder.glob("runs/*/*/*/seed-*/rounds.jsonl"), None),
    )


def _fedkd(cache: Path | None, *more: str) -> Callable[[Path, Path, int], Taken]:
    def run(folder: Path, workload: Path, num_rounds: int) -> Taken:  # noqa: ARG001 -- as all
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


def _loop(name: str) -> Callable[[Path, Path, int], Taken]:
    def run(folder: Path, workload: Path, num_rounds: int) -> Taken:
        log = folder / "rounds.jsonl"
        command: list[str | Path] = [
            sys.executable,
            RIVALS / f"{name}_loop.py",
            workload,
            log,
            str(num_rounds),
        ]
        return watch(command, folder=folder, rounds=lambda: log)

    return run


def _run_flower(folder: Path, workload: Path, num_rounds: int) -> Taken:
    """Run Flower's tutorial on a SuperLink of its own, which `flwr run` starts as for a user."""
    app, home, log = folder / "tutorial", folder / "home", folder / "rounds.jsonl"
    shutil.copytree(RIVALS / "flower-app", app)
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
    return watch(command, folder=folder, environment=environment, rounds=lambda: log)
