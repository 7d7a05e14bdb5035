"""A silo that pins the code: another bundle is refused before anything of it is imported."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.supernode.runtime import run_clientapp

from clients import pinned
from fedkd.deploy.bundle_hash import PINNED, bundle_hash, find_code_problem
from fedkd.deploy.serve import PROGRAM, serve_command
from fedkd.deploy.silo_file import load_silo_file
from fedkd.engines.flower_app import write_app
from fedkd.errors import NotAllowedError, UserError
from fedkd.messages import keys

CHANGES: dict[str, Callable[[Path], object]] = {
    "its hash is": lambda b: (b / "clients" / "guard.py").write_text("guard = None\n"),
    "the file 'torch.py'": lambda b: (b / "torch.py").write_text("import os\n"),
    "the file 'fedkd/fast.so'": lambda b: (b / "fedkd" / "fast.so").write_bytes(b"\x7fELF"),
    "its ClientApp is 'os:": lambda b: (b / "pyproject.toml").write_text(
        (b / "pyproject.toml").read_text().replace("clients.client_app:app", "os:system")
    ),
    "cannot be read": lambda b: (b / "pyproject.toml").unlink(),
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_app(tmp_path / "bundle")


def test_a_bundle_of_the_pinned_code_is_let_in(bundle: Path) -> None:
    (bundle / "clients" / "__pycache__").mkdir()
    (bundle / "clients" / "__pycache__" / "guard.cpython-311.pyc").write_bytes(b"")
    assert find_code_problem(bundle, bundle_hash()) is None
    assert find_code_problem(bundle, "0" * 64) == f"its hash is {bundle_hash()}, not {'0' * 64}"


@pytest.mark.parametrize("said", CHANGES)
def test_changed_code_is_refused_and_audited_and_not_loaded(
    said: str, bundle: Path, field: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = field({"north": {"code": "installed"}})
    CHANGES[said](bundle)
    message = made.question(keys.DESCRIBE, {keys.TRANSFER_HASH: keys.NO_HASH})
    loaded: list[str] = []
    task = (message, made.context(2, "north", "fedavg"))
    monkeypatch.setattr(run_clientapp, "pull_task_input", lambda _: task)
    monkeypatch.setattr(run_clientapp, "get_load_client_app_fn", lambda **_: loaded.append)
    monkeypatch.setattr(pinned, "get_project_dir", lambda *_: bundle)
    pinned.add_check(bundle_hash(), made.root / "north" / "audit.jsonl")
    steps = vars(run_clientapp)
    assert steps["pull_task_input"](None) == task
    with pytest.raises(NotAllowedError, match=said):
        steps["get_load_client_app_fn"](multi_app=True)("fedkd/fedkd", "0.2.0", "hash")
    assert not loaded
    (entry,) = made.audit("north")
    assert said in entry["refused"]
    assert (entry["study"], entry["type"], entry["sent"]) == ("field", keys.DESCRIBE, {})


def test_a_silo_with_another_pin_answers_nothing_though_it_was_started_without_the_check(
    field: Any,
) -> None:
    made = field({"north": {"code": "0" * 64}})
    reply = made.ask("north", keys.DESCRIBE, {keys.TRANSFER_HASH: keys.NO_HASH})
    assert reply.error.reason == f"its owner allows other code alone (code), not {bundle_hash()}"
    assert "refused" in made.audit("north")[-1]


def test_a_pin_that_nothing_checks_is_noticed(field: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = field({"north": {"code": "installed"}})
    asked = (keys.DESCRIBE, {keys.TRANSFER_HASH: keys.NO_HASH})
    assert "was not started by fedkd silo serve" in made.ask("north", *asked).error.reason
    monkeypatch.setenv(PINNED, bundle_hash())
    assert made.ask("north", *asked).has_content()


def test_the_supernode_finds_the_program_that_checks(field: Any) -> None:
    made = field({"north": {"code": "installed"}, "south": {}})
    path = made.root / "north" / "silo.yaml"
    options = ["--superlink", "fl:8000", "--insecure"]
    supernode = Path("/bin/flower-supernode")
    command, environment = serve_command(load_silo_file(path), path, supernode, options)
    assert command == [str(supernode), *options, "--node-config", f'silo="{path}"']
    folder = Path(environment["PATH"].split(os.pathsep)[0])
    assert os.access(folder / PROGRAM, os.X_OK)
    assert folder.stat().st_mode & 0o077 == 0
    called = f"main('{bundle_hash()}', '{made.root / 'north' / 'audit.jsonl'}')"
    assert environment[PINNED] == bundle_hash()
    assert called in (folder / PROGRAM).read_text()
    assert Path(environment["PYTHONPYCACHEPREFIX"]).parent == folder
    for option in ("--isolation=process", "--isol", "--allow-runtime", "--node-c=a=1"):
        with pytest.raises(UserError, match="cannot be given to fedkd silo serve"):
            serve_command(load_silo_file(path), path, supernode, [option])
    open_file = made.root / "south" / "silo.yaml"
    with pytest.raises(UserError, match="code: is missing"):
        serve_command(load_silo_file(open_file), open_file, supernode, [])
