"""Measure seconds a round on a SuperLink and SuperNodes, in a simulation, and with an empty app.

``python -m experiments.bench.hosts`` writes 2,000 JPEG pictures of 224 pixels for each of two silos
and trains ``cnn`` on them at 64 pixels for five rounds: on a SuperLink and two SuperNodes on this
machine, and in one process. An app that does nothing shows Flower's own time a round.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import yaml
from PIL import Image

import fedkd
from fedkd.config.study_file import parse_study
from fedkd.engines.flower_app import find_program
from fedkd.engines.loopback import CONNECTION, Loopback
from fedkd.report.progress import StudyProgress
from fedkd.runner.run import run_study

CLASSES, SIDE, SIZE, ROUNDS = ("healthy", "lesion"), 224, 64, 5
SILOS = ("north", "south")
SERVER = """
import time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    for _ in range({rounds}):
        began = time.monotonic()
        messages = [Message(RecordDict({{"config": ConfigRecord({{}})}}), node, "train")
                    for node in grid.get_node_ids()]
        assert len(list(grid.send_and_receive(messages, timeout=300))) == {silos}
        print(f"empty-app-seconds {{time.monotonic() - began:.2f}}", flush=True)
"""
CLIENT = """
from flwr.app import Message
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    return Message(message.content, reply_to=message)
"""


def write_pictures(folder: Path, count: int, seed: int) -> None:
    """Write JPEG pictures in a folder a class: a pattern of the class, with noise."""
    generator = np.random.default_rng(seed)
    patterns = np.random.default_rng(0).integers(0, 256, (len(CLASSES), 7, 7, 3))
    for index in range(count):
        label = index % len(CLASSES)
        clean = patterns[label].repeat(SIDE // 7, 0).repeat(SIDE // 7, 1)
        noisy = clean + generator.normal(0, 30, clean.shape)
        path = folder / CLASSES[label] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)


def study_of(data: dict[str, Any], partition: dict[str, Any], engine: str) -> dict[str, Any]:
    """Return the study, on an engine."""
    return {
        "name": "bench-hosts",
        "data": data,
        "partition": partition,
        "model": {"arch": "cnn"},
        "rounds": {"max": ROUNDS, "stop": "budget", "local_epochs": 1, "timeout": 600},
        "targets": [0.99],
        "arms": {"fedavg": {"start": "random"}},
        "seeds": [0],
        "engine": {"name": engine},
    }


def seconds_of(summary: dict[str, Any]) -> list[float]:
    """Return the seconds of every round after the start."""
    return [round(point["seconds"], 2) for point in summary["runs"][0]["curve"][1:]]


def on_hosts(root: Path, names: Sequence[str]) -> tuple[list[float], list[float]]:
    """Return the seconds of the study's rounds on SuperNodes, and of those of an empty app."""
    silos = {}
    for name in names:
        file = {
            "name": name,
            "data": f"folder:{root / name}",
            "share": {"teacher": "none"},
            "audit": str(root / f"{name}.jsonl"),
            "threads": 1,
            "approve": "any",
        }
        silos[name] = root / f"{name}.yaml"
        silos[name].write_text(yaml.safe_dump(file))
    data = {"classes": list(CLASSES), "channels": 3, "image_size": SIZE}
    data["source"] = f"folder:{root / 'server'}"
    study = study_of(data, {"scheme": "deployed", "names": list(names)}, CONNECTION)
    with Loopback(silos) as place:
        empty = run_empty_app(place.folder / "empty-app", len(names))
        with StudyProgress(quiet_console(), 1) as progress:
            outcome = run_study(
                parse_study(json.dumps(study)), out=root / "runs", fresh=True, progress=progress
            )
    return seconds_of(outcome.summary), empty


def run_empty_app(folder: Path, silos: int) -> list[float]:
    """Run the app that does nothing on the SuperLink, and return its seconds a round."""
    (folder / "empty").mkdir(parents=True)
    (folder / "empty" / "__init__.py").touch()
    server = SERVER.format(rounds=ROUNDS, silos=silos)
    (folder / "empty" / "server_app.py").write_text(server)
    (folder / "empty" / "client_app.py").write_text(CLIENT)
    components = {"serverapp": "empty.server_app:app", "clientapp": "empty.client_app:app"}
    app = {"publisher": "fedkd", "components": components}
    project = {"name": "empty", "version": "1.0.0", "license": "Apache-2.0", "dependencies": []}
    project["description"] = "Does nothing."
    text = tomli_w.dumps({"project": project, "tool": {"flwr": {"app": app}}})
    (folder / "pyproject.toml").write_text(text)
    done = subprocess.run(  # noqa: S603 -- our own command
        [str(find_program("flwr")), "run", str(folder), CONNECTION, "--stream"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    lines = (line.split() for line in done.stdout.splitlines() if "empty-app-seconds" in line)
    return [float(line[line.index("empty-app-seconds") + 1]) for line in lines]


def quiet_console() -> Any:
    """Return a console that shows nothing."""
    from rich.console import Console

    return Console(quiet=True)


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=2000, help="of each silo")
    parser.add_argument("--silos", type=int, default=2, choices=(1, 2))
    arguments = parser.parse_args()
    pictures, names = arguments.pictures, SILOS[: arguments.silos]
    with tempfile.TemporaryDirectory(prefix="fedkd-bench-") as name:
        root = Path(name)
        for seed, part in enumerate((*names, "server")):
            write_pictures(root / part, 200 if part == "server" else pictures, seed)
        for silo in names:
            for label in CLASSES:
                together = root / "together" / label
                together.mkdir(parents=True, exist_ok=True)
                for path in (root / silo / label).iterdir():
                    (together / f"{silo}-{path.name}").hardlink_to(path)
        data = {"source": f"folder:{root / 'together'}", "image_size": SIZE, "test": 0.05}
        data["validation"] = 0
        study = study_of(data, {"scheme": "iid", "silos": len(names)}, "inline")
        simulated = seconds_of(fedkd.compare(study, out=root / "simulated", fresh=True).summary)
        hosts, empty = on_hosts(root, names)
    result = {"simulation": simulated, "hosts": hosts, "empty-app": empty}
    print(json.dumps(result, indent=1))  # noqa: T201 -- it is a program


if __name__ == "__main__":
    main()
