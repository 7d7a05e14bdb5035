"""Silos that drop out and come back between rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from clients.handlers import make_client_app
from clients.silo import Silo
from fedkd.engines.inline import InlineGrid, make_grid
from fedkd.federation.federation import Federation
from fedkd.messages import keys, train
from strategies.context import RunContext
from strategies.evaluation import central_evaluation
from strategies.fedavg import SiloFedAvg, initial_arrays
from strategies.introductions import gather
from strategies.session import Session

ROUNDS = 4
Plan = dict[int, set[int]]


class ComingAndGoing(InlineGrid):
    """A grid whose nodes are connected as a plan says: from which look on, which nodes."""

    plan: Plan
    looks = 0

    def get_node_ids(self) -> Iterable[int]:
        now = max(look for look in self.plan if look <= self.looks)
        self.looks += 1
        return sorted(self.plan[now])


class Deaf:
    def on_point(self, point: Any) -> None:
        pass

    def on_distillation(self, epoch: int, epochs: int) -> None:
        pass

    def on_waiting(self, reason: str) -> None:
        pass


@pytest.fixture
def attend(pool: Any, cache_dir: Any, make_study: Any) -> Callable[..., SiloFedAvg]:
    """Return a function that runs FedAvg over nodes that come and go.

    Args of it: the plan, by look (0: the call of the roster, n: before round n); which silo a node
    is; changes of the study.
    """

    def run(plan: Plan, silo_of: dict[int, int], changes: dict[str, Any] | None = None) -> Any:
        study = make_study({"rounds/max": ROUNDS, "rounds/timeout": 0.1, **(changes or {})})
        federation = Federation.load(study, 0, cache_dir)
        silos = [Silo.of(federation, name, "fedavg") for name in study.silo_names]
        contexts = {
            node: Context(1, node, {"silo-index": index}, RecordDict(), {keys.CONFIG_ARM: "fedavg"})
            for node, index in silo_of.items()
        }
        app = make_client_app(lambda c: (silos[int(str(c.node_config["silo-index"]))], study))
        grid = ComingAndGoing(app, contexts, pool)
        grid.plan = plan
        context = RunContext.of(federation, "fedavg", ())
        strategy = SiloFedAvg(context, Deaf(), "this-run")
        strategy.start(
            grid,
            initial_arrays(context),
            num_rounds=ROUNDS,
            timeout=0.1,
            evaluate_fn=central_evaluation(context),
        )
        return strategy

    return run


SAME = {2: 0, 3: 1, 4: 2}


def node_of(strategy: SiloFedAvg, name: str) -> int:
    (node,) = (member.node_id for member in strategy.state.members if member.name == name)
    return node


def answered(strategy: SiloFedAvg) -> list[int]:
    return [point.silos_ok for point in strategy.state.curve[1:]]


def test_a_silo_that_is_gone_is_not_waited_for_and_takes_part_again(attend: Any) -> None:
    strategy = attend({0: {2, 3, 4}, 2: {2, 4}, 3: {2, 3, 4}}, SAME)
    assert answered(strategy) == [3, 2, 3, 3]
    (missed,) = strategy.state.quarantined
    assert (missed.silo, missed.round) == ("silo-1", 2)
    assert missed.reason == "it is not connected"


def test_coming_back_leaves_later_rounds_their_order(attend: Any) -> None:
    strategy = attend({0: {2, 3, 4}, 2: {2, 4}, 3: {2, 3, 4}}, SAME)
    assert [member.name for member in strategy.state.members] == ["silo-0", "silo-1", "silo-2"]


def test_a_returned_silo_may_be_a_new_node(attend: Any) -> None:
    """Without node authentication a restarted SuperNode has a new id."""
    strategy = attend({0: {2, 3, 4}, 2: {2, 4}, 3: {2, 4, 9}}, {**SAME, 9: 1})
    assert answered(strategy) == [3, 2, 3, 3]
    assert node_of(strategy, "silo-1") == 9


def test_a_name_is_taken_from_nobody_who_is_there(attend: Any) -> None:
    strategy = attend({0: {2, 3, 4}, 2: {2, 3, 4, 9}}, {**SAME, 9: 1})
    assert answered(strategy) == [3, 3, 3, 3]
    assert node_of(strategy, "silo-1") == 3
    (refused,) = strategy.state.quarantined
    assert "claims the name 'silo-1'" in refused.reason
    assert strategy.state.curve[2].silos_failed == 0


def test_a_claim_is_met_once_the_old_node_is_gone(attend: Any) -> None:
    """The SuperLink may count a killed node as connected for a minute still."""
    strategy = attend({0: {2, 3, 4}, 2: {2, 3, 4, 9}, 4: {2, 4, 9}}, {**SAME, 9: 1})
    assert node_of(strategy, "silo-1") == 9
    assert answered(strategy)[3] == 3


def test_a_silo_may_come_late(attend: Any) -> None:
    strategy = attend({0: {2, 3}, 50: {2, 3, 4}}, SAME, {"rounds/quorum": 0.5})
    assert answered(strategy)[0] == 2
    late = attend({0: {2, 3}, 1: {2, 3}, 2: {2, 3, 4}}, SAME, {"rounds/quorum": 0.5})
    assert node_of(late, "silo-2") == 4
    assert answered(late)[-1] == 3


def test_every_silo_that_has_not_come_back_to_a_resumed_run_is_missed(
    pool: Any, cache_dir: Any, make_study: Any
) -> None:
    """All of them are on the same node, which is none."""
    study = make_study({"rounds/max": 1})
    federation = Federation.load(study, 0, cache_dir)
    silos = [Silo.of(federation, name, "fedavg") for name in study.silo_names]
    grid = make_grid(silos, study, {keys.CONFIG_ARM: "fedavg"}, pool, InlineGrid)
    context = RunContext.of(federation, "fedavg", ())
    session = Session(grid, context, Deaf(), "this-run", 5.0)
    gather(session)
    before = session.members
    for name in ("silo-1", "silo-2"):
        del session.roster[name]
    session.roster.keep_to(before)
    session.ledger.open(1)
    question = train.write_question(1, initial_arrays(context), {})
    answers = session.ask(session.members, question, lambda _, content: content)
    assert [member.name for member, _ in answers] == ["silo-0"]
    missed = [(entry.silo, entry.reason) for entry in session.ledger.quarantined]
    assert missed == [(name, "it is not connected") for name in ("silo-1", "silo-2")]
