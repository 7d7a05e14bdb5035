"""A SuperLink that is already running, controlled by Flower's commands."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd.engines.app_folder import AppFolder
from fedkd.engines.flower_app import find_program
from fedkd.engines.processes import start
from fedkd.errors import FedKDError, UserError
from fedkd.util.places import home

ASK_TIMEOUT = 120.0
STOP_TIMEOUT = 8.0
"""For a command that is being interrupted, which has a few seconds left."""
SUBMIT_TIMEOUT = 300.0
FORGOTTEN = "finished:forgotten"
"""What stands for the status of a run of which the SuperLink knows nothing."""


@dataclass(frozen=True)
class Connection:
    """A SuperLink as Flower's ``config.toml`` names it."""

    name: str
    address: str


def flower_home() -> Path:
    """Return the folder of Flower's own configuration."""
    return Path(os.environ.get("FLWR_HOME") or home("FLWR_HOME") / ".flwr")


def read_connection(name: str) -> Connection:
    """Return a SuperLink connection from Flower's ``config.toml``.

    Raises:
        UserError: no connection has that name, or it is a simulation.
    """
    path = flower_home() / "config.toml"
    try:
        links = tomllib.loads(path.read_text(encoding="utf-8")).get("superlink", {})
    except FileNotFoundError:
        links = {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    known = [key for key, value in links.items() if isinstance(value, dict)]
    if name not in known:
        listed = f"; {path} has {', '.join(known)}" if known else f"; {path} has none"
        raise UserError(
            f"engine.name: {name!r} is neither inline, ray nor a SuperLink connection of Flower"
            f"{listed}. Add a section [superlink.{name}] with address and root-certificates"
        )
    address = links[name].get("address")
    if not isinstance(address, str) or address.startswith(":"):
        raise UserError(
            f"engine.name: the connection {name!r} of {path} is a simulation; use --engine ray, or "
            "give it the address of a SuperLink"
        )
    return Connection(name, address)


class SuperLink:
    """Submits runs to a SuperLink and queries their status."""

    def __init__(self, connection: Connection, place: AppFolder) -> None:
        self.name, self.address = connection.name, connection.address
        self._place = place
        self._runs = 0

    def submit(self, values: Mapping[str, str | int]) -> str:
        """Start a run with this run config, and return Flower's id of it."""
        self._runs += 1
        config = self._place.write_config(f"run-{self._runs}", values)
        command = ("run", str(self._place.app), self.name, "--run-config", str(config))
        answer = self._flwr(*command, "--format", "json", timeout=SUBMIT_TIMEOUT)
        run_id = _read_json(answer.stdout).get("run-id")
        if not isinstance(run_id, str) or not run_id.isdecimal():
            raise FedKDError(f"the SuperLink {self.address} refuses the run: {_said(answer)}")
        return run_id

    def register(self, public_key: Path, name: str) -> str | None:
        """Register a silo's key under its name; return what is wrong, None if it is registered."""
        command = ("supernode", "register", str(public_key), self.name, "--name", name)
        answer = self._flwr(*command, timeout=ASK_TIMEOUT)
        said = _said(answer)
        return None if answer.returncode == 0 or "already" in said.lower() else said

    def count_online(self) -> int | None:
        """Return the number of connected SuperNodes, or None while it does not answer."""
        answer = self._flwr("supernode", "ls", self.name, "--format", "json", timeout=ASK_TIMEOUT)
        if answer.returncode != 0:
            return None
        return answer.stdout.count('"status": "online"')

    def stop(self, run_id: str) -> bool:
        """Stop a run, and return whether the SuperLink says within seconds that it has."""
        answer = self._flwr("stop", run_id, self.name, timeout=STOP_TIMEOUT)
        return answer.returncode == 0

    def state_of(self, run_id: str) -> tuple[str, str] | None:
        """Return a run's status and its details, or None while the SuperLink does not answer."""
        answer = self._flwr(
            "ls", self.name, "--run-id", run_id, "--format", "json", timeout=ASK_TIMEOUT
        )
        for run in _read_json(answer.stdout).get("runs", []):
            if str(run.get("run-id")) == run_id:
                return str(run.get("status")), str(run.get("status-details") or "")
        if "Run ID not found" in answer.stdout + answer.stderr:
            return (FORGOTTEN, "the SuperLink does not know it: was it started without --database?")
        return None

    def open_log(self, run_id: str, log: Path, *, stream: bool) -> subprocess.Popen[bytes]:
        """Stream the log of a run to a file, from its beginning."""
        log.unlink(missing_ok=True)
        how = "--stream" if stream else "--show"
        command: list[str | Path] = [find_program("flwr"), "log", run_id, self.name, how]
        return start(command, self._place.environment, log)

    def log_of(self, run_id: str) -> Path:
        """Return the file that a run's log is streamed to."""
        return self._place.folder / f"log-{run_id}.txt"

    def _flwr(self, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """Run one Flower command to its end; one that hangs counts as failed."""
        command = [str(find_program("flwr")), *arguments]
        try:
            return subprocess.run(  # noqa: S603 -- our own command
                command,
                env=self._place.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
                start_new_session=True,  # Ctrl-C in the terminal is handled here
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 1, "", f"no answer in {timeout:g} s")


def _read_json(text: str) -> dict[str, Any]:
    """Find the JSON object in what a command printed; empty if there is none."""
    start_of = text.find("{")
    try:
        found, _ = json.JSONDecoder().raw_decode(text[start_of:]) if start_of >= 0 else ({}, 0)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _said(answer: subprocess.CompletedProcess[str]) -> str:
    told = _read_json(answer.stdout).get("error-message")
    text = str(told or answer.stderr or answer.stdout).strip()
    return " ".join(text.split())[:600] or f"exit code {answer.returncode}"
