"""The commands for real hosts, and that the documentation shows what they print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).parents[2]
FEDKD = Path(sys.executable).parent / "fedkd"


def installed(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the installed script."""
    return subprocess.run(
        [FEDKD, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(TOP)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def run(start: Any, tmp_path: Path, cache_dir: Path) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs a command and gives its exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        command = start(tmp_path, *arguments, cache=cache_dir)
        out, err = command.communicate()
        return command.returncode, out, err

    return run


def commands(text: str, *programs: str) -> set[str]:
    """Return all commands of some programs in a text, each on one line."""
    lines = (" ".join(line.split()) for line in text.replace("\\\n", " ").splitlines())
    return {line for line in lines if any(f"{program} -" in f" {line}" for program in programs)}


def test_the_documentation_shows_the_commands_that_are_printed(tmp_path: Path) -> None:
    shown = (TOP / "docs" / "deploy.md").read_text(encoding="utf-8")
    begun = installed(tmp_path, "keys", "init", "--host", "fl.example.org")
    assert begun.returncode == 0, begun.stderr
    added = installed(tmp_path, "keys", "add-silo", "north", "--superlink", "fl.example.org:8000")
    assert added.returncode == 0, added.stderr
    printed = begun.stdout + added.stdout
    programs = ("flower-superlink", "flower-supernode")
    assert len(commands(printed, *programs)) == 2
    assert commands(printed, *programs) <= commands(shown, *programs)
    assert "flwr supernode register keys/north.pub deployed --name north" in printed
    assert "flwr supernode register keys/north.pub deployed --name north" in shown
    assert 'address = "fl.example.org:8000"' in begun.stdout
    assert 'address = "fl.example.org:8000"' in shown


def test_keys_that_are_there_are_a_sentence_and_no_traceback(run: Any) -> None:
    assert run("keys", "init", "--host", "h")[0] == 0
    code, _, err = run("keys", "init", "--host", "h")
    assert code == 2
    assert "is there already" in err
    assert "Traceback" not in err


def test_a_look_at_a_silo_without_its_data_says_so(run: Any, tmp_path: Path) -> None:
    (tmp_path / "silo.yaml").write_text(
        "name: north\ndata: npz:none.npz\nshare: {teacher: none}\naudit: audit.jsonl\n"
    )
    code, out, err = run("silo", "check", "silo.yaml", "--json")
    assert code == 1, err
    levels = {found["name"]: found["level"] for found in json.loads(out)}
    assert levels["data"] == "broken"
    assert levels["audit log"] == "ok"


@pytest.mark.parametrize(
    "arguments",
    [
        ["silo", "check", "nowhere.yaml"],
        ["silo", "check", "silo.yaml", "--accept"],
        ["silo", "check", "silo.yaml", "--superlink", "https://h"],
        ["compare", "study.yaml", "--engine", "nowhere"],
    ],
)
def test_a_users_mistake_is_a_sentence(run: Any, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "silo.yaml").write_text("name: north\n")
    (tmp_path / "study.yaml").write_text(
        "name: s\ntargets: [0.5]\narms: {fedavg: {start: random}}\n"
    )
    code, _, err = run(*arguments)
    assert code == 2
    assert err.startswith("fedkd: ")
    assert "Traceback" not in err
