"""What keeps a deployment running: units, containers, health checks and the wheel house."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from flwr.supercore.grpc_health import run_health_server_grpc_no_tls
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.engines.processes import free_port

TOP = Path(__file__).parents[2]
FILES = TOP / "deploy"
PROGRAMS = Path(sys.executable).parent


def parse(command: str) -> None:
    """Let Flower's own parsers take a command; fedkd's passes its options on to the SuperNode."""
    words = shlex.split(re.sub(r"\$\{(\w+)(:-([^}]*))?\}", lambda m: m[3] or "9", command))
    parsers: dict[str, Any] = {
        "flower-superlink": _parse_args_run_superlink,
        "fedkd": _parse_args_run_supernode,
    }
    program = Path(words.pop(0)).name
    if program == "fedkd":
        assert words[:2] == ["silo", "serve"]
        assert words[2].endswith("/silo.yaml")
        words = words[3:]
    parser: ArgumentParser = parsers[program]()
    found = parser.parse_args(words)
    assert found.health_server_address.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", ["fedkd-superlink.service", "fedkd-silo@.service"])
def test_the_units_are_valid_and_start_programs_with_options_that_exist(
    name: str, tmp_path: Path
) -> None:
    text = (FILES / name).read_text(encoding="utf-8")
    (command,) = re.findall(r"^ExecStart=(.*)$", text, flags=re.MULTILINE)
    parse(command)
    for line in ("NoNewPrivileges=true", "ProtectSystem=strict", "Restart=always"):
        assert line in text.splitlines()
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    unit = tmp_path / name.replace("@", "@north")
    unit.write_text(text.replace("/opt/fedkd/bin/", f"{PROGRAMS}/"), encoding="utf-8")
    command_line = ["systemd-analyze", "verify", "--man=no", str(unit)]
    verified = subprocess.run(command_line, capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")


def test_the_superlink_has_the_same_options_wherever_it_is_started(
    tmp_path: Path, compose: dict[str, Any]
) -> None:
    arguments = ["keys", "init", "--host", "fl.example.org", "--out", str(tmp_path / "keys")]
    printed = CliRunner().invoke(app, arguments, catch_exceptions=False).output
    command = printed.partition("FEDKD_STATE_DIR=/var/lib/fedkd ")[2].partition("\n\n")[0]
    unit = (FILES / "fedkd-superlink.service").read_text(encoding="utf-8")
    (started,) = re.findall(r"^ExecStart=(.*)$", unit, flags=re.MULTILINE)
    by_hand, by_unit, in_container = (
        [Path(word).name for word in shlex.split(line.replace("\\\n", " "))]
        for line in (command, started, compose["services"]["superlink"]["command"])
    )
    assert by_unit == in_container == [*by_hand, "--health-server-address", "127.0.0.1:9190"]


@pytest.fixture
def compose() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((FILES / "compose.yaml").read_text(encoding="utf-8"))
    return read


def test_containers_have_no_more_rights_than_they_need(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        parse(service["command"])
        assert service["read_only"] is True
        assert not service["user"].startswith("0")
        assert service["cap_drop"] == ["ALL"]
        assert service["healthcheck"]["test"][:3] == ["CMD", "python", "-c"]
        assert "--health-server-address 127.0.0.1:9190" in service["command"]
        assert service["logging"]["options"] == {"max-size": "10m", "max-file": "5"}
        writable = [v for v in service["volumes"] if not v.endswith(":ro")]
        assert writable == ["state:/var/lib/fedkd"]
    image = (FILES / "Dockerfile").read_text(encoding="utf-8")
    assert "USER 10001" in image
    # A new volume has the owner of the folder that the image has in its place.
    assert "--uid 10001 --gid 10001 --home-dir /var/lib/fedkd --create-home" in image


def runs(*command: str) -> bool:
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


def test_compose_takes_the_file(compose: dict[str, Any]) -> None:
    known = (["docker", "compose"], ["docker-compose"])
    program = next((words for words in known if runs(*words, "version")), None)
    if program is None:
        pytest.skip("docker compose is not installed")
    file = ["-f", str(FILES / "compose.yaml"), "--profile", "server", "--profile", "silo"]
    read = [*program, *file, "config", "--services"]
    shown = subprocess.run(read, capture_output=True, text=True, check=True).stdout
    assert set(shown.split()) == set(compose["services"])


def test_the_health_check_asks_what_flower_answers(compose: dict[str, Any]) -> None:
    address = f"127.0.0.1:{free_port()}"
    *_, code = compose["services"]["silo"]["healthcheck"]["test"]
    command = [sys.executable, "-c", code.replace("127.0.0.1:9190", address)]
    assert subprocess.run(command, capture_output=True, check=False).returncode
    server: grpc.Server = run_health_server_grpc_no_tls(address)
    try:
        assert not subprocess.run(command, capture_output=True, check=False).returncode
    finally:
        server.stop(None)


def test_the_wheel_house_has_what_the_image_installs() -> None:
    planned = subprocess.run(
        ["make", "-n", "wheelhouse"], cwd=TOP, capture_output=True, text=True, check=True
    ).stdout
    assert "--require-hashes --no-deps --dest dist/wheelhouse" in planned
    assert "cp dist/fedkd-*.whl requirements/runtime.txt dist/wheelhouse" in planned
