"""Real hosts: a server and three silos, each in a network namespace of its own.

Every host has its own address, TLS and node authentication are on, and the commands are those that
``fedkd keys`` prints. Needs root, to make namespaces.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from psutil import process_iter
from sklearn.datasets import load_digits

from fedkd.data.images import Images
from fedkd.engines.processes import MARK, end_marked, find_marked, start
from fedkd.messages.keys import FAMILIARITY
from fedkd.models.build import Shape, build_model
from fedkd.models.card import ModelCard, save_model
from fedkd.models.state import copy_state
from fedkd.training.compute import Compute
from fedkd.training.loop import train_supervised
from fedkd.training.optimizer import OptimizerSettings

pytestmark = pytest.mark.hosts

PROGRAMS = Path(sys.executable).parent
PATIENCE = 900.0
"""Seconds before a wait is given up; no test measures time."""
SERVER, PORT = "10.77.0.1", 8000
SILOS = ("north", "south", "west")
RECEIVES = "north"
"""The silo that asks for final models."""
PINNED = {"north": 9194, "south": 9190}
"""Silos that run the installed code alone, and the ports on which they say that they are well.

The north is started as the systemd unit does it, the south as the compose file does."""
TOP = Path(__file__).parents[2]
ARCHS = {"north": "cnn", "south": "cnn", "west": "mlp"}
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SHAPE = Shape(10, 1, 8)
HOSTILE = Path(__file__).parent / "hostile"
"""Of the module by which a host with a file of that name spoils replies."""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def can_make_namespaces() -> bool:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"fedkd-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode:
        return False
    ip("netns", "del", name)
    return True


@dataclass
class Hosts:
    """Four hosts on one network, their folders, and what runs on them."""

    root: Path
    prefix: str = field(default_factory=lambda: f"fk{os.getpid() % 100_000}")
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Note how long a step of the walk takes; it is shown, and never asserted."""
        begin = time.monotonic()
        yield
        self.seconds[step] = time.monotonic() - begin

    def namespace(self, host: str) -> str:
        return f"{self.prefix}-{host}"

    def up(self) -> None:
        for host in ("server", *SILOS):
            ip("netns", "add", self.namespace(host))
            ip("-n", self.namespace(host), "link", "set", "lo", "up")
            (self.root / host).mkdir()
        server = self.namespace("server")
        ip("-n", server, "link", "add", "bridge", "type", "bridge")
        ip("-n", server, "addr", "add", f"{SERVER}/24", "dev", "bridge")
        ip("-n", server, "link", "set", "bridge", "up")
        for index, silo in enumerate(SILOS):
            own = self.namespace(silo)
            ip("-n", server, "link", "add", silo, "type", "veth", "peer", "eth0", "netns", own)
            ip("-n", server, "link", "set", silo, "master", "bridge", "up")
            ip("-n", own, "addr", "add", f"10.77.0.{11 + index}/24", "dev", "eth0")
            ip("-n", own, "link", "set", "eth0", "up")

    def down(self) -> None:
        end_marked(self.root, started=self.processes.values())
        for host in ("server", *SILOS):
            name = self.namespace(host)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def split(self, silo: str) -> None:
        ip("-n", self.namespace("server"), "link", "set", silo, "down")

    def restore(self, silo: str) -> None:
        ip("-n", self.namespace("server"), "link", "set", silo, "up")

    def environment(self, host: str) -> dict[str, str]:
        own = self.root / host
        return {
            **{key: value for key, value in os.environ.items() if "proxy" not in key.lower()},
            MARK: str(self.root),
            "FLWR_HOME": str(own / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            # How often Flower looks whether there is a process to start, for every message.
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
            "FEDKD_CACHE_DIR": str(own / "cache"),
            "PATH": os.pathsep.join([str(PROGRAMS), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(HOSTILE), str(TOP)]),
            "FEDKD_TEST_HOSTILE": str(own / "hostile.json"),
            "NO_COLOR": "1",
        }

    def command(self, host: str, line: str) -> tuple[list[str | Path], dict[str, str]]:
        """Read a command as a shell would, the variables before it included."""
        words = shlex.split(line)
        environment = self.environment(host)
        while "=" in words[0]:
            key, _, value = words.pop(0).partition("=")
            environment[key] = value
        return ["ip", "netns", "exec", self.namespace(host), *words], environment

    def start(self, host: str, line: str, name: str | None = None) -> subprocess.Popen[bytes]:
        command, environment = self.command(host, line)
        process = start(command, environment, self.log(name or host))
        self.processes[name or host] = process
        return process

    def run(self, host: str, line: str) -> subprocess.CompletedProcess[str]:
        command, environment = self.command(host, line)
        return subprocess.run(
            command, env=environment, cwd=self.root, capture_output=True, text=True,
            timeout=PATIENCE, check=False,
        )  # fmt: skip

    def log(self, name: str) -> Path:
        return self.root / f"{name}.log"

    def told(self, name: str) -> str:
        return self.log(name).read_text(errors="replace") if self.log(name).exists() else ""

    def audit(self, silo: str) -> list[dict[str, Any]]:
        path = self.root / silo / "audit.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def kill(self, name: str) -> None:
        """End a SuperNode and all that it started as a power cut would."""
        process = self.processes[name]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


CLEANER = """
import subprocess, sys
from pathlib import Path
from fedkd.engines.processes import end_marked
sys.stdin.read()
end_marked(Path(sys.argv[1]))
for name in sys.argv[2:]:
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
"""


def start_cleaner(hosts: Hosts) -> subprocess.Popen[bytes]:
    """Clean up when this process is gone, even if it was killed: the pipe closes then."""
    names = [hosts.namespace(host) for host in ("server", *SILOS)]
    return subprocess.Popen(
        [sys.executable, "-c", CLEANER, str(hosts.root), *names],
        cwd=TOP,
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def wait(what: str, holds: Callable[[], bool], *, told: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"{what} has not come about:\n{told()[-3000:]}"
        time.sleep(0.2)


def make_silos(root: Path) -> None:
    """Split the digits among three silos and the server; each silo trains a model of its own."""
    digits = load_digits()
    images = (digits.images * 255 / 16).round().astype(np.uint8)
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], labels[order]
    np.savez(root / "server" / "transfer.npz", images=images[:120], labels=labels[:120])
    np.savez(root / "server" / "test.npz", images=images[120:420], labels=labels[120:420])
    images, labels = images[420:], labels[420:]
    for index, silo in enumerate(SILOS):
        own = (labels % 3 == index) | (np.arange(len(labels)) % 10 == index)
        pixels, classes = images[own], labels[own]
        np.savez(root / silo / "data.npz", images=pixels, labels=classes)
        model = build_model(ARCHS[silo], SHAPE, seed=index)
        train_supervised(
            model,
            Images(torch.from_numpy(pixels)[:, None].contiguous(), torch.from_numpy(classes)),
            optimizer=OptimizerSettings(10, 32, 0.05, 0.9),
            generator=torch.Generator().manual_seed(index),
            compute=Compute(),
        )
        card = ModelCard(ARCHS[silo], SHAPE)
        save_model(root / silo / "model.safetensors", copy_state(model), card)
    # Only the north has the transfer set already; the west tells no more than predictions.
    shutil.copy(root / "server" / "transfer.npz", root / "north" / "transfer.npz")
    shares = {
        "north": {
            "teacher": "weights",
            "densities": True,
            "moments": True,
            "class_counts": True,
            "min_samples": 1,
        },
        "south": {"teacher": "weights", "densities": True, "moments": True},
        "west": {"teacher": "logits", "densities": True},
    }
    for silo in SILOS:
        own_file = {
            "name": silo,
            "data": "npz:data.npz",
            "labels": {str(digit): word for digit, word in enumerate(WORDS)},
            "model": {"checkpoint": "model.safetensors"},
            "share": shares[silo],
            "audit": "audit.jsonl",
            "threads": 1,
            "approve": "any",
        }
        if silo == "north":
            own_file["transfer"] = "npz:transfer.npz"
        if silo == RECEIVES:
            own_file["receive"] = "models"
        if silo in PINNED:
            own_file["code"] = "installed"
        (root / silo / "silo.yaml").write_text(yaml.safe_dump(own_file))


def study_text(root: Path, changes: dict[str, Any]) -> str:
    study = {
        "name": "field",
        "data": {
            "classes": WORDS,
            "channels": 1,
            "image_size": 8,
            "transfer": {"source": f"npz:{root}/server/transfer.npz", "size": 100},
        },
        "partition": {"scheme": "deployed", "names": list(SILOS)},
        "model": {"arch": "cnn", "per_silo": {"west": "mlp"}},
        "rounds": {"max": 1, "stop": "budget", "lr": 0.05, "timeout": PATIENCE},
        "targets": [0.5],
        "baselines": ["fedavg"],
        "arms": {"fedavg": {"start": "random"}},
        "seeds": [0],
        **changes,
    }
    return yaml.safe_dump(study)


def printed_command(text: str, program: str) -> str:
    """Find the command that begins with a program in what fedkd printed, over its lines."""
    joined = text.replace("\\\n", " ")
    (line,) = [line for line in joined.splitlines() if re.search(rf"(^|\s){program} ", line)]
    return line.strip()


def documented(start: str, values: Mapping[str, str | Path]) -> str:
    """Return the command of the page on deployment that begins so, with values of this place."""
    page = (TOP / "docs" / "deploy.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:sh|text)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    command = min((line for line in lines if line.startswith(start)), key=len)
    for old, new in values.items():
        assert old in command
        command = command.replace(old, str(new))
    return command


def documented_study() -> str:
    page = (TOP / "docs" / "deploy.md").read_text(encoding="utf-8")
    (text,) = re.findall(r'^```yaml title="lesions.yaml"\n(.*?)^```$', page, re.M | re.S)
    return str(text)


def health_check(port: int) -> str:
    compose = yaml.safe_load((TOP / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
    *_, code = compose["services"]["silo"]["healthcheck"]["test"]
    return shlex.join(["python", "-c", code.replace("9190", str(port))])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    if not can_make_namespaces():
        pytest.skip("network namespaces need root and iproute2")
    torch.set_num_threads(1)
    made = Hosts(tmp_path_factory.mktemp("hosts"))
    cleaner = start_cleaner(made)
    try:
        made.up()
        make_silos(made.root)
        yield made
    finally:
        made.down()
        cleaner.communicate()


@pytest.fixture(scope="module")
def hosts(place: Hosts) -> Hosts:
    deploy(place)
    return place


def deploy(hosts: Hosts) -> None:
    """Do what the documentation tells: keys, SuperLink, connection, silos' keys, SuperNodes."""
    root, keys = hosts.root, hosts.root / "server" / "keys"
    with hosts.timed("keys"):
        line = documented("fedkd keys init", {"fl.example.org": SERVER})
        printed = hosts.run("server", f"{line} --port {PORT} --out {keys}")
    assert printed.returncode == 0, printed.stderr
    superlink = printed_command(printed.stdout, "flower-superlink")
    (root / "server" / "command").write_text(superlink.replace("/var/lib/fedkd", f"{root}/server"))
    config = printed.stdout[printed.stdout.index("[superlink.deployed]") :].split("\n\n")[0]
    home = root / "server" / "flwr"
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text("\n".join(line.strip() for line in config.splitlines()))
    ask = "flwr supernode ls deployed --format json"
    with hosts.timed("SuperLink"):
        start_superlink(hosts)
        wait(
            "the SuperLink",
            lambda: hosts.run("server", ask).returncode == 0,
            told=lambda: hosts.told("server"),
        )
    with hosts.timed("nodes"):
        with ThreadPoolExecutor(len(SILOS)) as pool:  # most of it is waiting for programs
            list(pool.map(lambda silo: register_and_start(hosts, silo), SILOS))
        wait(
            "three SuperNodes",
            lambda: hosts.run("server", ask).stdout.count('"status": "online"') == 3,
            told=lambda: "\n".join(hosts.told(silo) for silo in SILOS),
        )


def start_superlink(hosts: Hosts) -> None:
    hosts.start("server", (hosts.root / "server" / "command").read_text())


def register_and_start(hosts: Hosts, silo: str) -> None:
    keys = hosts.root / "server" / "keys"
    line = documented("fedkd keys add-silo north", {"north": silo, "fl.example.org": SERVER})
    line += f" --out {keys}"
    printed = hosts.run("server", line)
    assert printed.returncode == 0, printed.stderr
    register = printed_command(printed.stdout, "flwr supernode register")
    said: list[str] = []

    def registered() -> bool:
        # On a busy machine the SuperLink may take longer to answer than the command waits; an
        # answer that was lost had registered the key all the same.
        done = hosts.run("server", register)
        said.append(done.stdout + done.stderr)
        return done.returncode == 0 or "already" in said[-1].lower()

    wait(f"{silo}'s key on the server", registered, told=lambda: said[-1])
    for name in ("ca.pem", silo):
        shutil.copy(keys / name, hosts.root / silo / name)
    start_node(hosts, silo, printed.stdout)


def start_node(hosts: Hosts, silo: str, printed: str) -> None:
    if silo == "north":
        unit = (TOP / "deploy" / "fedkd-silo@.service").read_text(encoding="utf-8")
        (command,) = re.findall(r"^ExecStart=/opt/fedkd/bin/(.*)$", unit, flags=re.MULTILINE)
        values = {
            "${SUPERLINK}": f"{SERVER}:{PORT}",
            "${PORT}": "9094",
            "/etc/fedkd/%i": "/etc/fedkd",
        }
        values |= {"%i": silo, "${HEALTH_PORT}": str(PINNED[silo])}
    elif silo == "south":
        compose = yaml.safe_load((TOP / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
        command = compose["services"]["silo"]["command"]
        values = {
            "${FEDKD_SUPERLINK:-fl.example.org:8000}": f"{SERVER}:{PORT}",
            "fedkd/key": f"fedkd/{silo}",
        }
    else:
        command, values = printed_command(printed, "flower-supernode"), {}
    for old, new in values.items():
        assert old in command
        command = command.replace(old, new)
    line = command.replace("/etc/fedkd", str(hosts.root / silo))
    (hosts.root / silo / "command").write_text(line)
    hosts.start(silo, line)


def keep_up(hosts: Hosts, silo: str, study: subprocess.Popen[bytes]) -> None:
    """Start a SuperNode again, as a service manager would, for as long as a study runs.

    The SuperLink refuses it while it counts the killed one as connected, for a minute at most.
    """
    deadline = time.monotonic() + PATIENCE
    while study.poll() is None:
        assert time.monotonic() < deadline, hosts.told(silo)
        if hosts.processes[silo].poll() is not None:
            hosts.start(silo, (hosts.root / silo / "command").read_text())
        time.sleep(0.5)


def compare(hosts: Hosts, changes: dict[str, Any], out: str) -> subprocess.Popen[bytes]:
    study = hosts.root / f"{out}.yaml"
    study.write_text(study_text(hosts.root, changes))
    line = documented("fedkd compare lesions.yaml", {"lesions.yaml": study})
    return hosts.start("server", f"{line} --out {hosts.root / out}", out)


def set_in_file(hosts: Hosts, silo: str, key: str, value: Any) -> None:
    """Change a key of a silo's file, which is read before every message."""
    path = hosts.root / silo / "silo.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {key: value}))


def approve(hosts: Hosts, silo: str, changes: dict[str, Any]) -> None:
    """Let a silo's owner approve the transfer set, which the silo will be sent."""
    study = hosts.root / f"approve-{silo}.yaml"
    study.write_text(study_text(hosts.root, changes))
    values = {"silo.yaml": hosts.root / silo / "silo.yaml", "lesions.yaml": study}
    line = documented("fedkd silo check silo.yaml --study", values)
    found = hosts.run(silo, line)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "approval" in found.stdout


def approve_study(hosts: Hosts, silo: str, study: subprocess.Popen[bytes], out: str) -> None:
    """Let a silo's owner see and approve the study that waits for it, once it has asked."""
    own = {"silo.yaml": hosts.root / silo / "silo.yaml"}
    waiting = hosts.root / silo / "audit.jsonl.studies"
    told = lambda: hosts.told(out) + hosts.told("server")  # noqa: E731 -- asked again and again
    wait("the study", lambda: any(waiting.glob("*.json")) or study.poll() is not None, told=told)
    pending = hosts.run(silo, documented("fedkd silo pending", own))
    assert "once densities of the transfer examples" in pending.stdout, pending.stderr
    command = printed_command(pending.stdout, "fedkd silo approve").removeprefix("To approve: ")
    shown = {"3f9a1c77e0d2": command.rpartition(" ")[2]}
    assert command == documented("fedkd silo approve", own | shown)
    assert hosts.run(silo, command).returncode == 0
    wait("its name", lambda: f"{silo} waits for its owner" in hosts.told(out), told=told)


def summary(hosts: Hosts, out: str) -> dict[str, Any]:
    (path,) = (hosts.root / out).glob("*/*/summary.json")
    read: dict[str, Any] = json.loads(path.read_text())
    return read


def rehearse(place: Hosts) -> None:
    """Rehearse the study of the page on deployment, on a host where nothing is set up."""
    (place.root / "lesions.yaml").write_text(documented_study())
    settings = "arms.fedkd.consolidation"
    line = documented("fedkd rehearse", {})
    line += f" --images 40 --set {settings}.weighting=familiarity --set {settings}.epochs=3 --json"
    with TemporaryDirectory(dir="/tmp") as name:  # sockets in it must have short names
        done = place.run("server", f"TMPDIR={name} {line}")
        assert done.returncode == 0, done.stdout + done.stderr
        # It leaves neither files nor processes; PyTorch may leave a folder of its own.
        assert not list(Path(name).glob("fedkd*"))
        lines = [" ".join(each.info["cmdline"] or ()) for each in process_iter(["cmdline"])]
        assert not [line for line in lines if name in line]
    runs = {run["arm"]: run for run in json.loads(done.stdout)["runs"]}
    assert set(runs) == {"fedavg", "fedkd"}
    for run in runs.values():
        assert [point["round"] for point in run["curve"]] == [0, 1]
        assert run["curve"][1]["silos_ok"] == 3
        assert run["curve"][1]["bytes_up"] > 0


def test_a_whole_comparison_comes_back(
    place: Hosts, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights, predictions and moments, two architectures, test images on the server.

    It is the walk through the page on deployment, with its commands and in its order: rehearse,
    keys, nodes, approve, compare, fetch, export, receive, evaluate, audit. Plain FedAvg is what the
    test of a cut link runs.
    """
    with place.timed("rehearse"):
        rehearse(place)
    hosts: Hosts = request.getfixturevalue("hosts")
    for silo, port in PINNED.items():
        assert hosts.run(silo, health_check(port)).returncode == 0
        assert hosts.run(silo, health_check(port + 1)).returncode != 0
    consolidation = {"weighting": "familiarity", "epochs": 3}
    moments: dict[str, Any] = {
        "teachers": "both",
        "familiarity": {"density": "pooled", "basis": "patches"},
    }
    closed = {
        "student": "lda-head",
        "epochs": 0,
        "mode": "logits",
        "familiarity": moments["familiarity"] | {"filters": 200},
    }
    data = yaml.safe_load(study_text(hosts.root, {}))["data"]
    changes = {
        "data": data | {"source": f"npz:{hosts.root}/server/test.npz", "validation": 0},
        "baselines": ["fedkd"],
        "arms": {
            "fedkd": {"start": "consolidated", "consolidation": consolidation},
            "fedkd-logits": {
                "start": "consolidated",
                "consolidation": consolidation | {"mode": "logits", "student": "fresh"},
            },
            "fedkd-moments": {
                "start": "consolidated",
                "consolidation": consolidation | moments | {"mixed_inputs": 2},
            },
            "fedkd-discriminant": {
                "start": "consolidated",
                "arch": "patch-features",
                "consolidation": consolidation | closed,
                "rounds": {"schedule": "cosine"},
            },
        },
    }
    # The north has the transfer set itself, and needs no approval of its own.
    with hosts.timed("approve"):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda silo: approve(hosts, silo, changes), ("south", "west")))
        set_in_file(hosts, "south", "approve", "ask")
        process = compare(hosts, changes, "whole")
        approve_study(hosts, "south", process, "whole")
    with hosts.timed("compare"):
        assert process.wait(PATIENCE) == 0, hosts.told("whole")
    whole = summary(hosts, "whole")
    runs = {run["arm"]: run for run in whole["runs"]}
    assert set(runs) == set(changes["arms"])
    assert [(row["arm"], row["baseline"]) for row in whole["comparison"]] == [
        ("fedkd-discriminant", "fedkd"),
        ("fedkd-logits", "fedkd"),
        ("fedkd-moments", "fedkd"),
    ]
    for run in runs.values():
        assert run["accuracy_source"] == "test"
        assert [point["round"] for point in run["curve"]] == [0, 1]
        assert run["curve"][1]["silos_ok"] == 3
    # The south had to be allowed to answer, once, in the first run.
    first = runs["fedkd"]["quarantined"]
    assert "waits for its owner's approval" in first.pop(0)["reason"]
    # The west says no when asked for its weights, and yes when asked for predictions.
    assert [entry["silo"] for entry in runs["fedkd"]["quarantined"]] == ["west"]
    assert "share.teacher is logits" in runs["fedkd"]["quarantined"][0]["reason"]
    assert not runs["fedkd-logits"]["quarantined"]
    for arm in ("fedkd-moments", "fedkd-discriminant"):
        assert [entry["silo"] for entry in runs[arm]["quarantined"]] == ["west"]
    # Nothing is distilled: what was told gives the student.
    assert runs["fedkd-discriminant"]["notes"]["distillation_loss"] is None
    assert runs["fedkd-discriminant"]["instruments"]["student"]["delta"] == 0
    assert set(runs["fedkd-moments"]["notes"]["mean_weights"]) == {"north", "south"}
    assert "warning" not in runs["fedkd-moments"]["notes"]
    assert set(runs["fedkd-logits"]["notes"]["mean_weights"]) == set(SILOS)
    assert runs["fedkd-logits"]["curve"][0]["bytes_up"] < runs["fedkd"]["curve"][0]["bytes_up"]
    # The model stays where the SuperLink's operator keeps it.
    assert not list((hosts.root / "whole").rglob("*.safetensors"))
    assert len(list((hosts.root / "server" / "field").rglob("checkpoint.safetensors"))) == 4
    (folder,) = (hosts.root / "whole").glob("*/*")
    results = {"runs/lesions/20260101T120000Z": folder}
    with hosts.timed("fetch"):
        line = documented("fedkd fetch", results)
        fetched = hosts.run("server", f"{line} --engine deployed --json")
    assert fetched.returncode == 0, fetched.stdout + fetched.stderr
    paths = [Path(path) for path in json.loads(fetched.stdout)]
    assert {path.name for path in paths} == {"checkpoint.safetensors"}
    assert {path.parent.parent.name for path in paths} == set(runs)
    with hosts.timed("export"):
        line = documented(
            "fedkd export", {**results, "lesions.pt2": hosts.root / "lesions.safetensors"}
        )
        exported = hosts.run("server", line.partition(" --register")[0])
    assert exported.returncode == 0, exported.stderr
    # Who asked for the models has them: the north, and whoever fetches them.
    received = list((hosts.root / RECEIVES / "models").glob("field-*-seed-0-*.safetensors"))
    assert len(received) == 4
    with hosts.timed("evaluate"):
        line = documented("fedkd evaluate", results | {"lesions.yaml": hosts.root / "whole.yaml"})
        measured = hosts.run("server", f"{line} --json")
    assert measured.returncode == 0, measured.stdout + measured.stderr
    assert {row["silo"] for row in json.loads(measured.stdout)["measured"]} == {*SILOS, None}
    set_in_file(hosts, "south", "approve", "any")
    with hosts.timed("audit"):
        own = {"silo.yaml": hosts.root / "south" / "silo.yaml", "2026-03-01": "2020-01-01"}
        audited = hosts.run("south", documented("fedkd silo audit", own) + " --json")
    (total,) = json.loads(audited.stdout)
    assert (total["study"], total["refused"] > 0) == ("field", True)
    assert {"query.describe", "query.teacher", "train", "evaluate"} <= set(total["kinds"])
    with capsys.disabled():
        steps = (f"{step} {seconds:.0f} s" for step, seconds in hosts.seconds.items())
        sys.stdout.write(f"\nThe walk: {', '.join(steps)}\n")


def test_a_silo_is_found_ready(hosts: Hosts) -> None:
    (hosts.root / "look.yaml").write_text(study_text(hosts.root, {}))
    own = hosts.root / "west"
    values = {"silo.yaml": own / "silo.yaml", "fl.example.org": SERVER, "/etc/fedkd": own}
    values["lesions.yaml"] = hosts.root / "look.yaml"
    line = documented("fedkd silo check silo.yaml --superlink", values)
    found = hosts.run("west", f"{line} --json")
    assert found.returncode == 0, found.stdout + found.stderr
    levels = {finding["name"]: finding["level"] for finding in json.loads(found.stdout)}
    assert {"superlink", "certificate", "clock", "model", "labels"} <= set(levels)
    assert "broken" not in levels.values()


def test_the_audit_log_holds_all_that_left(hosts: Hosts) -> None:
    taken = [entry for entry in hosts.audit(RECEIVES) if entry["type"] == "query.receive"]
    assert len({entry["received"] for entry in taken}) == 4
    entries = hosts.audit("west")
    by_type = {entry["type"] for entry in entries}
    assert {"query.describe", "query.teacher", "train"} <= by_type
    assert all("class-counts" not in json.dumps(entry["sent"]) for entry in entries)
    refused = [entry for entry in entries if "refused" in entry]
    assert [entry["type"] for entry in refused] == ["query.teacher"] * 3
    assert all(len(entry["sha256"]) == 64 for entry in entries if "refused" not in entry)
    told = [entry for entry in hosts.audit("north") if entry["type"] == "query.describe"]
    assert len(told[0]["sent"]["info"]["class-counts"]) == len(WORDS)
    assert told[0]["sent"]["info"]["holds-transfer"] is True
    # Densities are one array, moments three: counts, means and the second moment.
    for silo, told_moments in (("north", True), ("south", True), ("west", False)):
        sent = [entry["sent"].get(FAMILIARITY, {}) for entry in hosts.audit(silo)]
        assert any(record.get("arrays") == 3 for record in sent) == told_moments


@pytest.fixture
def hostile(hosts: Hosts) -> Iterator[Callable[..., None]]:
    """Return a function that lets the west's ClientApp spoil its replies to some messages."""
    path = hosts.root / "west" / "hostile.json"
    yield lambda *kinds: path.write_text(json.dumps(kinds))  # type: ignore[func-returns-value]
    path.unlink()


def test_malformed_replies_cost_a_silo_one_refusal_each(hosts: Hosts, hostile: Any) -> None:
    """The others' run goes on, and its results say what was wrong with which reply."""
    rounds = {"max": 1, "stop": "budget", "lr": 0.05, "timeout": PATIENCE, "quorum": 0.3}
    consolidation = {"mode": "logits", "student": "fresh", "weighting": "equal", "epochs": 2}
    arms = {"fedkd": {"start": "consolidated", "consolidation": consolidation}}
    changes = {"rounds": {**rounds, "max_failures": 20}, "arms": arms, "baselines": ["fedkd"]}
    approve(hosts, "west", changes)
    hostile("query.teacher", "train", "evaluate")
    process = compare(hosts, changes, "hostile")
    assert process.wait(PATIENCE) == 0, hosts.told("hostile")
    (run,) = summary(hosts, "hostile")["runs"]
    assert {entry["silo"] for entry in run["quarantined"]} == {"west"}
    reasons = [(entry["round"], entry["reason"]) for entry in run["quarantined"]]
    assert len(reasons) == len(set(reasons)), reasons
    for round_number, words in ((0, "problem"), (1, "is expected"), (1, "num-examples")):
        found = [reason for number, reason in reasons if number == round_number]
        assert any(words in reason for reason in found), (words, reasons)
    assert run["curve"][1]["silos_ok"] == 2
    assert set(run["notes"]["mean_weights"]) == {"north", "south"}


def test_strangers_are_refused(hosts: Hosts) -> None:
    """A node whose key is registered no more, and one that trusts another authority."""
    own = hosts.root / "west"
    line = f"fedkd keys add-silo stranger --out {own} --superlink {SERVER}:{PORT}"
    printed = hosts.run("west", line)
    command = printed_command(printed.stdout, "flower-supernode").replace("/etc/fedkd", str(own))
    register = printed_command(printed.stdout, "flwr supernode register")
    known = hosts.run("server", f"{register} --format json")
    (node,) = re.findall(r'"node-id": "?(\d+)', known.stdout)
    left = hosts.run("server", f"flwr supernode unregister {node} deployed")
    assert left.returncode == 0, left.stdout + left.stderr
    assert hosts.run("west", f"fedkd keys init --host {SERVER} --out {own}/other").returncode == 0
    foreign = (own / "command").read_text().replace(f"{own}/ca.pem", f"{own}/other/ca.pem")
    stranger = hosts.start("west", f"{command} --port 9195", "stranger")
    misled = hosts.start("west", f"{foreign} --port 9196 --max-retries 1", "misled")
    wait("a refusal", lambda: stranger.poll() is not None, told=lambda: hosts.told("stranger"))
    assert stranger.returncode != 0, hosts.told("stranger")
    wait(
        "a refusal",
        lambda: (
            misled.poll() is not None or "certificate verify failed" in hosts.told("misled").lower()
        ),
        told=lambda: hosts.told("misled"),
    )
    assert "SuperNode ID" not in hosts.told("misled")


def test_a_cut_link_and_a_killed_node_cost_no_more_than_their_share(hosts: Hosts) -> None:
    """Accuracy comes from the silos here, as the server has no labelled images.

    Both go in one round, whose timeout is then waited for once.
    """
    rounds = {
        "max": 4,
        "stop": "budget",
        "lr": 0.05,
        "timeout": 45,
        "quorum": 0.3,
        "max_failures": 20,
    }
    trains = {silo: count_trains(hosts, silo) for silo in SILOS}
    process = compare(hosts, {"rounds": rounds}, "cut")
    points = lambda: sum(  # noqa: E731 -- asked again and again
        1 for path in (hosts.root / "cut").rglob("rounds.jsonl") for _ in path.open()
    )
    told = lambda: hosts.told("cut") + hosts.told("server")  # noqa: E731
    wait("the start", lambda: points() >= 1 or process.poll() is not None, told=told)
    hosts.split("west")
    hosts.kill("south")
    wait("a round without them", lambda: points() >= 2 or process.poll() is not None, told=told)
    hosts.restore("west")
    keep_up(hosts, "south", process)
    assert process.returncode == 0, told()
    (run,) = summary(hosts, "cut")["runs"]
    assert run["stopped"] == "budget"
    assert run["accuracy_source"] == "silos"
    assert [point["round"] for point in run["curve"]] == [0, 1, 2, 3, 4]
    assert run["curve"][1]["silos_ok"] == 1
    # Each came back, and the north was never asked twice for its share.
    assert run["curve"][4]["silos_ok"] == 3, run["quarantined"]
    assert count_trains(hosts, "north") - trains["north"] == 4
    missed = {(entry["silo"], entry["round"]) for entry in run["quarantined"]}
    assert ("west", 1) in missed
    assert ("south", 1) in missed
    assert "north" not in {silo for silo, _ in missed}


@pytest.mark.slow
def test_three_kills_leave_the_curve_what_it_was(hosts: Hosts) -> None:
    """Of the ServerApp, of the SuperLink, of the command that waits for them."""
    data = yaml.safe_load(study_text(hosts.root, {}))["data"]
    changes = {
        "data": data | {"source": f"npz:{hosts.root}/server/test.npz", "validation": 0},
        "rounds": {"max": 5, "stop": "budget", "lr": 0.05, "timeout": PATIENCE},
    }
    assert compare(hosts, changes, "calm").wait(PATIENCE) == 0, hosts.told("calm")
    study = compare(hosts, changes, "killed")
    told = lambda: hosts.told("killed") + hosts.told("server")  # noqa: E731
    wait_for_points(hosts, "killed", 2, study)
    kill_program(hosts, "flwr-serverapp")
    wait_for_points(hosts, "killed", 3, study)
    hosts.kill("server")
    start_superlink(hosts)
    wait_for_points(hosts, "killed", 4, study)
    hosts.kill("killed")
    assert not list((hosts.root / "killed").rglob("summary.json"))
    (folder,) = (hosts.root / "killed").glob("*/*")
    resumed = hosts.start("server", f"fedkd compare --resume {folder}", "resumed")
    assert resumed.wait(PATIENCE) == 0, hosts.told("resumed") + told()
    assert_same_curves(hosts, "calm", "killed", rounds=5)


@pytest.mark.slow
def test_ctrl_c_stops_the_run_on_its_host_and_the_study_goes_on(hosts: Hosts) -> None:
    data = yaml.safe_load(study_text(hosts.root, {}))["data"]
    changes = {
        "data": data | {"source": f"npz:{hosts.root}/server/test.npz", "validation": 0},
        "rounds": {"max": 3, "stop": "budget", "lr": 0.05, "timeout": PATIENCE},
    }
    assert compare(hosts, changes, "quiet").wait(PATIENCE) == 0, hosts.told("quiet")
    study = compare(hosts, changes, "stopped")
    wait_for_points(hosts, "stopped", 2, study)
    study.send_signal(signal.SIGINT)
    assert study.wait(PATIENCE) == 130, hosts.told("stopped")
    (folder,) = (hosts.root / "stopped").glob("*/*")
    assert f"fedkd compare --resume {folder}" in hosts.told("stopped").replace("\n", "")
    (note,) = folder.rglob("flower-run.json")
    run_id = json.loads(note.read_text())["run-id"]
    told = hosts.run("server", f"flwr ls deployed --run-id {run_id} --format json").stdout
    assert "finished:stopped" in told
    for silo in SILOS:
        restart(hosts, silo)
    resumed = hosts.start("server", f"fedkd compare --resume {folder}", "resumed-stopped")
    assert resumed.wait(PATIENCE) == 0, hosts.told("resumed-stopped") + hosts.told("server")
    assert_same_curves(hosts, "quiet", "stopped", rounds=3)


def restart(hosts: Hosts, silo: str) -> None:
    """End a SuperNode in good order, and start it until the SuperLink takes it.

    One that was receiving a message when its run was stopped answers nobody any more.
    """
    process = hosts.processes[silo]
    process.terminate()
    process.wait(PATIENCE)

    def taken() -> bool:
        if hosts.processes[silo].poll() is not None:
            hosts.start(silo, (hosts.root / silo / "command").read_text())
            time.sleep(5)
        return hosts.processes[silo].poll() is None

    wait(f"{silo} again", taken, told=lambda: hosts.told(silo))


def assert_same_curves(hosts: Hosts, calm: str, disturbed: str, *, rounds: int) -> None:
    curves = [summary(hosts, out)["runs"][0]["curve"] for out in (calm, disturbed)]
    assert len(curves[0]) == rounds + 1
    for curve in curves:
        for point in curve:
            # Whoever is gone for a moment is introduced again, in bytes of some round.
            for key in ("seconds", "bytes_up", "bytes_down"):
                point.pop(key)
    assert curves[1] == curves[0]


def wait_for_points(hosts: Hosts, out: str, count: int, study: subprocess.Popen[bytes]) -> None:
    """Wait until the server has so many points of a study's run on its disk."""

    def there() -> bool:
        assert study.poll() is None, hosts.told(out)
        runs = (hosts.root / "server" / "field").glob(f"{stamp(hosts, out)}*/*/*/rounds.jsonl")
        return any(len(path.read_text().splitlines()) >= count for path in runs)

    wait(f"point {count}", there, told=lambda: hosts.told(out) + hosts.told("server"))


def stamp(hosts: Hosts, out: str) -> str:
    return next((path.name for path in (hosts.root / out).glob("*/*")), "not yet")


def kill_program(hosts: Hosts, program: str) -> None:
    for process in find_marked(hosts.root):
        if any(part.endswith(program) for part in process.cmdline()[:2]):
            process.kill()
            return
    raise AssertionError(f"{program} does not run")


def count_trains(hosts: Hosts, silo: str) -> int:
    return sum(entry["type"] == "train" for entry in hosts.audit(silo))
