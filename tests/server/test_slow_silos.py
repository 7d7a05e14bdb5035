"""Rounds that end when enough silos have replied, and what becomes of those that reply later."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message

from clients.silo import Silo
from fedkd.engines.inline import InlineGrid, make_grid
from fedkd.errors import UserError
from fedkd.federation.federation import Federation
from fedkd.messages import keys, train
from fedkd.messages.train import TrainedModel
from strategies.context import RunContext
from strategies.evaluation import central_evaluation
from strategies.fedavg import SiloFedAvg, initial_arrays
from strategies.late import catch_up

SLOW, LATE, ROUNDS, LIMIT = 4, 3, 5, 60.0
"""The slow silo's answer to round 1 comes in round ``LATE``."""
FIVE = {"partition": {"scheme": "iid", "silos": 5, "min_size": 12}, "data/train_size": 200}


class ThreadGrid(InlineGrid):
    """A grid that answers every message in a thread of its own; the slow silo is held back.

    The replies of a round are handed over at one moment: those of the four others, and from round
    ``LATE`` on the slow silo's too.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: list[tuple[int, int]] = []
        self.released = threading.Event()
        self._lock = threading.Lock()
        self._due: dict[int, dict[str, Message]] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Start a thread for every message; what is not training is answered at once."""
        messages = list(messages)
        # Not twelve hours, as Flower's do: a silo's worker that hangs ends with its message.
        assert all(LIMIT < message.metadata.ttl <= LIMIT + 60 for message in messages)
        if any(message.metadata.message_type != keys.TRAIN for message in messages):
            return super().push_messages(messages)
        for message in messages:
            message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
            threading.Thread(target=self._work, args=(message,), daemon=True).start()
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand over the replies that are there at one moment."""
        with self._lock:
            return super().pull_messages(message_ids)

    def _work(self, message: Message) -> None:
        node = message.metadata.dst_node_id - 2
        number = int(str(message.content.config_records[keys.CONFIG][keys.ROUND]))
        self.asked.append((number, node))
        if node == SLOW:
            self.released.wait(LIMIT)
            number = max(LATE, number)
        reply = self._answer(message, self._contexts[node + 2])
        with self._lock:
            due = self._due.setdefault(number, {})
            due[message.metadata.message_id] = reply
            if len(due) == (4 if number < LATE else 5):
                self._replies.update(due)


class Watcher:
    """Lets the slow silo answer once two rounds have gone by without it."""

    def __init__(self, grid: ThreadGrid) -> None:
        self.grid = grid

    def on_point(self, point: Any) -> None:
        if point.round == LATE - 1:
            self.grid.released.set()

    def on_distillation(self, epoch: int, epochs: int) -> None: ...

    def on_waiting(self, reason: str) -> None: ...


def test_nobody_waits_for_a_slow_silo_and_its_model_counts_when_it_comes(
    pool: Any, cache_dir: Any, make_study: Any
) -> None:
    study = make_study({**FIVE, "rounds/max": ROUNDS, "rounds/stop": "budget"})
    early = {"enough": 0.8, "grace": 0.0, "timeout": LIMIT, "max_failures": 1}
    study = study.model_copy(update={"rounds": study.rounds.model_copy(update=early)})
    federation = Federation.load(study, 0, cache_dir)
    silos = [Silo.of(federation, name, "fedavg") for name in study.silo_names]
    grid = make_grid(silos, study, {keys.CONFIG_ARM: "fedavg"}, pool, ThreadGrid)
    context = RunContext.of(federation, "fedavg", ())
    strategy = SiloFedAvg(context, Watcher(grid), "this-run")
    evaluate = central_evaluation(context)
    strategy.start(grid, initial_arrays(context), ROUNDS, timeout=LIMIT, evaluate_fn=evaluate)
    state = strategy.state
    # Asked in round 1, it is asked again only once it has answered, in round 3.
    asked = [number for number, node in grid.asked if node == SLOW]
    assert asked == [1, 4, 5]
    assert [point.silos_ok for point in state.curve[1:]] == [4, 4, 5, 5, 5], state.quarantined
    assert state.notes["ended_early"] == [1]
    assert state.notes["late_models"] == {"silo-4": [3]}
    assert [(entry.round, entry.reason) for entry in state.quarantined] == [
        (1, "it did not answer in time"),
        (2, "it still works on an earlier round"),
    ]
    assert "quarantined_after" not in state.notes  # max_failures is 1, and it is late, not wrong


def test_a_late_model_counts_by_what_it_changed_and_less_with_age() -> None:
    sent, now = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 2.0])}
    late = TrainedModel({"w": torch.tensor([2.0, 4.0]), "n": torch.tensor(7)}, 10, 0.5)
    record = ArrayRecord({**sent, "n": torch.tensor(1)})
    question = train.write_question(2, record, {})
    same = catch_up(late, question, {**now, "n": torch.tensor(9)}, 5)
    assert torch.equal(same.state["w"], torch.tensor([3.5, 3.0]))  # half, after three rounds
    assert torch.equal(same.state["n"], torch.tensor(7))
    assert (same.num_examples, same.loss) == (10, 0.5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rounds/enough": 0.8}, "rounds.enough: ends a round by the clock; it is for"),
        ({"rounds/grace": 0.5}, "set enough"),
        ({"rounds/enough": 1.5}, "enough"),
    ],
)
def test_early_ends_are_for_deployed_silos(
    changes: dict[str, Any], said: str, make_study: Any
) -> None:
    with pytest.raises(UserError, match=said):
        make_study(changes)
