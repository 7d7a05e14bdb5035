"""Starts and strategies of the user's own: used by name, charged, and named when they fail."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clients.silo import Silo
from fedkd.config.own import function_keys
from fedkd.config.study_file import check_files
from fedkd.errors import UserCodeError, UserError
from fedkd.federation.federation import Federation
from fedkd.training.aggregation import aggregate
from strategies.fedkd import FedKD
from strategies.run_state import RunState

MODULE = """
import torch
from strategies.collect import collect_teachers
from strategies.fedavg import SiloFedAvg
from strategies.fedkd import FedKD
from strategies.run_state import Start
from strategies.updates import ServerUpdate


def zeros(session, initial):
    return Start({k: torch.zeros_like(t) for k, t in initial.items()}, exchanges=0)


zeros.needs_models = False


def first(session, initial):
    teachers = collect_teachers(session)
    notes = {"options": session.context.options}
    session.context.options["changed"] = True
    return Start(teachers.members[0].state, 1, notes, teachers)


def raising(session, initial):
    raise ValueError("no luck")


def nothing(session, initial):
    return initial


def short(session, initial):
    return Start(dict(list(initial.items())[1:]), exchanges=0)


def endless(session, initial):
    return Start({k: t / 0 for k, t in initial.items()}, exchanges=0)


def unwritable(session, initial):
    return Start(initial, exchanges=0, notes={"scores": torch.zeros(2)})


def short_signature(session):
    return None


def unpaid(session, initial):
    collect_teachers(session)
    return Start(initial, exchanges=0)


class Half(ServerUpdate):
    def __call__(self, models):
        sent, average = models.sent, models.average
        return {key: (sent[key] + average[key]) / 2 for key in sent}


def half(context):
    return Half()


def stepping(context):
    assert context.options.get("step") == 1
    return Half()


def no_update(context):
    return 7


def no_factory(context):
    raise KeyError("rate")


class Failing(Half):
    def __call__(self, models):
        if models.number == 2:
            raise RuntimeError("no step")
        return super().__call__(models)


class Shrinking(Half):
    def __call__(self, models):
        return {key: tensor[:1] for key, tensor in models.average.items()}


class Secretive(Half):
    def state_dict(self):
        return {"rounds": 3}


def of(kind):
    return lambda context: kind()


failing, shrinking, secretive = of(Failing), of(Shrinking), of(Secretive)


class Median(SiloFedAvg):
    def combine(self, states, num_examples):
        return {key: torch.stack([s[key] for s in states]).median(0)[0] for key in states[0]}


class Quick(FedKD):
    def consolidate(self, session, teachers, basis):
        made = super().consolidate(session, teachers, basis)
        made.notes["quick"] = True
        return made


class Clumsy(SiloFedAvg):
    def combine(self, states, num_examples):
        return states[99]
"""


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_arm: Any, make_study: Any
) -> Callable[..., Any]:
    """Return a function that runs an arm whose start or strategy is in the module ``mine``."""
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)

    def run(arm: dict[str, Any], changes: dict[str, Any] | None = None, **options: Any) -> Any:
        name = "fedkd" if arm["start"] == "consolidated" else "own"
        study = make_study({f"arms/{name}": arm, "rounds/max": 2, **(changes or {})})
        return run_arm(study, name, **options)

    return run


def test_a_start_gives_the_model_its_cost_and_its_notes(run: Any) -> None:
    ran = run({"start": "mine:first", "options": {"list": [1, {"deep": True}]}})
    assert ran.run.exchanges_before_round_1 == 1
    assert ran.run.notes["options"] == {"list": [1, {"deep": True}]}
    assert ran.context.options == {"list": [1, {"deep": True}]}, "a change is nobody else's"
    own = ran.silos[0].own_model().state
    assert all(torch.equal(ran.start.state[key], tensor) for key, tensor in own.items())
    assert ran.run.curve[0].silos_ok == 3


def test_a_start_without_models_needs_no_pretraining(
    run: Any, make_study: Any, cache_dir: Path
) -> None:
    ran = run({"start": "mine:zeros"})
    assert ran.run.exchanges_before_round_1 == 0
    assert not any(bool(tensor.any()) for tensor in ran.start.state.values())
    arms = {"own": {"start": "mine:zeros"}, "fedavg": {"start": "random"}}
    study = make_study({"arms": arms})
    assert not study.needs_pretrained
    silo = Silo.of(Federation.load(study, 0, cache_dir), "silo-0", "own")
    assert not silo.uses_model
    assert make_study({"arms/own": {"start": "mine:first"}}).arms["own"].needs_pretrained


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        ("raising", r"start mine:raising raised ValueError: no luck \(mine.py, line \d+\)"),
        ("nothing", r"arms\.own\.start: mine:nothing returned dict, not a Start"),
        ("short", r"mine:short returned an unusable model: 1 of \d+ tensors are missing"),
        ("endless", r"mine:endless returned an unusable model: not all of its values are finite"),
        ("unpaid", r"mine:unpaid reports 0 exchanges, but made 1"),
        (
            "unwritable",
            r"mine:unwritable returned notes that JSON cannot hold \(Object",
        ),
        ("short_signature", r"mine:short_signature does not fit its call: too many positional"),
        ("frist", r"mine:frist cannot be imported: .* no attribute 'frist' \(did you mean 'first'"),
    ],
)
def test_a_start_that_fails_is_named(start: str, sentence: str, run: Any) -> None:
    with pytest.raises(UserError, match=sentence):
        run({"start": f"mine:{start}"})


@pytest.mark.parametrize(
    ("options", "warns"), [({"step": 1, "lrr": 2}, True), ({"step": 1}, False)]
)
def test_an_option_that_nothing_reads_is_told(options: Any, warns: bool, run: Any) -> None:
    ran = run({"start": "random", "strategy": "mine:stepping", "options": options})
    warning = ran.run.notes.get("warning", "")
    assert ("arms.own.options: nothing had read lrr" in warning) is warns


def test_a_strategy_makes_the_next_model(run: Any) -> None:
    ran = run({"start": "random", "strategy": "mine:half"}, {"rounds/max": 1})
    sent = ran.context.model("initial-model").state_dict()
    states = [silo.train(sent, 1, ran.context.rounds)[0] for silo in ran.silos]
    sizes = [float(len(silo.data)) for silo in ran.silos]
    average = aggregate(states, sizes, rule="mean", trim=0)
    for key, tensor in ran.state.items():
        assert torch.equal(tensor, (sent[key] + average[key]) / 2)


@pytest.mark.parametrize(
    ("strategy", "sentence"),
    [
        ("no_factory", r"strategy mine:no_factory raised KeyError: 'rate' \(mine.py, line \d+\)"),
        ("no_update", r"arms\.own\.strategy: mine:no_update returned int, not a ServerUpdate"),
        ("failing", r"strategy mine:failing raised RuntimeError: no step \(mine.py, line \d+\)"),
        ("shrinking", r"mine:shrinking returned an unusable model in round 1: .* where the model"),
        ("secretive", r"strategy mine:secretive: state_dict must return tensors by name"),
        ("Clumsy", r"strategy mine:Clumsy raised IndexError: list index out of range \(mine.py"),
    ],
)
def test_a_strategy_that_fails_is_named(
    strategy: str, sentence: str, run: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        run({"start": "random", "strategy": f"mine:{strategy}"}, folder=tmp_path / "run")


def test_faults_of_ours_are_not_blamed_on_the_user(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr("strategies.fedavg.aggregate", broken)
    with pytest.raises(RuntimeError, match=r"^ours$"):
        run({"start": "random", "strategy": "mine:half"})


def test_a_class_derived_from_the_servers_own_is_a_strategy(run: Any) -> None:
    ran = run({"start": "random", "strategy": "mine:Median"}, {"rounds/max": 1})
    sent = ran.context.model("initial-model").state_dict()
    states = [silo.train(sent, 1, ran.context.rounds)[0] for silo in ran.silos]
    for key, tensor in ran.state.items():
        assert torch.equal(tensor, torch.stack([s[key] for s in states]).median(0)[0])
    consolidating = {"start": "consolidated", "consolidation": {"epochs": 1}}
    quick = run({**consolidating, "strategy": "mine:Quick"})
    assert quick.run.notes["quick"] is True
    plain = run(consolidating)
    assert all(torch.equal(quick.state[key], tensor) for key, tensor in plain.state.items())
    assert "quick" not in plain.run.notes


def test_a_consolidating_arm_is_a_fedkd(make_study: Any, cache_dir: Path) -> None:
    from strategies.context import RunContext
    from strategies.server_app import make_strategy

    context = RunContext.of(Federation.load(make_study(), 0, cache_dir), "fedkd", ())
    strategy = make_strategy(context, None, "r", state=RunState())  # type: ignore[arg-type]
    assert type(strategy) is FedKD


def test_names_are_looked_up_before_anything_runs(run: Any, make_study: Any) -> None:
    for key, name in (("start", "mine:absent"), ("strategy", "nowhere:f")):
        arm = {"start": "random", key: name}
        with pytest.raises(UserError, match=rf"arms\.own\.{key}: .*{name} cannot be imported"):
            check_files(make_study({"arms/own": arm}))


def test_an_edit_of_a_start_is_another_run(run: Any, make_study: Any, tmp_path: Path) -> None:
    study = make_study({"arms/own": {"start": "mine:zeros", "strategy": "mine:half"}})
    before = function_keys(study, "own")
    (tmp_path / "mine.py").write_text(MODULE + "\n# more\n")
    after = function_keys(study, "own")
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False]


def test_errors_of_user_code_are_the_users(run: Any) -> None:
    with pytest.raises(UserCodeError):
        run({"start": "mine:raising"})
