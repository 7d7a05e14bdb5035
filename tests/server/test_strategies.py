"""The round loop: who takes part, when it stops, and what a diverged silo does to it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Error, Message

from fedkd.distillation.selection import fresh_student
from fedkd.errors import FedKDError
from fedkd.federation.federation import Federation
from fedkd.messages import keys
from fedkd.models.build import Shape, build_model
from fedkd.models.state import State, average_states, save_state
from fedkd.util.names import natural_key
from strategies.context import RunContext
from strategies.fedavg import SiloFedAvg
from strategies.roster import Member

SHAPE = Shape(10, 1, 8)

DIVERGING = {
    "model/arch": "resnet8",
    "pretraining/epochs": 1,
    "arms/fedkd/consolidation": {"lr": 1000, "epochs": 5},
    "rounds/max": 1,
}


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


def test_natural_order_counts_digits_as_numbers() -> None:
    names = ["silo-10", "silo-2", "b", "silo-1", "2nd", "10th", "silo-2-b", "silo-02"]
    expected = ["2nd", "10th", "b", "silo-1", "silo-02", "silo-2", "silo-2-b", "silo-10"]
    assert sorted(names, key=natural_key) == expected
    assert natural_key("silo-2") < natural_key("silo-10")


@pytest.fixture
def make_cohorts(make_study: Any, cache_dir: Path) -> Any:
    """Return a function that gives, for a study, the function from a round to its cohort."""

    def make(silos: int, fraction: float, seed: int = 0) -> Any:
        study = make_study(
            {
                "rounds/fraction": fraction,
                "partition": {"scheme": "iid", "silos": silos, "min_size": 1},
                "seeds": [seed],
            }
        )
        context = RunContext.of(Federation.load(study, seed, cache_dir), "fedavg", ())
        strategy = SiloFedAvg(context, observer=None, run_id="r")  # type: ignore[arg-type]
        backwards = reversed(study.silo_names)
        members = [Member(name, 2 + i) for i, name in enumerate(backwards)]
        return lambda number: names(strategy.cohort(members, number))

    return make


def names(members: list[Member]) -> list[str]:
    return [member.name for member in members]


def test_cohorts_are_seeded_and_in_natural_order(make_cohorts: Any) -> None:
    cohort, same = make_cohorts(12, 0.5), make_cohorts(12, 0.5)
    cohorts = [cohort(number) for number in range(1, 30)]
    assert cohorts == [same(number) for number in range(1, 30)]
    assert cohorts[4] == cohort(5), "no state is carried over"
    assert all(len(cohort) == 6 and cohort == sorted(cohort, key=natural_key) for cohort in cohorts)
    assert len({tuple(cohort) for cohort in cohorts}) > 20
    assert set().union(*cohorts) == {f"silo-{i}" for i in range(12)}
    other = make_cohorts(12, 0.5, seed=1)
    assert cohorts != [other(number) for number in range(1, 30)]


@pytest.mark.parametrize(("fraction", "size"), [(0.01, 1), (0.34, 2), (0.5, 2), (1.0, 5)])
def test_a_cohort_has_its_share_and_at_least_one(
    fraction: float, size: int, make_cohorts: Any
) -> None:
    assert len(make_cohorts(5, fraction)(1)) == size


def test_silos_left_out_cost_nothing(run_arm: Any, make_study: Any) -> None:
    whole = run_arm(make_study({"rounds/max": 1}), "fedavg")
    part = run_arm(make_study({"rounds/max": 1, "rounds/fraction": 0.34}), "fedavg")
    assert part.run.curve[1].silos_ok == 1
    assert part.run.curve[1].bytes_down * 3 == whole.run.curve[1].bytes_down
    (member,) = part.cohort(part.run.members, 1)
    (silo,) = (silo for silo in part.silos if silo.name == member.name)
    start = part.context.model("initial-model").state_dict()
    assert_same(part.state, silo.train(start, 1, part.context.rounds)[0])


def failing(*silos: str, first_round: int = 1) -> Any:
    """Return a tampering by which some silos fail from a round on."""

    def tamper(silo: str, question: Message, reply: Message) -> Message:
        config = question.content.config_records[keys.CONFIG]
        late = int(str(config[keys.ROUND])) >= first_round
        if silo in silos and late and question.metadata.message_type == keys.TRAIN:
            return Message(Error(2, "away"), reply_to=question)
        return reply

    return tamper


def test_rounds_stop_where_fewer_than_the_quorum_answer(run_arm: Any, make_study: Any) -> None:
    study = make_study({"rounds/max": 4, "rounds/quorum": 0.67})
    tamper = failing("silo-0", first_round=3)
    ran = run_arm(study, "fedavg", tamper=tamper)
    assert ran.run.stopped == "quorum"
    assert [p.round for p in ran.run.curve] == [0, 1, 2]
    assert ran.refused == [("silo-0", 3)]
    whole = run_arm(make_study({"rounds/max": 2}), "fedavg")
    assert_same(ran.state, whole.state)


def test_a_quorum_just_met_goes_on(run_arm: Any, make_study: Any) -> None:
    study = make_study({"rounds/max": 2, "rounds/quorum": 0.3})
    ran = run_arm(study, "fedavg", tamper=failing("silo-0", "silo-2"))
    assert ran.run.stopped == "budget"
    assert [p.silos_ok for p in ran.run.curve[1:]] == [1, 1]


def test_no_answer_at_all_stops_whatever_the_quorum(run_arm: Any, make_study: Any) -> None:
    study = make_study({"rounds/max": 2, "rounds/quorum": 0.0})
    ran = run_arm(study, "fedavg", tamper=failing("silo-0", "silo-1", "silo-2"))
    assert ran.run.stopped == "quorum"
    assert len(ran.run.curve) == 1


def test_targets_stop_a_run_as_soon_as_all_are_reached(run_arm: Any, make_study: Any) -> None:
    study = make_study({"rounds/max": 30, "rounds/stop": "targets"})
    ran = run_arm(study, "fedavg", targets=(0.3, 0.5))
    curve = ran.run.curve
    assert ran.run.stopped == "targets"
    assert 1 < len(curve) < 31
    assert curve[-1].accuracy >= 0.5
    assert all(point.accuracy < 0.5 for point in curve[:-1])
    at_start = run_arm(study, "fedavg", targets=(0.0,))
    assert [p.round for p in at_start.run.curve] == [0]
    budget = make_study({"rounds/max": 2, "rounds/stop": "budget"})
    assert run_arm(budget, "fedavg", targets=(0.0,)).run.stopped == "budget"


@pytest.mark.parametrize(
    ("start", "exchanges"), [("random", 0), ("average", 1), ("best", 1), ("consolidated", 1)]
)
def test_every_start_is_charged_its_exchange(
    start: str, exchanges: int, run_arm: Any, make_study: Any
) -> None:
    name = "fedkd" if start == "consolidated" else "arm"
    ran = run_arm(make_study({"rounds/max": 1, f"arms/{name}": {"start": start}}), name)
    assert ran.run.exchanges_before_round_1 == exchanges
    point = ran.run.curve[0]
    model = sum(t.numel() * 4 for t in ran.state.values())
    assert point.bytes_down > 0
    assert (point.bytes_up > 3 * model) == (exchanges == 1)


# A silo whose own model diverged.


def checkpoint(path: Path, *, diverged: bool = False, seed: int = 0) -> str:
    state = dict(build_model("mlp", SHAPE, seed=seed).state_dict())
    if diverged:
        state["1.weight"] = torch.full_like(state["1.weight"], math.nan)
    save_state(path, state)
    return str(path)


def own_models(tmp_path: Path, *diverged: int) -> dict[str, Any]:
    """Return the change that gives each of three silos a checkpoint, some of them of NaN."""
    return {
        "pretraining/checkpoints": {
            f"silo-{i}": checkpoint(
                tmp_path / f"{i}.safetensors", diverged=i in diverged, seed=i + 1
            )
            for i in range(3)
        },
        "rounds/max": 1,
        "arms/avg": {"start": "average"},
        "arms/best": {"start": "best"},
    }


def test_a_diverged_model_is_reported_and_never_averaged(
    tmp_path: Path, run_arm: Any, make_study: Any
) -> None:
    study = make_study({**own_models(tmp_path, 1), "rounds/lr": 1e-9, "rounds/momentum": 0.0})
    ran = run_arm(study, "avg")
    assert ran.refused == [("silo-1", 0)]
    assert "diverged" in ran.reasons
    assert (ran.run.curve[0].silos_ok, ran.run.curve[0].silos_failed) == (2, 1)
    others = [ran.silos[0], ran.silos[2]]
    states = [silo.own_model().state for silo in others]
    expected = average_states(states, [float(len(silo.data)) for silo in others])
    for key, tensor in expected.items():
        torch.testing.assert_close(ran.state[key], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("arm", ["best", "fedkd"])
def test_a_diverged_model_takes_no_part_in_other_starts(
    arm: str, tmp_path: Path, run_arm: Any, make_study: Any
) -> None:
    ran = run_arm(make_study(own_models(tmp_path, 1)), arm)
    assert ran.refused == [("silo-1", 0)]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in ran.state.values())
    assert ran.run.curve[1].silos_ok == 3, "the silo still trains in the rounds"


@pytest.mark.parametrize("arm", ["avg", "best", "fedkd"])
def test_all_diverged_is_an_error_in_words(
    arm: str, tmp_path: Path, run_arm: Any, make_study: Any
) -> None:
    with pytest.raises(FedKDError, match=rf"arms\.{arm}: no silo's .* model can be used .*silo-0"):
        run_arm(make_study(own_models(tmp_path, 0, 1, 2)), arm)


def test_the_best_start_is_the_best_on_validation_data(
    tmp_path: Path, run_arm: Any, make_study: Any
) -> None:
    from fedkd.training.evaluate import evaluate

    study = make_study(
        {"rounds/max": 1, "rounds/lr": 1e-9, "rounds/momentum": 0.0, "arms/best": {"start": "best"}}
    )
    ran = run_arm(study, "best")
    scores = []
    for silo in ran.silos:
        model = ran.context.model("x")
        model.load_state_dict(silo.own_model().state)
        found = evaluate(model, ran.context.validation, compute=ran.context.compute)
        scores.append(found.accuracy)
    best = ran.silos[scores.index(max(scores))].own_model().state
    for key, tensor in best.items():
        torch.testing.assert_close(ran.state[key], tensor, rtol=0, atol=1e-6)


def test_too_few_introductions_are_an_error(run_arm: Any, make_study: Any) -> None:
    def mute(silo: str, question: Message, reply: Message) -> Message:
        if question.metadata.message_type == keys.DESCRIBE and silo != "silo-0":
            return Message(Error(2, "away"), reply_to=question)
        return reply

    with pytest.raises(FedKDError, match="1 of 3 silos introduced themselves, and at least 2"):
        run_arm(make_study(), "fedavg", tamper=mute)


def test_small_transfer_sets_fall_back_to_equal_and_say_so(run_arm: Any, make_study: Any) -> None:
    study = make_study({"data/transfer/size": 19, "rounds/max": 1})
    ran = run_arm(study, "fedkd")
    assert ran.run.notes["fallback"] == "equal: the transfer set is too small for a basis"
    believing = {"start": "consolidated"}
    believing |= {"consolidation": {"weighting": "familiarity", "trust": "agreement", "epochs": 1}}
    study = make_study({"data/transfer/size": 19, "rounds/max": 1, "arms/fedkd": believing})
    ran = run_arm(study, "fedkd")
    assert ran.run.notes["fallback"].endswith("so no teacher is excluded")
    assert set(ran.run.notes["mean_weights"].values()) == {0.333333}


def test_densities_alone_can_teach_and_need_a_basis(run_arm: Any, make_study: Any) -> None:
    control = {
        "start": "consolidated",
        "consolidation": {"weighting": "familiarity", "teachers": "densities", "epochs": 20},
    }
    changes = {"arms/control-densities": control, "rounds/max": 1}
    ran = run_arm(make_study(changes), "control-densities")
    assert ran.run.curve[0].accuracy > 0.4
    with pytest.raises(FedKDError, match="too small for densities"):
        run_arm(make_study({**changes, "data/transfer/size": 19}), "control-densities")


def test_the_control_on_densities_starts_from_no_model_of_a_silo(
    run_arm: Any, make_study: Any
) -> None:
    consolidation = {"weighting": "familiarity", "teachers": "densities", "epochs": 1, "lr": 1e-9}
    control = {"start": "consolidated", "consolidation": consolidation}
    study = make_study({"arms/control-densities": control, "rounds/max": 1})
    ran = run_arm(study, "control-densities")
    fresh = fresh_student(ran.context.arch, ran.context.shape, ran.context.seed)
    assert set(fresh) == set(ran.start.state)
    for name, tensor in fresh.items():
        torch.testing.assert_close(ran.start.state[name], tensor, atol=1e-6, rtol=0)


def test_the_control_on_validation_labels_sends_silos_nothing(
    run_arm: Any, make_study: Any
) -> None:
    consolidation = {"method": "fine-tune", "teachers": "validation", "epochs": 20}
    control = {"start": "consolidated", "consolidation": consolidation}
    study = make_study({"arms/control-validation": control, "rounds/max": 1})
    assert not study.arms["control-validation"].needs_pretrained
    ran = run_arm(study, "control-validation")
    start = ran.run.curve[0]
    assert ran.run.exchanges_before_round_1 == 0
    random = run_arm(study, "fedavg").run.curve[0]
    # As with a random start, silos introduce themselves and send no more.
    assert (start.bytes_up, start.bytes_down) == (random.bytes_up, random.bytes_down)
    assert start.silos_ok == 0
    assert start.accuracy > 0.3


def test_a_distillation_that_diverges_is_an_error_in_words(run_arm: Any, make_study: Any) -> None:
    study = make_study(DIVERGING)
    with pytest.raises(FedKDError, match=r"distillation diverged; lower consolidation\.lr"):
        run_arm(study, "fedkd")
