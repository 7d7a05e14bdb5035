"""The commands for real hosts, and that the documentation shows what they print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
FEDKD = Path(sys.executable).parent / "fedkd"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FEDKD, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(TOP)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def commands(text: str, *programs: str) -> set[str]:
    """Return all commands of some programs in a text, each on one line."""
    lines = (" ".join(line.split()) for line in text.replace("\\\n", " ").splitlines())
    return {line for line in lines if any(f"{program} -" in f" {line}" for program in programs)}


def test_the_documentation_shows_the_commands_that_are_printed(tmp_path: Path) -> None:
    shown = (TOP / "docs" / "deploy.md").read_text(encoding="utf-8")
    begun = run(tmp_path, "keys", "init", "--host", "fl.example.org")
    assert begun.returncode == 0, begun.stderr
    added = run(tmp_path, "keys", "add-silo", "north", "--superlink", "fl.example.org:8000")
    assert added.returncode == 0, added.stderr
    printed = begun.stdout + added.stdout
    programs = ("flower-superlink", "flower-supernode")
    assert len(commands(printed, *programs)) == 2
    assert commands(printed, *programs) <= commands(shown, *programs)
    assert "flwr supernode register keys/north.pub deployed" in printed
    assert "flwr supernode register keys/north.pub deployed" in shown
    assert 'address = "fl.example.org:8000"' in begun.stdout
    assert 'address = "fl.example.org:8000"' in shown


def test_keys_that_are_there_are_a_sentence_and_no_traceback(tmp_path: Path) -> None:
    assert run(tmp_path, "keys", "init", "--host", "h").returncode == 0
    again = run(tmp_path, "keys", "init", "--host", "h")
    assert again.returncode == 2
    assert "is there already" in again.stderr
    assert "Traceback" not in again.stderr


def test_a_look_at_a_silo_without_its_data_says_so(tmp_path: Path) -> None:
    (tmp_path / "silo.yaml").write_text(
        "name: north\ndata: npz:none.npz\nshare: {teacher: none}\naudit: audit.jsonl\n"
    )
    looked = run(tmp_path, "silo", "check", "silo.yaml", "--json")
    assert looked.returncode == 1, looked.stderr
    levels = {found["name"]: found["level"] for found in json.loads(looked.stdout)}
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
def test_a_users_mistake_is_a_sentence(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "silo.yaml").write_text("name: north\n")
    (tmp_path / "study.yaml").write_text(
        "name: s\ntargets: [0.5]\narms: {fedavg: {start: random}}\n"
    )
    refused = run(tmp_path, *arguments)
    assert refused.returncode == 2
    assert refused.stderr.startswith("fedkd: ")
    assert "Traceback" not in refused.stderr
