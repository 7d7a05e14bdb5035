"""Whose fault an exception is in a simulation: ours, a user's function's, or a silo's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Error, Message, RecordDict
from torch import nn

import fedkd
from clients.handlers import tell_failures
from clients.silo import Silo
from fedkd.data.images import Images
from fedkd.engines import inline
from fedkd.engines.processes import free_port
from fedkd.engines.ray import LOG_FILE, RayEngine, why_failed
from fedkd.errors import FedKDError, RemoteError, UserCodeError, UserError
from fedkd.messages import failures, keys
from fedkd.models.build import Shape, build_model
from fedkd.training.compute import Compute
from fedkd.training.evaluate import predict
from fedkd.training.loop import train_supervised
from fedkd.training.optimizer import OptimizerSettings
from strategies.exchange import Patience, Traffic, exchange
from strategies.server_app import ERROR_FILE, FAULT_FILE

CODE = """
def narrow(num_classes, in_channels, image_size):
    width = in_channels * image_size**2
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(width), nn.Linear(width, num_classes))

class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if len(gradient) > 2:
            raise ArithmeticError("no way back")
        return gradient

class NoWayBack(Raises):
    def forward(self, x):
        return Backward.apply(self.layer(x.flatten(1)))

def no_way_back(num_classes, in_channels, image_size):
    return NoWayBack(in_channels * image_size**2, num_classes)

def weighting(evidence, settings):
    raise OSError("no such weights")
"""


@pytest.fixture
def own(raising: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the name of a module of the user's whose functions raise."""
    (tmp_path / "ownfaults.py").write_text(raising + CODE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "ownfaults"
    sys.modules.pop("ownfaults", None)


def failed(summary: dict[str, Any]) -> dict[str, str]:
    return {each["arm"]: each["reason"] for each in summary["failures"]}


def test_a_users_function_that_raises_fails_its_arm_alone(
    own: str, make_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learning = {"start": "consolidated", "consolidation": {"epochs": 1}}
    arms = {
        "fedavg": {"start": "random"},
        "raises": {"start": "random", "arch": f"{own}:raises"},
        "backward": {"start": "random", "arch": f"{own}:no_way_back"},
        "fedkd-method": {**learning, "consolidation": {"epochs": 1, "method": f"{own}:method"}},
        "fedkd-weighting": {
            **learning,
            "consolidation": {"epochs": 1, "weighting": f"{own}:weighting"},
        },
        "fedkd": learning,
    }
    data = make_data() | {"arms": arms}
    summary = fedkd.compare(data, out=tmp_path / "out", fresh=True).summary
    assert [run["arm"] for run in summary["runs"]] == ["fedavg", "fedkd"]
    assert all(run["quarantined"] == [] for run in summary["runs"])
    reasons = failed(summary)
    assert reasons["raises"] == (
        f"architecture {own}:raises raised ArithmeticError: not today (ownfaults.py, line 13)"
    )
    assert f"architecture {own}:no_way_back raised ArithmeticError" in reasons["backward"]
    assert reasons["fedkd-method"] == (
        f"arms.fedkd-method: distillation method {own}:method raised KeyError: 'loss' "
        "(ownfaults.py, line 20)"
    )
    assert f"weighting {own}:weighting raised OSError: no such" in reasons["fedkd-weighting"]
    printed = capsys.readouterr()
    assert f"{own}:raises raised ArithmeticError" in " ".join((printed.out + printed.err).split())


def test_a_model_that_raises_while_it_is_pre_trained_costs_its_silo_alone(
    own: str, make_data: Any, tmp_path: Path
) -> None:
    data = make_data({"model/per_silo": {"silo-1": f"{own}:raises"}})
    data["arms"] = {
        "fedavg": {"start": "random"},
        "fedkd": {"start": "consolidated", "consolidation": {"student": "fresh", "epochs": 1}},
    }
    summary = fedkd.compare(data, out=tmp_path / "out").summary
    assert [run["arm"] for run in summary["runs"]] == ["fedavg", "fedkd"]
    assert summary["failures"] == []
    (refused,) = summary["runs"][1]["quarantined"]
    assert (refused["silo"], refused["round"]) == ("silo-1", 0)
    assert "its pre-training failed: architecture ownfaults:raises raised" in refused["reason"]
    assert set(summary["runs"][1]["notes"]["mean_weights"]) == {"silo-0", "silo-2"}


def test_where_every_silos_model_raises_the_arms_that_need_them_fail(
    own: str, make_data: Any, tmp_path: Path
) -> None:
    data = make_data({"model/per_silo": {f"silo-{n}": f"{own}:raises" for n in range(3)}})
    data["arms"] = {
        "fedavg": {"start": "random"},
        "fedkd": {"start": "consolidated", "consolidation": {"student": "fresh", "epochs": 1}},
    }
    summary = fedkd.compare(data, out=tmp_path / "out").summary
    assert [run["arm"] for run in summary["runs"]] == ["fedavg"]
    assert "raises raised ArithmeticError: not today" in failed(summary)["fedkd"]


@pytest.mark.parametrize("where", ["clients.silo.train_locally", "strategies.fedavg.aggregate"])
def test_a_fault_of_ours_ends_the_study_with_its_traceback(
    where: str, make_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(where, broken)
    with pytest.raises(ZeroDivisionError, match="ours") as caught:
        fedkd.compare(make_data(), out=tmp_path / "out", fresh=True)
    assert any(entry.name == "broken" for entry in caught.traceback)
    assert not list(tmp_path.glob("out/*/*/summary.json"))


class Ill(Silo):
    """A silo of somebody's own that fails in training."""

    def train(self, *arguments: Any) -> Any:
        """Fail on one of the silos."""
        if self.name == "silo-1":
            raise ValueError("out of\nmemory")
        return super().train(*arguments)


def test_what_a_silo_of_the_users_own_class_raises_is_a_failed_reply(
    make_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline, "Silo", Ill)
    data = make_data() | {"arms": {"fedavg": {"start": "random"}}}
    (run,) = fedkd.compare(data, out=tmp_path / "out", fresh=True).summary["runs"]
    assert [(entry["silo"], entry["round"]) for entry in run["quarantined"]] == [
        ("silo-1", 1),
        ("silo-1", 2),
    ]
    assert run["curve"][1]["silos_failed"] == 1


def test_a_silo_of_one_image_costs_no_other_silo_its_rounds(
    own: str, make_data: Any, tmp_path: Path
) -> None:
    """Batch normalization cannot train on one image; the check has warned of it."""
    data = make_data({"data/train_size": 13, "data/validation": 0, "model/arch": f"{own}:narrow"})
    data["partition"] = {"scheme": "quantity", "silos": 4, "min_size": 1, "alpha": 0.1}
    data |= {"arms": {"fedavg": {"start": "random"}}, "targets": [0.9]}
    summary = fedkd.compare(data, out=tmp_path / "out", fresh=True).summary
    assert summary["failures"] == []
    (run,) = summary["runs"]
    single = [silo["silo"] for silo in summary["silos"] if silo["num_examples"] == 1]
    assert 0 < len(single) < 4
    assert {entry["silo"] for entry in run["quarantined"]} == set(single)
    assert "Expected more than 1 value per channel" in run["quarantined"][0]["reason"]
    assert [point["silos_ok"] for point in run["curve"][1:]] == [4 - len(single)] * 2


def test_an_exception_without_a_line_of_the_users_is_the_users_model_still(own: str) -> None:
    model = build_model(f"{own}:narrow", Shape(3, 1, 4), seed=0)
    data = Images(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    assert predict(model, data.images, compute=Compute()).shape == (1, 3)
    with pytest.raises(UserCodeError, match="narrow raised ValueError: Expected more than 1 value"):
        train_supervised(
            model,
            data,
            optimizer=OptimizerSettings(1, 2, 0.1),
            generator=torch.Generator(),
            compute=Compute(),
        )
    ours = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        predict(ours, data.images, compute=Compute())


# Across processes.


def sent(error: Exception, node: dict[str, Any] | None = None) -> Message:
    """Return what a silo's process sends where its ClientApp raises."""
    question = Message(RecordDict(), 5, keys.TRAIN)

    def fail(*_: object) -> Message:
        raise error

    return tell_failures(question, Context(1, 5, node or {}, RecordDict(), {}), fail)


class Answering:
    """A grid with one reply."""

    def __init__(self, reply: Message) -> None:
        self.reply = reply

    def push_messages(self, messages: Any) -> list[str]:
        """Take messages."""
        self.reply.metadata.__dict__["_reply_to_message_id"] = "id"
        return ["id" for _ in messages]

    def pull_messages(self, _: Any) -> list[Message]:
        """Give the reply."""
        return [self.reply]


def receive(reply: Message, *, simulated: bool) -> dict[int, Message]:
    question = Message(RecordDict(), 5, keys.TRAIN)
    grid: Any = Answering(reply)
    patience, traffic = Patience(9), Traffic()
    return exchange(
        grid, [question], lambda each: each, patience=patience, traffic=traffic, simulated=simulated
    ).by_node


def test_what_a_simulated_process_raises_is_raised_at_the_server() -> None:
    with pytest.raises(RemoteError, match=r"(?s)Traceback .*in fail.*ZeroDivisionError: ours"):
        receive(sent(ZeroDivisionError("ours")), simulated=True)
    with pytest.raises(FedKDError, match=r"^method x raised KeyError$"):
        receive(sent(UserCodeError("method x raised KeyError")), simulated=True)
    lost = Message(
        Error(0, "<class 'ray.exceptions.ActorDiedError'>"),
        reply_to=Message(RecordDict(), 5, keys.TRAIN),
    )
    with pytest.raises(RemoteError, match=r"failed or was lost: <class 'ray.*ActorDiedError"):
        receive(lost, simulated=True)


def test_what_a_node_of_a_cluster_lacks_names_the_node() -> None:
    found = failures.read(failures.tell(UserError("there is no file x"), "far"))
    assert str(found) == "on the node far: there is no file x"


def test_a_cluster_that_does_not_answer_is_named_at_once(
    make_study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"^RAY_ADDRESS: no Ray cluster answers at {address} "):
        RayEngine(make_study()).__enter__()


def test_a_silos_own_failure_and_a_real_host_are_believed_no_more_than_that() -> None:
    question = Message(RecordDict(), 5, keys.TRAIN)
    ill = Message(Error(2, failures.tell_silo(ValueError("ill"))), reply_to=question)
    assert receive(ill, simulated=True)
    for error in (ZeroDivisionError("ours"), FedKDError("foreseen")):
        assert receive(sent(error), simulated=False), "a host could end the run"
        with pytest.raises(type(error)):
            sent(error, {keys.NODE_SILO: "silo.yaml"})


def test_the_ray_engine_tells_our_faults_from_foreseen_ends(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("Traceback\nfedkd.errors.UserError: no such file\nadvice\n")
    run = tmp_path / "run"
    found = why_failed(run, log)
    assert isinstance(found, FedKDError)
    assert "UserError: no such file" in str(found)
    log.write_text("Traceback\nZeroDivisionError: ours\nadvice\n")
    assert isinstance(why_failed(run, log), RemoteError)
    (run / ERROR_FILE).write_text("distillation diverged")
    assert str(why_failed(run, log)) == "distillation diverged"
    (run / FAULT_FILE).write_text("Traceback ...\nKeyError: 1\n")
    found = why_failed(run, log)
    assert isinstance(found, RemoteError)
    assert "KeyError: 1" in str(found)
    assert (run / LOG_FILE).is_file()
