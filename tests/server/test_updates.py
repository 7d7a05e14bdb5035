"""What the server does with a round's average: Flower's optimisers and ensemble distillation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Error, Message
from flwr.serverapp.strategy import FedAdam, FedAvgM
from torch import Tensor, nn

from fedkd.config import Arm
from fedkd.errors import FedKDError, UserError
from fedkd.federation.federation import Federation
from fedkd.messages import keys
from fedkd.models.state import State, average_states, copy_state
from fedkd.registry import STRATEGIES as REGISTERED
from fedkd.training.evaluate import metrics, predict
from strategies.context import RunContext
from strategies.optimisers import FlowerOptimiser
from strategies.updates import RoundModels, server_update

STRATEGIES = list(REGISTERED)
NORMALISED = """
from torch import nn

def net(num_classes, in_channels, image_size):
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_channels * image_size ** 2, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, num_classes),
    )
"""


@pytest.fixture
def make_setting(make_study: Any, cache_dir: Path) -> Any:
    def make(strategy: str, changes: dict[str, Any] | None = None) -> RunContext:
        study = make_study({"arms/fedavg/strategy": strategy, **(changes or {})})
        return RunContext.of(Federation.load(study, 0, cache_dir), "fedavg", ())

    return make


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype, key
        assert torch.equal(found[key], tensor), key


def drifted(state: State, seed: int, size: float = 0.1) -> State:
    """Return a state some way off; counters count on."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: tensor + torch.randn(tensor.shape, generator=generator) * size
        if tensor.dtype.is_floating_point
        else tensor + seed
        for key, tensor in state.items()
    }


def one_round(number: int, sent: State, *, silos: int = 2) -> RoundModels:
    trained = [drifted(sent, 10 * number + index) for index in range(silos)]
    return RoundModels(number, sent, trained, average_states(trained, [1.0] * silos))


def test_the_schema_of_study_files_names_every_strategy() -> None:
    assert Arm.model_json_schema()["properties"]["strategy"]["examples"] == STRATEGIES


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_update_keeps_keys_shapes_and_types_and_the_models_given(
    strategy: str, make_setting: Any
) -> None:
    context = make_setting(strategy)
    models = one_round(1, copy_state(context.model("x")))
    before = [
        {key: tensor.clone() for key, tensor in state.items()}
        for state in (models.sent, *models.trained, models.average)
    ]
    found = server_update(context)(models)
    for key, tensor in models.sent.items():
        assert found[key].shape == tensor.shape
        assert found[key].dtype == tensor.dtype
    for now, then in zip((models.sent, *models.trained, models.average), before, strict=True):
        assert_same(now, then)


def test_fedavg_is_the_average(make_setting: Any) -> None:
    context = make_setting("fedavg")
    models = one_round(1, copy_state(context.model("x")))
    assert_same(server_update(context)(models), models.average)


# Flower's optimisers against their formulas, on real numbers over three rounds.


def test_the_steps_are_flowers_own() -> None:
    """Not a copy of them: what Flower mends or changes there holds here."""
    from strategies import optimisers

    assert issubclass(optimisers._Momentum, FedAvgM)
    assert issubclass(optimisers._Adam, FedAdam)
    assert "aggregate_train" not in vars(optimisers._Momentum)


def test_fedavgm_by_hand(make_setting: Any) -> None:
    """v = m v + (w - average); w = w - lr v."""
    context = make_setting("fedavgm", {"arms/fedavg/server": {"lr": 0.5, "momentum": 0.8}})
    update = server_update(context)
    state = copy_state(context.model("x"))
    exact = {key: tensor.double() for key, tensor in state.items()}
    velocity = dict.fromkeys(state, torch.zeros((), dtype=torch.float64))
    for number in (1, 2, 3):
        models = one_round(number, state)
        state = update(models)
        for key in exact:
            velocity[key] = 0.8 * velocity[key] + exact[key] - models.average[key].double()
            exact[key] = exact[key] - 0.5 * velocity[key]
            torch.testing.assert_close(state[key], exact[key].float(), rtol=0, atol=1e-6)


def test_fedadam_by_hand(make_setting: Any) -> None:
    """m and v from zero, and Adam's bias correction: the exponent is the round, from 1."""
    settings = {"lr": 0.03, "momentum": 0.7, "beta_2": 0.9, "tau": 0.01}
    context = make_setting("fedadam", {"arms/fedavg/server": settings})
    update = server_update(context)
    state = copy_state(context.model("x"))
    first = dict.fromkeys(state, torch.zeros((), dtype=torch.float64))
    second = dict(first)
    for number in (1, 2, 3):
        models = one_round(number, state)
        rate = 0.03 * math.sqrt(1 - 0.9**number) / (1 - 0.7**number)
        expected = {}
        for key, tensor in state.items():
            change = models.average[key].double() - tensor.double()
            first[key] = 0.7 * first[key] + 0.3 * change
            second[key] = 0.9 * second[key] + 0.1 * change**2
            expected[key] = tensor.double() + rate * first[key] / (second[key].sqrt() + 0.01)
        state = update(models)
        for key, tensor in expected.items():
            torch.testing.assert_close(state[key], tensor.float(), rtol=0, atol=1e-6)


def test_the_first_step_of_fedadam_is_adams(make_setting: Any) -> None:
    """Where tau is small, every parameter moves by the rate, as Adam's algorithm 1 has it."""
    settings = {"lr": 0.03, "tau": 1e-12}
    context = make_setting("fedadam", {"arms/fedavg/server": settings})
    models = one_round(1, copy_state(context.model("x")))
    stepped = server_update(context)(models)
    adam = torch.nn.ParameterDict({k.replace(".", "_"): t.clone() for k, t in models.sent.items()})
    optimiser = torch.optim.Adam(adam.values(), lr=0.03, betas=(0.9, 0.99), eps=1e-12)
    for key, tensor in models.sent.items():
        adam[key.replace(".", "_")].grad = tensor - models.average[key]
    optimiser.step()
    for key, tensor in stepped.items():
        torch.testing.assert_close(tensor, adam[key.replace(".", "_")].data, rtol=0, atol=1e-6)


def test_fedavgm_without_momentum_at_rate_one_is_fedavg(make_setting: Any) -> None:
    context = make_setting("fedavgm", {"arms/fedavg/server": {"momentum": 0.0}})
    update = server_update(context)
    models = one_round(1, copy_state(context.model("x")))
    assert_same(update(models), models.average)


def test_rates_have_defaults_of_their_own(make_setting: Any) -> None:
    """A first step of momentum is the whole change; one of Adam is bounded by its rate."""
    context = make_setting("fedavgm")
    models = one_round(1, copy_state(context.model("x")))
    moved = server_update(context)(models)
    for key, tensor in models.average.items():
        torch.testing.assert_close(moved[key], tensor, rtol=0, atol=1e-6)
    adam = server_update(make_setting("fedadam"))(models)
    step = max(float((adam[key] - models.sent[key]).abs().max()) for key in adam)
    assert 0.003 < step < 0.0101


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam"])
def test_a_run_remembers_nothing_of_another(strategy: str, make_setting: Any) -> None:
    context = make_setting(strategy)
    start = copy_state(context.model("x"))
    first, second = server_update(context), server_update(context)
    once = first(one_round(1, start))
    later = first(one_round(2, once))
    assert_same(second(one_round(1, start)), once)
    assert not torch.equal(
        server_update(context)(one_round(2, once))["1.weight"], later["1.weight"]
    ), "the second step depends on the first"


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam"])
def test_buffers_take_the_average_and_keep_their_type(
    strategy: str, make_setting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stepped variance could turn negative, and a counter is not a float."""
    (tmp_path / "normalised_model.py").write_text(NORMALISED)
    monkeypatch.syspath_prepend(str(tmp_path))
    changes = {"model/arch": "normalised_model:net", "arms/fedavg/server": {"lr": 0.9}}
    context = make_setting(strategy, changes)
    update, state = server_update(context), copy_state(context.model("x"))
    for number in (1, 2):
        models = one_round(number, state)
        state = update(models)
        for key, tensor in models.average.items():
            buffer = key.startswith("2.running") or key.endswith("num_batches_tracked")
            assert torch.equal(state[key], tensor) == buffer, key
    assert state["2.num_batches_tracked"].dtype == torch.int64


def test_tied_parameters_stay_tied(make_setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 3)
            self.two = self.one

    context = make_setting("fedadam")
    monkeypatch.setattr(RunContext, "model", lambda *_: Tied())
    update = server_update(context)
    assert isinstance(update, FlowerOptimiser)
    sent = copy_state(Tied())
    average = {key: tensor + 0.5 for key, tensor in sent.items()}
    found = update(RoundModels(1, sent, [average], average))
    assert torch.equal(found["one.weight"], found["two.weight"])
    assert not torch.equal(found["two.weight"], average["two.weight"])


def test_a_step_that_overflows_is_an_error_in_words(make_setting: Any) -> None:
    context = make_setting("fedavgm", {"arms/fedavg/server": {"lr": 1000}})
    sent = copy_state(context.model("x"))
    far = {key: torch.full_like(tensor, 1e36) for key, tensor in sent.items()}
    with pytest.raises(FedKDError, match=r"arms\.fedavg: .*round 1 diverged; lower server\.lr"):
        server_update(context)(RoundModels(1, sent, [far], far))


# FedDF.


def test_the_ensemble_is_the_softmax_of_the_mean_of_the_logits(
    make_setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_setting("feddf", {"arms/fedavg/fusion": {"temperature": 2.0}})
    models = one_round(1, copy_state(context.model("x")), silos=3)
    logits = [predictions(context, state) for state in models.trained]
    mean = sum(z.double() for z in logits) / 3
    seen: list[Tensor] = []

    def watch(*args: Any, **kwargs: Any) -> float:
        seen.append(args[2][0])
        return 0.0

    monkeypatch.setattr("strategies.feddf.fit", watch)
    found = server_update(context)(models)
    torch.testing.assert_close(seen[0], torch.softmax(mean / 2.0, dim=1).float())
    assert_same(found, models.average)


def predictions(context: RunContext, state: State) -> Tensor:
    model = context.model("x")
    model.load_state_dict(state)
    assert context.transfer is not None
    return predict(model, context.transfer.images, compute=context.compute)


def gap(context: RunContext, state: State, models: RoundModels) -> float:
    """KL of the ensemble's mean logits against a model's predictions."""
    mean = torch.stack([predictions(context, s).double() for s in models.trained]).mean(0)
    target, found = mean.log_softmax(1), predictions(context, state).double().log_softmax(1)
    return float((target.exp() * (target - found)).sum(1).mean())


def test_distilling_moves_the_average_towards_the_ensemble(make_setting: Any) -> None:
    context = make_setting("feddf", {"arms/fedavg/fusion": {"epochs": 20}})
    models = one_round(1, copy_state(context.model("x")), silos=3)
    before = gap(context, models.average, models)
    assert gap(context, server_update(context)(models), models) < before / 5


def test_the_loss_is_that_of_the_papers_code(
    make_setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``BaseKTSolver.divergence`` of the authors' code: KL at temperature T, without T^2."""
    context = make_setting("feddf", {"arms/fedavg/fusion": {"temperature": 3.0}})
    models = one_round(1, copy_state(context.model("x")))
    losses: list[tuple[Tensor, Tensor]] = []
    logits = torch.randn(60, 10)

    def compare(*args: Any, **kwargs: Any) -> float:
        (target,), loss = args[2], args[3]
        student = (logits / 3.0).log_softmax(1)
        theirs = torch.nn.functional.kl_div(student, target, reduction="batchmean")
        losses.append((loss(logits, (target,)), theirs))
        return 0.0

    monkeypatch.setattr("strategies.feddf.fit", compare)
    server_update(context)(models)
    torch.testing.assert_close(*losses[0])


def test_distillation_is_seeded_by_the_round(make_setting: Any) -> None:
    context = make_setting("feddf")
    sent = copy_state(context.model("x"))
    models = one_round(1, sent)
    update = server_update(context)
    found = update(models)
    assert_same(update(models), found)
    other = update(RoundModels(2, sent, models.trained, models.average))
    assert not torch.equal(other["1.weight"], found["1.weight"])


@pytest.mark.parametrize("key", ["epochs", "batch_size", "lr", "momentum", "temperature"])
def test_every_setting_of_fusion_counts(key: str, make_setting: Any) -> None:
    values = {"epochs": 3, "batch_size": 7, "lr": 0.05, "momentum": 0.1, "temperature": 4.0}
    plain = make_setting("feddf")
    models = one_round(1, copy_state(plain.model("x")))
    changed = make_setting("feddf", {"arms/fedavg/fusion": {key: values[key]}})
    first, second = server_update(plain)(models), server_update(changed)(models)
    assert not torch.equal(first["1.weight"], second["1.weight"])


def test_labels_of_the_transfer_set_are_not_used(make_setting: Any) -> None:
    hidden, shown = (
        make_setting("feddf", {"data/transfer": {"size": 60, "labelled": labelled}})
        for labelled in (False, True)
    )
    models = one_round(1, copy_state(hidden.model("x")))
    assert_same(server_update(hidden)(models), server_update(shown)(models))


def test_without_a_transfer_set_feddf_is_refused(make_setting: Any) -> None:
    from dataclasses import replace

    context = replace(make_setting("feddf"), transfer=None)
    with pytest.raises(UserError, match=r"arms\.fedavg\.strategy: feddf .* no transfer set"):
        server_update(context)


def test_a_distillation_that_diverges_is_an_error_in_words(make_setting: Any) -> None:
    fusion = {"lr": 1000, "epochs": 5}
    context = make_setting("feddf", {"model/arch": "resnet8", "arms/fedavg/fusion": fusion})
    models = one_round(4, copy_state(context.model("x")))
    with pytest.raises(FedKDError, match=r"round 4 diverged; lower fusion\.lr \(now 1000\)"):
        server_update(context)(models)


# In the round loop.


def arm(strategy: str, start: str) -> tuple[str, dict[str, Any]]:
    name = "fedkd-new" if start == "consolidated" else "new"
    settings: dict[str, Any] = {"start": start, "strategy": strategy}
    if start == "consolidated":
        settings["consolidation"] = {"epochs": 2}
    return name, {f"arms/{name}": settings}


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
@pytest.mark.parametrize("start", ["random", "average", "best", "consolidated"])
def test_any_start_goes_with_any_strategy(
    strategy: str, start: str, run_arm: Any, make_study: Any
) -> None:
    name, changes = arm(strategy, start)
    ran = run_arm(make_study(changes), name)
    plain_name, plain_changes = arm("fedavg", start)
    plain = run_arm(make_study(plain_changes), plain_name)
    assert ran.refused == []
    assert ran.run.curve[0].accuracy == plain.run.curve[0].accuracy
    assert ran.run.curve[0].loss == plain.run.curve[0].loss
    assert ran.run.curve[2].loss != plain.run.curve[2].loss
    assert [p.bytes_down for p in ran.run.curve] == [p.bytes_down for p in plain.run.curve], (
        "the model keeps its types, and so its bytes"
    )
    assert ran.run.exchanges_before_round_1 == plain.run.exchanges_before_round_1


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_a_round_without_quorum_ends_the_run_with_the_model_before_it(
    strategy: str, run_arm: Any, make_study: Any
) -> None:
    def tamper(silo: str, question: Message, reply: Message) -> Message:
        late = question.content.config_records[keys.CONFIG][keys.ROUND] == 2
        if late and silo != "silo-1" and question.metadata.message_type == keys.TRAIN:
            return Message(Error(2, "away"), reply_to=question)
        return reply

    name, changes = arm(strategy, "random")
    ran = run_arm(make_study({**changes, "rounds/max": 4}), name, tamper=tamper)
    assert ran.run.stopped == "quorum"
    assert [p.round for p in ran.run.curve] == [0, 1]
    assert_same(ran.state, run_arm(make_study({**changes, "rounds/max": 1}), name).state)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rounds_are_what_their_parts_are_and_leave_refused_silos_out(
    strategy: str, run_arm: Any, make_study: Any
) -> None:
    def tamper(silo: str, question: Message, reply: Message) -> Message:
        if question.metadata.message_type == keys.TRAIN and silo == "silo-2":
            bad = reply.content.array_records[keys.ARRAYS]
            key = next(iter(bad))
            bad[key].data = type(bad[key])(np.full(bad[key].shape, np.nan, np.float32)).data
        return reply

    name, changes = arm(strategy, "random")
    ran = run_arm(make_study({**changes, "rounds/max": 2}), name, tamper=tamper)
    assert ran.refused == [("silo-2", 1), ("silo-2", 2)]
    update, state = server_update(ran.context), ran.context.model("initial-model").state_dict()
    for number in (1, 2):
        states = [silo.train(state, number, ran.context.rounds)[0] for silo in ran.silos[:2]]
        average = average_states(states, [float(len(silo.data)) for silo in ran.silos[:2]])
        state = update(RoundModels(number, state, states, average))
    assert_same(ran.state, state)


def test_a_users_combination_goes_through_the_update(make_study: Any, cache_dir: Path) -> None:
    """``combine`` is for users to override; the server optimiser steps towards what it returns."""
    from strategies.fedavg import SiloFedAvg

    class Median(SiloFedAvg):
        def combine(self, states: Any, num_examples: Any) -> State:
            return {key: torch.stack([s[key] for s in states]).median(0)[0] for key in states[0]}

    study = make_study({"arms/fedavg/strategy": "fedavgm"})
    context = RunContext.of(Federation.load(study, 0, cache_dir), "fedavg", ())
    strategy = Median(context, observer=None, run_id="r")  # type: ignore[arg-type]
    sent = copy_state(context.model("x"))
    states = [drifted(sent, seed) for seed in range(3)]
    combined = strategy.combine(states, [1, 1, 1])
    found = strategy.update(RoundModels(1, sent, states, combined))
    torch.testing.assert_close(found["1.weight"], combined["1.weight"], rtol=0, atol=1e-6)


def test_a_cohort_of_one_teaches_and_steps(run_arm: Any, make_study: Any) -> None:
    """FedDF of one model: the average is the teacher itself, so that distilling keeps it."""
    for strategy in STRATEGIES:
        name, changes = arm(strategy, "random")
        ran = run_arm(make_study({**changes, "rounds/fraction": 0.34, "rounds/max": 3}), name)
        assert [p.silos_ok for p in ran.run.curve[1:]] == [1, 1, 1]
        assert all(bool(torch.isfinite(tensor).all()) for tensor in ran.state.values())
    plain_name, plain = arm("fedavg", "random")
    one = {"rounds/fraction": 0.34, "rounds/max": 1}
    ensemble = run_arm(make_study({**arm("feddf", "random")[1], **one}), "new")
    alone = run_arm(make_study({**plain, **one}), plain_name)
    logits = [predictions(ran.context, ran.state) for ran in (ensemble, alone)]
    labels = logits[1].argmax(1)
    assert metrics(logits[0], labels).accuracy > 0.9
