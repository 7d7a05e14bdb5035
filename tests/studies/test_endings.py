"""How a command ends by a signal or without disk, memory or files: in words, with whole files."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

WAIT = 60.0
"""Seconds before a wait is given up; no test measures time."""
ENDLESS = {"rounds/max": 100_000, "targets": [0.9999]}
BLOCKING = """
import pathlib, threading
from torch import nn

class Blocks(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.layer = nn.Linear(width, classes)

    def forward(self, x):
        if self.training and len(x) > 2:  # what is tried before a study has two images
            pathlib.Path("blocked").touch()
            threading.Event().wait()
        return self.layer(x.flatten(1))

def blocks(num_classes, in_channels, image_size):
    return Blocks(in_channels * image_size**2, num_classes)
"""


@pytest.fixture
def begin(start: Any, tmp_path: Path, make_data: Any) -> Callable[..., Any]:
    """Return a function that starts ``compare`` on the tiny study, with changes."""

    def begin(
        changes: dict[str, Any] | None = None, *, before: str = "", fresh: bool = True
    ) -> Any:
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(make_data(changes or {})))
        arguments = ["compare", "study.yaml", "--out", "out", *(["--fresh"] if fresh else [])]
        return start(tmp_path, *arguments, cache=tmp_path / "cache", before=before)

    return begin


def wait(process: Any, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not holds():
        assert process.returncode is None, process.communicate()
        assert time.monotonic() < deadline, "it does not get on"
        time.sleep(0.005)


def end(process: Any, folder: Path, *codes: int) -> str:
    """Wait for the end, and return what was printed last."""
    printed = "".join(process.communicate(timeout=WAIT))
    assert "Traceback" not in printed
    assert process.returncode in codes, printed
    assert not [path for path in folder.rglob("*") if path.name.endswith((".part", ".tmp"))]
    return printed.rstrip("\n").rpartition("\n")[2]


@pytest.mark.parametrize(
    "name", ["SIGINT", *(pytest.param(n, marks=pytest.mark.slow) for n in ("SIGTERM", "SIGHUP"))]
)
def test_a_signal_ends_a_study_between_whole_files(name: str, begin: Any, tmp_path: Path) -> None:
    process = begin(ENDLESS)
    wait(process, lambda: any(p.stat().st_size for p in tmp_path.rglob("rounds.jsonl")))
    number = getattr(signal, name)
    os.kill(process.pid, number)
    last = end(process, tmp_path, 128 + number)
    (run,) = tmp_path.glob("out/tiny/*")
    assert last == f"Interrupted. Resume with: fedkd compare --resume out/tiny/{run.name}"
    assert (run / "summary.json").is_file()


@pytest.mark.parametrize("signals", [["SIGINT"], ["SIGINT", "SIGINT"], ["SIGHUP", "SIGTERM"]])
def test_a_computation_that_cannot_be_interrupted_holds_up_no_end(
    signals: list[str], begin: Any, tmp_path: Path
) -> None:
    """The second signal ends it at once, and without one so does a limit, here half a second."""
    (tmp_path / "blocking.py").write_text(BLOCKING)
    limit = 0.5 if len(signals) == 1 else 3600
    before = f"import fedkd.util.interrupt as i; i.LIMIT_SECONDS = {limit}"
    arms = {"fedavg": {"start": "random"}}
    process = begin({"model/arch": "blocking:blocks", "arms": arms}, before=before)
    wait(process, (tmp_path / "blocked").exists)
    os.kill(process.pid, getattr(signal, signals[0]))
    while len(signals) > 1 and process.returncode is None:  # one that comes at once is lost
        os.kill(process.pid, getattr(signal, signals[1]))
        time.sleep(0.05)
    # The system may deliver two signals that come at once in either order.
    last = end(process, tmp_path, *(128 + getattr(signal, name) for name in signals))
    assert last.startswith("Interrupted. Resume with: fedkd compare --resume out/tiny/")


def test_what_the_output_cannot_hold_is_replaced(begin: Any, tmp_path: Path) -> None:
    for encoding in ("ascii", "cp1252"):
        process = begin(
            {"rounds/max": 1},
            fresh=False,
            before=f"os.environ['PYTHONIOENCODING'] = {encoding!r}",
        )
        out, err = process.communicate(timeout=WAIT)
        assert process.returncode == 0, err
        assert "fedavg" in out
        assert ">= and <= mark the resulting bounds" in out
        assert (out + err).isascii() or encoding == "cp1252"


LIMITS = {
    "files": (
        # No number below is free, so that exactly so many files can be opened.
        "RLIMIT_NOFILE, 2 * (max(os.dup(0) for _ in range(200)) + 1 + 4,)",
        "too many open files: raise the limit (ulimit -n)",
    ),
    "disk": ("RLIMIT_FSIZE, (1500, 1500)", "File too large"),
    "memory": (
        "RLIMIT_AS, 2 * (int(open('/proc/self/statm').read().split()[0]) * 4096 + (300 << 20),)",
        "fedkd: not enough memory: lower engine.workers",
    ),
}


@pytest.mark.parametrize("what", LIMITS)
def test_what_runs_out_is_told_in_a_sentence(what: str, begin: Any, tmp_path: Path) -> None:
    limit, expected = LIMITS[what]
    before = f"import resource; resource.setrlimit(resource.{limit})"
    arch = "torchvision:vgg16" if what == "memory" else "mlp"
    side = 32 if what == "memory" else 8
    process = begin({"model/arch": arch, "data/image_size": side}, before=before)
    last = end(process, tmp_path, 1)
    assert expected in last


@pytest.mark.slow
def test_sixty_four_open_files_are_enough(begin: Any, tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))"
    end(begin({"rounds/max": 1}, before=limit), tmp_path, 0)


NOBODY = """
def unknown(_):
    raise KeyError("no such user")
import pwd
pwd.getpwuid = pwd.getpwnam = unknown
for name in ("HOME", "FEDKD_CACHE_DIR", "XDG_CACHE_HOME", "FLWR_HOME"):
    os.environ.pop(name, None)
"""


@pytest.mark.parametrize("command", ["compare study.yaml", "cache clear", "doctor"])
def test_a_user_without_a_home_is_told_what_to_set(
    command: str, start: Any, tmp_path: Path, make_data: Any
) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(make_data()))
    process = start(tmp_path, *command.split(), cache=tmp_path, before=NOBODY)
    printed = " ".join("".join(process.communicate(timeout=WAIT)).split())
    assert "Traceback" not in printed
    assert process.returncode == (1 if command == "doctor" else 2), printed
    assert "set HOME, or FEDKD_CACHE_DIR to a folder" in printed
