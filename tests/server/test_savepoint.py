"""Taking up a run: silos that are back, silos that are not, and a save point that does not fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message
from safetensors.torch import load_file, save_file

from fedkd.errors import FedKDError
from fedkd.messages import keys
from fedkd.results.record import PROGRESS_FILE
from fedkd.util.safetensors_header import read_metadata


def failing(*silos: str, from_round: int = 0, kind: str = keys.TRAIN) -> Any:
    """Return a tampering by which some silos fail from a round on."""

    def tamper(silo: str, question: Message, reply: Message) -> Message:
        asked = int(str(question.content.config_records[keys.CONFIG][keys.ROUND]))
        if silo in silos and question.metadata.message_type == kind and asked >= from_round:
            return Message(Error(2, "away"), reply_to=question)
        return reply

    return tamper


def curve(ran: Any) -> list[tuple[Any, ...]]:
    return [(p.round, p.accuracy, p.loss, p.bytes_up, p.silos_ok) for p in ran.run.curve]


def assert_same_end(found: Any, expected: Any) -> None:
    assert curve(found) == curve(expected)
    assert found.state.keys() == expected.state.keys()
    assert all(found.state[key].equal(tensor) for key, tensor in expected.state.items())
    assert found.run.notes == expected.run.notes
    assert found.run.quarantined == expected.run.quarantined


@pytest.mark.parametrize("arm", ["fedavg", "fedkd"])
def test_a_run_that_lacked_silos_goes_on_once_they_are_back(
    arm: str, run_arm: Any, make_study: Any, tmp_path: Path
) -> None:
    study = make_study({"rounds/max": 4})
    away = failing("silo-0", "silo-2", from_round=3)
    ran = run_arm(study, arm, tamper=away, folder=tmp_path)
    assert ran.run.stopped == "quorum"
    assert [p.round for p in ran.run.curve] == [0, 1, 2]
    still = run_arm(study, arm, tamper=away, folder=tmp_path)
    assert_same_end(still, ran)
    back = run_arm(study, arm, folder=tmp_path)
    assert back.run.stopped == "budget"
    assert_same_end(back, run_arm(study, arm))


def test_silos_that_do_not_come_back_fail_and_cohorts_stay_what_they_were(
    run_arm: Any, make_study: Any, tmp_path: Path
) -> None:
    changes = {"rounds/fraction": 0.67, "partition/silos": 4, "data/train_size": 240}
    study = make_study({**changes, "rounds/max": 6, "rounds/quorum": 0.3})
    away = failing("silo-1", from_round=3)
    expected = run_arm(study, "fedavg", tamper=away)
    with pytest.raises(KeyboardInterrupt):
        run_arm(study, "fedavg", tamper=interrupting(3), folder=tmp_path)
    gone = failing("silo-1", kind=keys.DESCRIBE)
    found = run_arm(study, "fedavg", tamper=gone, folder=tmp_path)
    assert [c[:3] for c in curve(found)] == [c[:3] for c in curve(expected)]
    assert found.refused == expected.refused
    assert "is not connected" in found.reasons


def interrupting(at_round: int) -> Any:
    def tamper(silo: str, question: Message, reply: Message) -> Message:
        if question.content.config_records[keys.CONFIG][keys.ROUND] == at_round:
            raise KeyboardInterrupt
        return reply

    return tamper


def test_silos_that_are_new_are_not_asked(run_arm: Any, make_study: Any, tmp_path: Path) -> None:
    """A cohort drawn among more silos would not be the one that an undisturbed run draws."""
    study = make_study({"rounds/max": 4})
    mute = failing("silo-1", kind=keys.DESCRIBE)
    expected = run_arm(study, "fedavg", tamper=mute)
    with pytest.raises(KeyboardInterrupt):
        run_arm(study, "fedavg", tamper=both(mute, interrupting(2)), folder=tmp_path)
    found = run_arm(study, "fedavg", folder=tmp_path)
    assert found.members == ["silo-0", "silo-2"]
    assert_same_end(found, expected)


def both(first: Any, second: Any) -> Any:
    return lambda silo, question, reply: second(silo, question, first(silo, question, reply))


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam"])
def test_tensors_that_do_not_fit_are_refused(
    strategy: str, run_arm: Any, make_study: Any, tmp_path: Path
) -> None:
    study = make_study({"rounds/max": 3, "arms/fedavg/strategy": strategy})
    with pytest.raises(KeyboardInterrupt):
        run_arm(study, "fedavg", tamper=interrupting(2), folder=tmp_path)
    path = tmp_path / PROGRESS_FILE
    whole, said = load_file(path), read_metadata(path)
    parts = {"fedavg": {"model"}}.get(strategy, {"model", "update"})
    assert {key.partition("/")[0] for key in whole} == {*parts, "baseline"}  # each model once
    for key in [key for key in whole if key.startswith(("model/", "update/"))]:
        save_file({**whole, key: whole[key].flatten()[:1].clone()}, path, said)
        if whole[key].shape != (1,):
            with pytest.raises(FedKDError, match=r"damaged|cannot be restored"):
                run_arm(study, "fedavg", folder=tmp_path)
        save_file({k: t for k, t in whole.items() if k != key}, path, said)
        with pytest.raises(FedKDError, match=r"damaged|cannot be restored"):
            run_arm(study, "fedavg", folder=tmp_path)
    save_file({**whole, "update/more": whole["model/1.weight"].clone()}, path, said)
    with pytest.raises(FedKDError, match="cannot be restored"):
        run_arm(study, "fedavg", folder=tmp_path)
    wrong = {
        key: re.sub(r'"seconds": [^,]+', '"seconds": 1e999', text) for key, text in said.items()
    }
    save_file(whole, path, wrong)
    with pytest.raises(FedKDError, match="1e999 is not a finite number"):
        run_arm(study, "fedavg", folder=tmp_path)
    save_file(whole, path, said)
    assert len(run_arm(study, "fedavg", folder=tmp_path).run.curve) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds/lr": 0.04},
        {"seeds": [1]},
        {"data/transfer/size": 61},
        {"engine/server_threads": 2},
    ],
)
def test_the_save_point_of_other_settings_is_refused(
    changes: dict[str, Any], run_arm: Any, make_study: Any, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_arm(make_study(), "fedavg", tamper=interrupting(1), folder=tmp_path)
    with pytest.raises(FedKDError, match="belongs to another study"):
        run_arm(make_study(changes), "fedavg", folder=tmp_path)
    other_workers = make_study({"engine/workers": 1})
    assert run_arm(other_workers, "fedavg", folder=tmp_path).run.stopped == "budget"
