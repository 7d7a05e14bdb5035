"""The ray engine: Flower's Simulation Runtime, silos in processes of a Ray cluster.

Flower's managed SuperLink is one shared daemon that keeps its first caller's environment, so this
engine starts a private SuperLink for the study and ends it with all its descendants.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import tomli_w
import torch

from clients.cluster import check_address, hold, leave
from fedkd.config import Study
from fedkd.engines.app_folder import AppFolder
from fedkd.engines.base import Task
from fedkd.engines.flower_app import find_program, last_lines, read_log, user_paths
from fedkd.engines.processes import free_port
from fedkd.errors import FedKDError, RemoteError
from fedkd.federation.thread_pool import on_this_machine, silos_at_once
from fedkd.messages import keys
from fedkd.results.observer import Observer
from fedkd.results.record import ROUNDS_FILE, STATE_FILE, read_points
from strategies.server_app import ERROR_FILE, FAULT_FILE

CONNECTION = "fedkd"
CLUSTER = "RAY_ADDRESS"
"""Environment variable with the address of a cluster to join."""
LOG_FILE = "flower.log"
START_SECONDS = 120.0
START_ATTEMPTS = 3
LINGER_SECONDS = 30.0
"""How long a run may take to wind up once its record is written."""
ASK_SECONDS = 5.0
ASK_ATTEMPTS = 3
ASK_TIMEOUT = 60.0
POLL_SECONDS = 0.1
SOCKET_PATH_ROOM = 32
"""How long the folder of Ray's sockets may be: their paths may have about 100 characters."""


class RayEngine:
    """Runs every arm by ``flwr run`` on a private local SuperLink.

    ``RAY_ADDRESS`` in the environment makes Flower join that Ray cluster instead of starting one.
    """

    remote = False

    def __init__(self, study: Study) -> None:
        self._study = on_this_machine(study)
        self._runs = 0

    def __enter__(self) -> RayEngine:
        """Make the app folder and start the SuperLink; a cluster to join must answer."""
        check_address(os.environ.get(CLUSTER, ""))
        self._place = AppFolder()
        self._place.environment |= ray_environment(self._place.folder)
        try:
            self._superlink = self._start_superlink()
        except BaseException:
            self._place.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End the SuperLink and its descendants, and remove the folder."""
        leave()
        self._place.close()

    def run(self, task: Task, observer: Observer) -> None:
        """Run one arm; see :class:`fedkd.engines.base.Engine`."""
        if self._superlink.poll() is not None:
            self._superlink = self._start_superlink()
        self._runs += 1
        log = self._place.folder / f"run-{self._runs}.log"
        process = self._place.start(self._run_command(task), log)
        try:
            self._follow(_Tail(task, observer), process)
        except BaseException:
            # No ServerApp may keep writing to a folder that the caller considers finished.
            self._place.end_all()
            raise
        if not (task.folder / STATE_FILE).is_file():
            raise why_failed(task.folder, log)

    def _run_command(self, task: Task) -> list[str | Path]:
        values = task.run_config()
        if address := os.environ.get(CLUSTER):
            values[keys.CONFIG_HOLDER], _ = hold(address, task.federation)
        config = self._place.write_config(f"run-{self._runs}", values)
        simulation = [f"{key}={value}" for key, value in self._simulation_config().items()]
        return [
            *(find_program("flwr"), "run", self._place.app, CONNECTION, "--stream"),
            *("--run-config", config, "--federation-config", " ".join(simulation)),
        ]

    def _simulation_config(self) -> dict[str, int | float]:
        engine, silos = self._study.engine, self._study.num_silos
        workers, threads = min(silos_at_once(self._study), silos), int(engine.silo_threads)
        config: dict[str, int | float] = {"num-supernodes": silos}
        config["client-resources-num-cpus"] = threads
        if engine.device.startswith("cuda"):
            # Ray hides GPUs from actors that request none; rounded down, the shares fit into one.
            on_one = math.ceil(workers / max(1, torch.cuda.device_count()))
            config["client-resources-num-gpus"] = int(1000 / on_one) / 1000
        if CLUSTER not in os.environ:
            # Ray does not accept sizes for a cluster that it joins.
            config["init-args-num-cpus"] = workers * threads
        return config

    def _follow(self, tail: _Tail, process: subprocess.Popen[bytes]) -> None:
        """Report rounds until the run has ended.

        The log stream ends with the run. If it breaks or hangs, the SuperLink is queried.
        """
        asked = written = None
        while True:
            superlink_ended = self._superlink.poll() is not None
            streaming = process.poll() is None
            tail.report()
            now = time.monotonic()
            if tail.ended:
                written = now if written is None else written
                if not streaming or now - written > LINGER_SECONDS:
                    if streaming:
                        # The SuperLink hangs. The next run gets a new SuperLink and Ray instance.
                        self._place.end_all()
                    return
            elif superlink_ended:
                raise FedKDError(
                    "Flower's SuperLink ended in the middle of a run; its log ends with:\n"
                    + last_lines(self._superlink_log)
                )
            elif not streaming and (asked is None or now - asked > ASK_SECONDS):
                if not self._runs_on():
                    tail.report()
                    return
                asked = now
            time.sleep(POLL_SECONDS)

    def _runs_on(self) -> bool:
        """Query the SuperLink: whether a run has not finished yet."""
        command: list[str | Path] = [find_program("flwr"), "ls", CONNECTION, "--format", "json"]
        for _ in range(ASK_ATTEMPTS):
            with contextlib.suppress(OSError, ValueError, KeyError, subprocess.TimeoutExpired):
                answer = subprocess.run(  # noqa: S603 -- our own command
                    command,
                    env=self._place.environment,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=ASK_TIMEOUT,
                    check=False,
                )
                runs = json.loads(answer.stdout)["runs"]
                return not all(str(run["status"]).startswith("finished") for run in runs)
        raise FedKDError(
            "Flower's SuperLink does not report the run's status; its log ends with:\n"
            + last_lines(self._superlink_log)
        )

    @property
    def _superlink_log(self) -> Path:
        return self._place.folder / "superlink.log"

    def _start_superlink(self) -> subprocess.Popen[bytes]:
        """Start the SuperLink on a free port and wait until it answers.

        Another program may take the port in between; the start is then repeated with another port.
        """
        for _ in range(START_ATTEMPTS):
            port = free_port()
            home = Path(self._place.environment["FLWR_HOME"])
            write_connection(home, port)
            command: list[str | Path] = [
                *(find_program("flower-superlink"), "--insecure", "--simulation"),
                *("--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(port)),
                "--disable-runtime-dependency-installation",
            ]
            superlink = self._place.start(command, self._superlink_log)
            try:
                if _answers(superlink, port):
                    return superlink
            except BaseException:
                self._place.end_all()
                raise
            self._place.end_all()
        raise FedKDError(
            "Flower's SuperLink does not start; its log ends with:\n"
            + last_lines(self._superlink_log)
        )


class _Tail:
    """Reports to an observer every round that the ServerApp has written to disk."""

    def __init__(self, task: Task, observer: Observer) -> None:
        self._folder = task.folder
        self._observer = observer
        self._size = 0
        self._reported = 0

    @property
    def ended(self) -> bool:
        """Whether the ServerApp has written its final record."""
        return any((self._folder / name).is_file() for name in (STATE_FILE, ERROR_FILE, FAULT_FILE))

    def report(self) -> None:
        """Report the rounds that are new and completely written."""
        try:
            size = (self._folder / ROUNDS_FILE).stat().st_size
        except OSError:
            return
        if size == self._size:
            return
        points = read_points(self._folder)
        for point in points[self._reported :]:
            self._observer.on_point(point)
        self._size, self._reported = size, len(points)


def write_connection(home: Path, port: int) -> None:
    """Write a connection with the SuperLink's address, so that Flower does not start its own."""
    home.mkdir(exist_ok=True)
    connection = {"address": f"127.0.0.1:{port}", "insecure": True}
    text = tomli_w.dumps({"superlink": {"default": CONNECTION, CONNECTION: connection}})
    (home / "config.toml").write_text(text, encoding="utf-8")


def ray_environment(folder: Path) -> dict[str, str]:
    """Return the environment of Flower's and Ray's processes, beyond that of the app folder."""
    environment = {
        "FLWR_HOME": str(folder / "home"),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        # Seconds; by default Flower looks once a second whether there is a run to start.
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Silos' processes have an environment of their own; Ray would wait for workers without it.
        "RAY_prestart_worker_first_driver": "0",
        # Ray's agents rename themselves; by default that overwrites the environment that /proc
        # shows, and with it the mark by which they are found.
        "SPT_NOENV": "1",
        "PYTHONPATH": os.pathsep.join(user_paths()),
    }
    for name in ("no_proxy", "NO_PROXY"):
        others = os.environ.get(name)
        environment[name] = ",".join(filter(None, ("127.0.0.1,localhost", others)))
    if CLUSTER not in os.environ and len(str(folder)) <= SOCKET_PATH_ROOM:
        environment["RAY_TMPDIR"] = str(folder)
    return environment


def why_failed(folder: Path, log: Path) -> Exception:
    """Keep the log of a failed run beside its record, and return what is known as an error.

    The error is a :class:`RemoteError`, which ends the study, if fedkd's own code failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / LOG_FILE
    shutil.copyfile(log, kept)
    if (folder / FAULT_FILE).is_file():
        text = (folder / FAULT_FILE).read_text(encoding="utf-8").strip()
        return RemoteError(f"{text}\n(Flower's log is {kept})")
    if (folder / ERROR_FILE).is_file():
        return FedKDError((folder / ERROR_FILE).read_text(encoding="utf-8").strip())
    # The last line of a traceback says most; Flower prints advice of its own after it.
    raised = [line for line in read_log(log) if re.match(r"[\w.]+(Error|Exception)\b", line)]
    if raised:
        foreseen = raised[-1].startswith("fedkd.errors.")
        kind = FedKDError if foreseen else RemoteError
        return kind(f"the ServerApp ended with {raised[-1]} (its log is {kept})")
    end = last_lines(log)
    return FedKDError(f"Flower ended the run without a result; its log {kept} ends with:\n{end}")


def _answers(superlink: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the SuperLink reports that it is healthy; False if it ended or never does."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and superlink.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            if connection.getresponse().status == http.client.OK:
                return superlink.poll() is None
        connection.close()
        time.sleep(POLL_SECONDS)
    return False
