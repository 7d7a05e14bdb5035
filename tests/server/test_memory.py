"""Few models of a round are in memory at a time, however many silos there are."""

from __future__ import annotations

import contextlib
import gc
import weakref
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor

from fedkd.engines.inline import AHEAD
from fedkd.models import spool
from fedkd.models import state as states_module
from fedkd.models.spool import StateSpool
from fedkd.models.state import State, average_states
from fedkd.results.record import PROGRESS_FILE
from fedkd.training.aggregation import aggregate
from strategies.exchange import Patience, Traffic, exchange

SILOS, WORKERS = 9, 2
TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # of messages made here


class Alive:
    """Counts the objects that have not been freed, and the most there ever were."""

    def __init__(self) -> None:
        self._seen: list[weakref.ref[Any]] = []
        self.most = 0

    def note(self, thing: Any) -> Any:
        self._seen = [ref for ref in self._seen if ref() is not None]
        self._seen.append(weakref.ref(thing))
        self.most = max(self.most, len(self._seen))
        return thing


def test_replies_and_models_in_memory_do_not_grow_with_the_number_of_silos(
    run_arm: Any, make_study: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changes = {"partition": {"scheme": "iid", "silos": SILOS}, "rounds/max": 2, "model/arch": "mlp"}
    study = make_study(changes)
    expected = run_arm(study, "fedavg").run
    replies, models = Alive(), Alive()
    put, load = StateSpool.put, spool.load_file
    files = []

    def noting_put(states: StateSpool, name: str, state: State) -> None:
        models.note(state["1.weight"])
        put(states, name, state)

    def noting_load(path: Path) -> State:
        files.append(path.parent)
        state = load(path)
        models.note(state["1.weight"])
        return state

    size = sum(tensor.nbytes for tensor in expected.model.values())
    monkeypatch.setattr(spool, "MEMORY_BYTES", 2 * size)
    monkeypatch.setattr(StateSpool, "put", noting_put)
    monkeypatch.setattr(spool, "load_file", noting_load)
    ran = run_arm(study, "fedavg", tamper=lambda *all_: replies.note(all_[2]), folder=tmp_path)
    found = ran.run
    assert replies.most <= WORKERS + AHEAD + 2  # that of the server, and one that is being freed
    assert models.most <= 2 + 2  # those that may wait in memory, and as for replies
    assert files == [tmp_path] * 2 * (SILOS - 2)
    assert [point.accuracy for point in found.curve] == [p.accuracy for p in expected.curve]
    assert all(torch.equal(found.model[key], expected.model[key]) for key in expected.model)
    assert not list(tmp_path.glob(".*"))


def test_a_large_global_model_is_on_disk_and_read_anew_every_time(
    run_arm: Any, make_study: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changes = {"partition": {"scheme": "iid", "silos": 2}, "rounds/max": 2, "model/arch": "mlp"}
    expected = run_arm(make_study(changes), "fedavg", test=False).run
    monkeypatch.setattr(spool, "LARGE_BYTES", 1)
    found = run_arm(make_study(changes), "fedavg", test=False, folder=tmp_path).run
    assert [point.loss for point in found.curve] == [point.loss for point in expected.curve]
    assert list(found.model) == list(expected.model)
    assert all(torch.equal(found.model[key], expected.model[key]) for key in expected.model)
    found.model["1.weight"].zero_()
    assert torch.equal(found.model["1.weight"], expected.model["1.weight"])
    (file,) = tmp_path.glob(".*")
    del found
    gc.collect()
    assert not file.exists()
    assert list(tmp_path.iterdir()) == [tmp_path / PROGRESS_FILE]


class Answering:
    """A grid whose nodes have all answered; it notes how many replies it is asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self._messages: dict[str, Message] = {}

    def push_messages(self, messages: Any) -> list[str]:
        """Take messages."""
        for index, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = str(index)
            self._messages[str(index)] = message
        return list(self._messages)

    def pull_messages(self, message_ids: list[str]) -> list[Message]:
        """Give the replies."""
        self.asked.append(len(message_ids))
        return [Message(RecordDict(), reply_to=self._messages[i]) for i in message_ids]


class Inline(Answering):
    """A grid that passes messages by reference."""

    is_inline = True


@pytest.mark.parametrize("kind", [Inline, Answering])
@pytest.mark.parametrize("sent_once", [True, False])
def test_arrays_are_dropped_once_a_superlink_has_them(kind: Any, sent_once: bool) -> None:
    record = ArrayRecord({"weight": torch.zeros(9)})
    question = Message(RecordDict({"arrays": record}), 2, "train")
    held: list[int] = []
    replies = exchange(
        kind(),
        [question],
        lambda _: held.append(len(record)),
        patience=Patience(0),
        traffic=(traffic := Traffic()),
        sent_once=sent_once,
    )
    assert replies.by_node == {2: None}
    assert held == [0 if sent_once and kind is Answering else 1]
    assert traffic.bytes_down > 36


@pytest.mark.parametrize(("path", "is_awaited"), [("pull-messages", True), ("pull-object", False)])
def test_a_superlink_whose_database_is_locked_is_asked_again(path: str, is_awaited: bool) -> None:
    class Locked(Answering):
        def pull_messages(self, message_ids: list[str]) -> list[Message]:
            if not self.asked:
                self.asked.append(0)
                request = httpx.Request("POST", f"https://127.0.0.1:8000/v1/runtime/{path}")
                raise httpx.HTTPStatusError("", request=request, response=httpx.Response(500))
            return super().pull_messages(message_ids)

    questions = [Message(RecordDict(), 2, "train")]
    raises = contextlib.nullcontext() if is_awaited else pytest.raises(httpx.HTTPStatusError)
    with raises:
        grid: Any = Locked()
        found = exchange(grid, questions, lambda _: 1, patience=Patience(60), traffic=Traffic())
        assert found.by_node == {2: 1}
    assert grid.asked == [0, 1][: 1 + is_awaited]


@pytest.mark.parametrize(("floats", "portions"), [(9 << 20, [7, 7, 6]), (1, [20])])
def test_large_replies_are_pulled_in_portions(floats: int, portions: list[int]) -> None:
    content = RecordDict({"arrays": ArrayRecord({"weight": torch.zeros(floats)})})
    questions = [Message(content, node, "train") for node in range(2, 22)]
    grid: Any = Answering()
    found = exchange(grid, questions, lambda _: True, patience=Patience(0), traffic=Traffic())
    assert found.by_node == dict.fromkeys(range(2, 22), True)
    assert grid.asked == portions


def make_state(seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "half": draw(3).half(),
        "scalar": draw(),
        "turned": draw(3, 5).T,
        "none": draw(0, 4),
        "count": torch.tensor(seed),
        "mask": draw(4) > 0,
    }


@pytest.mark.parametrize("rule", ["mean", "median", "trimmed-mean"])
def test_states_on_disk_are_averaged_to_the_same_bits(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {f"silo-{index}": make_state(index) for index in range(5)}
    names, weights = sorted(states), [1.0, 2.0, 3.0, 4.0, 5.0]
    monkeypatch.setattr(spool, "MEMORY_BYTES", 0)
    once = average_states(list(states.values()), weights)
    monkeypatch.setattr(
        states_module, "_SUMMED_BYTES", 50
    )  # several passes: one or two tensors in each
    passes = average_states(list(states.values()), weights)
    assert [*map(str, passes.items())] == [*map(str, once.items())]
    with StateSpool() as spooled:
        for name in reversed(names):
            spooled.put(name, states[name])
        spooled.order(names)
        ordered = [states[name] for name in names]
        found = aggregate(spooled, weights, rule=rule, trim=0.2)
        expected = aggregate(ordered, weights, rule=rule, trim=0.2)
        assert list(found) == list(expected)
        for key, tensor in expected.items():
            assert found[key].dtype == tensor.dtype
            assert torch.equal(found[key], tensor)
        assert len(spooled[1:3]) == 2
        spooled.order(names[3:])
        assert torch.equal(average_states(spooled, [1.0, 0.5])["count"], torch.tensor(3))
        (waiting,) = {each._path.parent for each in spooled._states.values()}  # type: ignore[union-attr]
        assert waiting.exists()
    assert not waiting.exists()
