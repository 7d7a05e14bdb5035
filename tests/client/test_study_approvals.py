"""A study that a silo has not seen waits for the silo's owner."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo
from typer.testing import CliRunner

from fedkd.cli import app as cli
from fedkd.deploy import study_approvals
from fedkd.deploy.silo_file import load_silo_file
from fedkd.deploy.study_approvals import MAX_PENDING, approve_study, read_requests
from fedkd.engines.inline import InlineGrid
from fedkd.errors import UserError
from fedkd.messages import keys
from fedkd.messages.describe import WAITING
from strategies import exchange, introductions, nodes

DESCRIBE = {keys.TRANSFER_HASH: keys.NO_HASH}
ASK = {"approve": "ask"}


def silo_file(field: Any) -> Path:
    path: Path = field.root / "north" / "silo.yaml"
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli, ["silo", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_an_unseen_study_is_held_until_its_owner_approves_it(
    field: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = field({"north": ASK})
    for kind in (keys.DESCRIBE, keys.EVALUATE):
        held = made.ask("north", kind, DESCRIBE)
        assert WAITING in held.error.reason
    assert [entry["sent"] for entry in made.audit("north")] == [{}, {}]
    (request,) = read_requests(load_silo_file(silo_file(made)))
    assert request.hash[:12] in held.error.reason
    shown = " ".join(run("pending", silo_file(made)).split())
    for sentence in (
        "Study field, asked by the server",
        "Arm fedavg: in up to 1 rounds a model trained on its examples",
        "Arm fedkd: once the weights of its model; once densities of the transfer examples",
        "Arm fedkd-pooled: once the weights of its model; once sums over its examples (moments)",
        f"Code: {request.code}. fedkd installed here: the same.",
    ):
        assert sentence in shown
    assert "Approved" in run("approve", silo_file(made), request.hash[:12])
    assert made.ask("north", keys.DESCRIBE, DESCRIBE).has_content()
    assert "No study waits." in run("pending", silo_file(made))
    # A study that asks for more, or other code, is another one.
    made.study = {"rounds": {"max": 99, "timeout": 5, "quorum": 0.3}}
    assert WAITING in made.ask("north", keys.DESCRIBE, DESCRIBE).error.reason
    made.study = {}
    monkeypatch.setattr(study_approvals, "bundle_hash", lambda: "other code")
    assert WAITING in made.ask("north", keys.DESCRIBE, DESCRIBE).error.reason
    assert len(json.loads(run("pending", silo_file(made), "--json"))) == 3


def test_hashes_must_name_one_study(field: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = field({"north": ASK})
    file = load_silo_file(silo_file(made))
    with pytest.raises(UserError, match="no study with a hash that begins with 0123456789"):
        approve_study(file, "0123456789")
    with pytest.raises(UserError, match="at least 8 digits"):
        approve_study(file, "0")
    made.ask("north", keys.DESCRIBE, DESCRIBE)
    (request,) = read_requests(file)
    # A server may ask for any number of studies; few are noted.
    monkeypatch.setattr(study_approvals, "MAX_PENDING", 2)
    for most in range(2, 5):
        made.study = {"rounds": {"max": most, "timeout": 5, "quorum": 0.3}}
        assert WAITING in made.ask("north", keys.DESCRIBE, DESCRIBE).error.reason
    assert len(read_requests(file)) == 2 < MAX_PENDING
    path = study_approvals.requests_path(file) / f"{request.hash}.json"
    path.write_text(path.read_text()[:-5])
    with pytest.raises(UserError, match="its content is not valid"):
        read_requests(file)
    made.study = {}
    assert made.ask("north", keys.DESCRIBE, DESCRIBE).has_error()


def test_the_server_says_whom_it_waits_for_and_goes_on_once_it_is_approved(
    field: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = field({"north": ASK})
    heard: list[str] = []

    def on_waiting(reason: str) -> None:
        heard.append(reason)
        if len(heard) == 3:
            file = load_silo_file(silo_file(made))
            (request,) = read_requests(file)
            approve_study(file, request.hash)

    monkeypatch.setattr(introductions, "APPROVAL_SECONDS", 0.01)
    monkeypatch.setattr(made.observer, "on_waiting", on_waiting)
    record = made.run("fedavg")
    assert len(heard) == 3
    assert f"north {WAITING}: fedkd silo approve silo.yaml " in heard[0]
    assert record.curve[-1].silos_ok == 3
    (entry,) = record.quarantined
    assert WAITING in entry.reason


def test_a_silo_that_is_not_approved_in_time_stops_nobody(
    field: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = field({"north": ASK})
    made.study = {"rounds": {"max": 1, "timeout": 0.2, "quorum": 0.3}}
    monkeypatch.setattr(introductions, "APPROVAL_SECONDS", 0.01)
    record = made.run("fedavg")
    assert record.curve[-1].silos_ok == 2
    assert WAITING in record.quarantined[0].reason


def register(monkeypatch: pytest.MonkeyPatch, names: dict[int, str]) -> None:
    infos = [NodeInfo(node_id=node, name=name) for node, name in names.items()]
    monkeypatch.setattr(InlineGrid, "get_nodes", lambda _: infos)


def test_only_nodes_whose_keys_have_a_silos_name_are_asked_and_by_that_name(
    field: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An impostor with the south's key claims to be the west; another has a key of no silo."""
    made = field({"south": {"name": "west"}})
    made.study = {"rounds": {"max": 1, "timeout": 0.2, "quorum": 0.3}}
    heard: list[str] = []
    monkeypatch.setattr(made.observer, "on_waiting", heard.append)
    monkeypatch.setattr(nodes, "NOTICE_SECONDS", 0.0)
    register(monkeypatch, {2: "north", 3: "south", 4: "stranger"})
    record = made.run("fedkd")
    assert heard == ["west: not connected"]
    assert [(entry.silo, entry.round) for entry in record.quarantined] == [("node-3", 0)]
    reason = "it claims the name 'west', but its key is that of 'south'"
    assert record.quarantined[0].reason == reason
    assert record.notes["silo_rounds"] == {"north": [0, 1]}
    assert {entry["type"] for entry in made.audit("south")} == {keys.DESCRIBE}
    assert not (made.root / "west" / "audit.jsonl").exists()


def test_whoever_has_not_answered_is_named(field: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, pull, once = field(), InlineGrid.pull_messages, set()
    heard: list[str] = []

    def pull_later(grid: InlineGrid, message_ids: Iterable[str]) -> Iterable[Message]:
        ids = frozenset(message_ids)
        found = pull(grid, ids) if ids in once else []
        once.add(ids)
        return found

    monkeypatch.setattr(InlineGrid, "pull_messages", pull_later)
    monkeypatch.setattr(exchange, "NOTICE_SECONDS", 0.0)
    monkeypatch.setattr(made.observer, "on_waiting", heard.append)
    register(monkeypatch, {2: "north", 3: "south", 4: "west"})
    made.run("fedavg")
    kinds = (
        f"{keys.DESCRIBE}, round 0",
        "evaluate, round 0",
        "train, round 1",
        "evaluate, round 1",
    )
    # Replies are taken one after another; what is told first of each question names all silos.
    first = [said for said in heard if said.startswith("north, south, west:")]
    assert first == [f"north, south, west: no reply to {kind}" for kind in kinds]


def test_nodes_without_names_are_asked_while_no_node_has_one(
    field: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = field()
    register(monkeypatch, {2: "", 3: "", 4: ""})
    assert made.run("fedavg").curve[-1].silos_ok == 3
    made.study = {"rounds": {"max": 1, "timeout": 0.2, "quorum": 0.3}}
    register(monkeypatch, {2: "north", 3: "", 4: ""})
    assert made.run("fedavg").curve[-1].silos_ok == 1


def test_the_contract_names_the_words_of_a_silo_that_waits() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "contract.md"
    assert f"`{WAITING}`" in page.read_text(encoding="utf-8")
