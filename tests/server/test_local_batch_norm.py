"""FedBN: every silo goes on with its own BatchNorm, which the server holds between rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Error, Message
from safetensors.torch import load_file, save_file

from fedkd.errors import FedKDError
from fedkd.messages import keys
from fedkd.messages.arrays import decode_state
from fedkd.models.state import State
from fedkd.results.record import PROGRESS_FILE
from fedkd.util.safetensors_header import read_metadata

MODULE = """
from torch import nn

def bn(num_classes, in_channels, image_size):
    width = in_channels * image_size**2
    return nn.Sequential(
        nn.Flatten(), nn.Linear(width, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes)
    )
"""
OWN = {f"2.{name}" for name in ("weight", "bias", "running_mean", "running_var")}
OWN |= {"2.num_batches_tracked"}


@pytest.fixture(autouse=True)
def _own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fednormed.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


def study_of(make_study: Any, batch_norm: str = "local", **changes: Any) -> Any:
    model = {"arch": "fednormed:bn", "batch_norm": batch_norm}
    return make_study({"model": model, "rounds/max": 3, **changes})


class Watch:
    """Keeps the models that silos get and send, by message type, round and silo."""

    def __init__(self, *, away: tuple[str, int] | None = None) -> None:
        self.received: dict[tuple[str, int, str], State] = {}
        self.trained: dict[tuple[int, str], State] = {}
        self._away = away

    def __call__(self, silo: str, question: Message, reply: Message) -> Message:
        kind = question.metadata.message_type
        if kind not in (keys.TRAIN, keys.EVALUATE):
            return reply
        number = int(str(question.content.config_records[keys.CONFIG][keys.ROUND]))
        received = decode_state(question.content.array_records[keys.ARRAYS])
        self.received[kind, number, silo] = received
        if kind == keys.TRAIN:
            if self._away is not None and silo == self._away[0] and number >= self._away[1]:
                return Message(Error(2, "away"), reply_to=question)
            self.trained[number, silo] = decode_state(reply.content.array_records[keys.ARRAYS])
        return reply


def test_a_silo_trains_and_measures_with_its_own_layers(run_arm: Any, make_study: Any) -> None:
    watch = Watch()
    study = study_of(make_study)
    ran = run_arm(study, "fedavg", tamper=watch, test=False)
    for number in (1, 2, 3):
        first = watch.received[keys.TRAIN, number, "silo-0"]
        for silo in study.silo_names:
            received = watch.received[keys.TRAIN, number, silo]
            assert all(torch.equal(received[key], first[key]) for key in first.keys() - OWN)
            if number == 1:
                assert all(torch.equal(received[key], first[key]) for key in OWN)
                continue
            before = watch.trained[number - 1, silo]
            assert all(torch.equal(received[key], before[key]) for key in OWN)
            measured = watch.received[keys.EVALUATE, number - 1, silo]
            assert all(torch.equal(received[key], measured[key]) for key in received)
    means = [watch.trained[3, silo]["2.running_mean"] for silo in study.silo_names]
    assert not torch.equal(means[0], means[1])
    low, high = torch.stack(means).amin(0), torch.stack(means).amax(0)
    average = ran.state["2.running_mean"]
    assert bool(((average >= low - 1e-6) & (average <= high + 1e-6)).all())


def test_plain_averages_send_all_silos_the_same_and_end_elsewhere(
    run_arm: Any, make_study: Any
) -> None:
    watch = Watch()
    plain = run_arm(study_of(make_study, "average"), "fedavg", tamper=watch)
    received = [watch.received[keys.TRAIN, 3, silo] for silo in ("silo-0", "silo-1")]
    assert all(torch.equal(received[0][key], received[1][key]) for key in received[0])
    local = run_arm(study_of(make_study), "fedavg")
    assert not torch.equal(plain.state["1.weight"], local.state["1.weight"])
    costs = [[(p.bytes_up, p.bytes_down) for p in each.run.curve] for each in (plain, local)]
    assert costs[0] == costs[1]


def test_a_run_that_was_cut_short_resumes_to_the_same_bits(
    run_arm: Any, make_study: Any, tmp_path: Path
) -> None:
    study = study_of(make_study, **{"rounds/quorum": 1.0})
    whole = run_arm(study, "fedavg")
    cut = run_arm(study, "fedavg", tamper=Watch(away=("silo-1", 3)), folder=tmp_path)
    assert cut.run.stopped == "quorum"
    back = run_arm(study, "fedavg", folder=tmp_path)
    assert all(torch.equal(back.state[key], whole.state[key]) for key in whole.state)
    assert [p.accuracy for p in back.run.curve] == [p.accuracy for p in whole.run.curve]


def test_own_layers_that_do_not_fit_are_refused(
    run_arm: Any, make_study: Any, tmp_path: Path
) -> None:
    study = study_of(make_study, **{"rounds/quorum": 1.0})
    run_arm(study, "fedavg", tamper=Watch(away=("silo-1", 2)), folder=tmp_path)
    path = tmp_path / PROGRESS_FILE
    tensors, metadata = load_file(path), read_metadata(path)
    tensors["batch-norm/silo-0/2.weight"] = torch.zeros(3)
    save_file(tensors, path, metadata)
    with pytest.raises(FedKDError, match=r"is damaged: .*'2\.weight' is \[3\]"):
        run_arm(study, "fedavg", folder=tmp_path)
