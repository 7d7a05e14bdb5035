"""Measure the memory that a study of many large pictures takes, and count how often each is opened.

The pictures are made first. The same study then runs twice, with one picture changed in between:
``python -m experiments.bench.memory --pictures 20000 --side 224``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import yaml
from PIL import Image

_EVERY_SECONDS = 0.05
_CLASSES = ("east", "north", "south", "west")
_COUNTING = """
import atexit, json, os, sys
pictures, log, *arguments = sys.argv[1:]
opened = 0
def hook(event, values):
    global opened
    opened += event == "open" and str(values[0]).startswith(pictures)
sys.addaudithook(hook)
def write():
    with open(log, "w") as file:
        json.dump(opened, file)
atexit.register(write)
sys.argv = ["fedkd", *arguments]
from fedkd.cli import main
main()
"""


@dataclass(frozen=True)
class Use:
    """What one command took.

    Attributes:
        seconds: from its start to its end.
        peak_bytes: maximum of anonymous and shared memory over all its processes; pages of mapped
            files are not counted.
        opened: how often a picture was opened.
    """

    seconds: float
    peak_bytes: int
    opened: int


def make_pictures(folder: Path, count: int, side: int) -> None:
    """Write ``count`` RGB pictures: gradients whose direction is the class."""
    ramp = np.linspace(0, 160, side)

    def make(index: int) -> None:
        label = index % len(_CLASSES)
        random = np.random.default_rng(index)
        plane = np.broadcast_to(ramp if label % 2 else ramp[:, None], (side, side))
        plane = plane[::-1, ::-1] if label > 1 else plane
        tint = random.integers(0, 60, 3)
        coarse = random.integers(0, 36, (side // 8 + 1, side // 8 + 1, 1))
        noise = np.kron(coarse, np.ones((8, 8, 1), dtype=np.int64))[:side, :side]
        pixels = (plane[..., None] + tint + noise).clip(0, 255).astype(np.uint8)
        path = folder / _CLASSES[label] / f"{index:06}.jpg"
        Image.fromarray(pixels).save(path, quality=80)

    for name in _CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(make, range(count)))


def study_of(pictures: Path) -> dict[str, object]:
    """Return a study that pre-trains an MLP on every silo and goes on for two rounds."""
    return {
        "name": "memory",
        "data": {"source": f"folder:{pictures}", "transfer": {"size": 100}},
        "partition": {"scheme": "iid", "silos": 4},
        "model": {"arch": "mlp"},
        "pretraining": {"epochs": 1, "lr": 0.001},
        "rounds": {"max": 2, "local_epochs": 1, "lr": 0.001, "stop": "budget"},
        "targets": [0.5],
        "arms": {"fedavg": {"start": "random"}, "average": {"start": "average"}},
        "seeds": [0],
        "engine": {"name": "inline"},
    }


def run(study: Path, pictures: Path, out: Path) -> Use:
    """Run ``fedkd compare`` and watch its memory.

    Raises:
        RuntimeError: the command failed.
    """
    log = out.with_suffix(".opened")
    arguments: Sequence[object] = (pictures, log, "compare", study, "--out", out, "--fresh")
    begin = time.perf_counter()
    process = subprocess.Popen(  # noqa: S603 -- our own command
        [sys.executable, "-c", _COUNTING, *map(str, arguments)], stdout=subprocess.DEVNULL
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, _memory(process.pid))
        time.sleep(_EVERY_SECONDS)
    if process.returncode:
        raise RuntimeError(f"fedkd compare ended with {process.returncode}")
    opened = json.loads(log.read_text(encoding="utf-8"))
    return Use(time.perf_counter() - begin, peak, opened)


def measure(count: int, side: int, folder: Path) -> list[Use]:
    """Make pictures and run the study twice; before the second time one picture changes.

    Args:
        count: number of pictures.
        side: their height and width in pixels.
        folder: for pictures, cache and results.

    Returns:
        What each run took; a third run follows the change.
    """
    pictures, study = folder / "pictures", folder / "study.yaml"
    make_pictures(pictures, count, side)
    study.write_text(yaml.safe_dump(study_of(pictures)), encoding="utf-8")
    os.environ["FEDKD_CACHE_DIR"] = str(folder / "cache")
    uses = [run(study, pictures, folder / f"out-{turn}") for turn in range(2)]
    changed = pictures / _CLASSES[0] / "000000.jpg"
    Image.new("RGB", (side, side), "red").save(changed)
    return [*uses, run(study, pictures, folder / "out-2")]


def _memory(pid: int) -> int:
    """Return the anonymous and shared bytes of a process and its children."""
    total = 0
    try:
        main = psutil.Process(pid)
        for process in (main, *main.children(recursive=True)):
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
            for key in ("RssAnon", "RssShmem"):
                total += 1024 * int(fields.get(key, "0 kB").split()[0])
    except (psutil.Error, OSError):
        pass  # it ended meanwhile
    return total


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=224, help="height and width in pixels")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedkd-memory-") as folder:
        uses = measure(arguments.pictures, arguments.side, Path(folder))
    for what, use in zip(("first run", "again", "one picture changed"), uses, strict=True):
        sys.stdout.write(
            f"{what}: {use.seconds:.0f} s, at most {use.peak_bytes / 2**30:.2f} GiB of anonymous "
            f"and shared memory, {use.opened} pictures opened\n"
        )


if __name__ == "__main__":
    main()
