"""Measure one round of FedAvg of a large model on a SuperLink and two SuperNodes, with TLS.

``python -m experiments.bench.large --megabytes 100,1000`` prints one JSON object: for each size,
seconds of a round, bytes of a silo and round, peak memory of every process of the server and of one
silo (proportional set sizes; all silos are on this machine and share pages with the server), and
bytes on disk. The silos have 64 small pictures each: what takes time and memory is the model.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from experiments.bench.hosts import SILOS, quiet_console
from experiments.bench.process import proportional
from experiments.bench.workload import HERE
from fedkd.config.study_file import parse_study
from fedkd.engines.loopback import CONNECTION, Loopback
from fedkd.engines.processes import find_marked
from fedkd.errors import FedKDError
from fedkd.report.progress import StudyProgress
from fedkd.runner.run import run_study

SIZES = (50, 100, 300, 1000)
"""Megabytes of the models ``stack_...`` of ``models.py``."""
_PAUSE = 0.2
_PROGRAMS = ("flower-superlink", "flwr-serverapp", "flower-superexec", "flwr")


class Peaks(threading.Thread):
    """Samples memory by process and disk by file until it is ended.

    Args:
        folder: of the programs.

    Attributes:
        memory: most bytes of each process of the server, of one silo (``silo``), and of the server
            together (``server``).
        at_peak: the memory of all when the server's was highest.
        disk: most bytes of the run's state, of temporary files, of the SuperLink's database and of
            all else in the folder, if more than a megabyte.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._ending = threading.Event()
        self.memory: Counter[str] = Counter()
        self.disk: Counter[str] = Counter()
        self.at_peak: dict[str, int] = {}

    def run(self) -> None:
        """Take samples."""
        while not self._ending.wait(_PAUSE):
            now: Counter[str] = Counter({"fedkd compare": proportional(psutil.Process())})
            for process in find_marked(self._folder):
                now[_part_of(process)] += proportional(process)
            silos = {name: now.pop(name) for name in SILOS if name in now}
            now["server"] = now.total()
            now["silo"] = max(silos.values(), default=0)
            if now["server"] > self.memory["server"]:
                self.at_peak = dict(now)
            self.memory |= now  # of two counts, the higher
            sizes: Counter[str] = Counter()
            for folder, _, names in os.walk(self._folder):
                part = Path(folder).relative_to(self._folder).parts
                for name in names:
                    with suppress(OSError):  # it is gone already
                        sizes[part[0] if part else name] += Path(folder, name).stat().st_size
            self.disk |= Counter({name: size for name, size in sizes.items() if size > 2**20})

    def end(self) -> None:
        """Take no more samples."""
        self._ending.set()
        self.join()


def _part_of(process: psutil.Process) -> str:
    """Return the silo that a process works for, or which of the server's programs it is."""
    with suppress(psutil.Error):
        lines = [" ".join(each.cmdline()) for each in (process, *process.parents())]
        for silo in SILOS:
            if any(f"{silo}.yaml" in line for line in lines):
                return silo
        return next((each for each in _PROGRAMS if each in lines[0]), "other")
    return "other"


def measure(megabytes: int, root: Path) -> dict[str, Any]:
    """Run the round of a model of so many megabytes, and return what it took."""
    name, draw = f"experiments.bench.models:stack_{megabytes}", np.random.default_rng(0)
    silos = {silo: root / f"{silo}.yaml" for silo in SILOS}
    for silo, path in silos.items():
        images = draw.integers(0, 256, (64, 1, 8, 8), dtype=np.uint8)
        labels = np.arange(64) % 2
        np.savez(
            root / f"{silo}.npz",
            images=images,
            labels=labels,
            test_images=images[:8],
            test_labels=labels[:8],
        )
        file = {"name": silo, "data": f"npz:{root / silo}.npz", "share": {"teacher": "none"}}
        file |= {"audit": str(root / f"{silo}.jsonl"), "approve": {"study": "any"}, "allow": [name]}
        path.write_text(yaml.safe_dump(file | {"threads": 1}))
    study = {
        "name": "bench-large",
        "data": {"classes": ["0", "1"], "channels": 1, "image_size": 8},
        "partition": {"scheme": "deployed", "names": list(SILOS)},
        "model": {"arch": name},
        "rounds": {"max": 1, "stop": "budget", "local_epochs": 1, "lr": 0.01, "timeout": 3600},
        "targets": [0.99],
        "arms": {"fedavg": {"start": "random"}},
        "seeds": [0],
        "engine": {"name": CONNECTION},
    }
    with Loopback(silos) as place, StudyProgress(quiet_console(), 1) as progress:
        peaks = Peaks(place.folder)
        peaks.start()
        begin = time.monotonic()
        try:
            outcome = run_study(
                parse_study(json.dumps(study)), out=root / "runs", fresh=True, progress=progress
            )
        finally:
            peaks.end()
        seconds = time.monotonic() - begin
    if not outcome.summary["runs"]:
        raise FedKDError(f"the run failed: {outcome.summary['failures']}")
    last = outcome.summary["runs"][0]["curve"][-1]
    return {
        "megabytes": megabytes,
        "silos_ok": last["silos_ok"],
        "round_seconds": round(last["seconds"], 1),
        "command_seconds": round(seconds, 1),
        "bytes_per_silo_and_round": (last["bytes_up"] + last["bytes_down"]) // len(SILOS),
        "peak_memory": dict(peaks.memory),
        "memory_at_peak_of_server": peaks.at_peak,
        "peak_disk": dict(peaks.disk),
    }


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--megabytes", default="100", help=f"some of {SIZES}, with commas")
    sizes = [int(each) for each in parser.parse_args().megabytes.split(",")]
    # The programs of the server and of the silos import the model, too.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH")])
    )
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="fedkd-large-") as folder:
            rows.append(measure(size, Path(folder)))
    print(json.dumps(rows, indent=1))  # noqa: T201 -- it is a program


if __name__ == "__main__":
    main()
