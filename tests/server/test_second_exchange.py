"""Starts of two exchanges: densities in features of the average, and distillation on a silo."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from fedkd.distillation.consolidate import distil
from fedkd.distillation.targets import DistillationSetup
from fedkd.errors import FedKDError
from fedkd.messages import keys
from fedkd.models.build import build_model
from fedkd.models.state import State, average_states
from fedkd.training.evaluate import evaluate
from strategies.exchange import count_bytes

FEATURES = {
    "start": "consolidated",
    "consolidation": {
        "weighting": "familiarity",
        "familiarity": {"basis": "features", "dims": 10},
        "epochs": 3,
    },
}
HOSTILE = "silo-1"

Change = Callable[[RecordDict], RecordDict]


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


def is_second(question: Message) -> bool:
    """Whether a question belongs to the second exchange."""
    if question.metadata.message_type == keys.DISTIL:
        return True
    asked = question.content.config_records[keys.CONFIG]
    return bool(asked.get(keys.MODE) == keys.MODE_NONE)


def to_second(change: Change, only: str | None = None) -> Any:
    """Return a tamper that changes replies to the second exchange, of one silo or of all."""

    def tamper(silo: str, question: Message, reply: Message) -> Message:
        if not is_second(question) or only not in (None, silo):
            return reply
        return Message(change(reply.content), reply_to=question)

    return tamper


def with_info(**values: str | int) -> Change:
    def apply(content: RecordDict) -> RecordDict:
        info = {**content.config_records[keys.INFO]}
        info.update({key.replace("_", "-"): value for key, value in values.items()})
        return RecordDict({**content, keys.INFO: ConfigRecord(info)})

    return apply


def with_arrays(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Return a change of the first array of a record."""

    def apply(content: RecordDict) -> RecordDict:
        arrays = dict(content.array_records[name])
        key = next(iter(arrays))
        arrays[key] = Array(change(arrays[key].numpy().copy()))
        return RecordDict({**content, name: ArrayRecord(arrays)})

    return apply


def first_to(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def apply(array: np.ndarray) -> np.ndarray:
        array.flat[0] = value
        return array

    return apply


def without(name: str) -> Change:
    return lambda content: RecordDict({k: r for k, r in content.items() if k != name})


class Ear:
    """Notes every question and reply, and changes none."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, Message, Message]] = []

    def __call__(self, silo: str, question: Message, reply: Message) -> Message:
        self.kept.append((silo, question, reply))
        return reply

    def of_second(self) -> list[tuple[str, Message, Message]]:
        return [entry for entry in self.kept if is_second(entry[1])]


# Densities in features.


@pytest.fixture(scope="module")
def features(make_study: Any) -> Any:
    return make_study({"rounds/max": 1, "arms/fedkd": FEATURES})


def test_features_cost_a_second_exchange_and_every_byte_of_it(run_arm: Any, features: Any) -> None:
    ear = Ear()
    ran = run_arm(features, "fedkd", tamper=ear)
    assert ran.run.exchanges_before_round_1 == 2
    assert ran.run.exchanges_before_round_1 == features.exchanges_before_round_1("fedkd")
    start = ran.run.curve[0]
    asked = [q for _, q, _ in ear.kept if q.content[keys.CONFIG][keys.ROUND] == 0]
    told = [r for _, q, r in ear.kept if q.content[keys.CONFIG][keys.ROUND] == 0]
    assert len(asked) == 9, "three introductions, three models, three densities"
    assert start.bytes_down == sum(count_bytes(message.content) for message in asked)
    assert start.bytes_up == sum(count_bytes(message.content) for message in told)
    assert (start.silos_ok, start.silos_failed) == (3, 0)


def test_the_average_is_sent_and_nothing_but_densities_comes_back(
    run_arm: Any, features: Any
) -> None:
    ear = Ear()
    ran = run_arm(features, "fedkd", tamper=ear)
    states = [silo.own_model().state for silo in ran.silos]
    average = average_states(states, [float(len(silo.data)) for silo in ran.silos])
    firsts = [q for _, q, _ in ear.kept if q.metadata.message_type == keys.TEACHER][:3]
    for question in firsts:
        assert set(question.content) == {keys.CONFIG}
        assert question.content[keys.CONFIG][keys.MODE] == keys.MODE_WEIGHTS
        assert question.content[keys.CONFIG][keys.DENSITY] == keys.DENSITY_NONE
    assert len(ear.of_second()) == 3
    for _, question, reply in ear.of_second():
        assert set(question.content) == {keys.CONFIG, keys.TRANSFER, keys.BASIS, keys.BASIS_MODEL}
        assert question.content[keys.CONFIG][keys.ARCHITECTURE] == "mlp"
        assert int(question.content[keys.BASIS][keys.BASIS_SIDE].numpy()) == 0
        sent = question.content.array_records[keys.BASIS_MODEL].to_torch_state_dict()
        assert_same(dict(sent), average)
        assert set(reply.content) == {keys.FAMILIARITY, keys.INFO}
        assert reply.content[keys.FAMILIARITY][keys.LOG_DENSITY].numpy().shape == (60,)


def test_features_weigh_otherwise_than_pixels(run_arm: Any, make_study: Any, features: Any) -> None:
    pixels = {**FEATURES, "consolidation": {**FEATURES["consolidation"], "familiarity": {}}}  # type: ignore[dict-item]
    ran = [
        run_arm(study, "fedkd").run.notes["mean_weights"]
        for study in (features, make_study({"rounds/max": 1, "arms/fedkd": pixels}))
    ]
    assert ran[0] != ran[1]


BAD_DENSITIES: dict[str, Change] = {
    "another silo's name": with_info(silo="silo-0"),
    "another run": with_info(run_id="another"),
    "another round": with_info(server_round=1),
    "another transfer set": with_info(transfer_hash="0" * 64),
    "nan": with_arrays(keys.FAMILIARITY, first_to(math.nan)),
    "inf": with_arrays(keys.FAMILIARITY, first_to(math.inf)),
    "above the bound": with_arrays(keys.FAMILIARITY, first_to(1e4)),
    "fewer samples": with_arrays(keys.FAMILIARITY, lambda a: a[:-1]),
    "a column": with_arrays(keys.FAMILIARITY, lambda a: a[:, None]),
    "float64": with_arrays(keys.FAMILIARITY, lambda a: a.astype(np.float64)),
    "nothing": lambda content: RecordDict(),
}


@pytest.fixture(scope="module")
def silent(run_arm: Any, features: Any) -> Any:
    """The run in which the hostile silo does not answer the second question."""

    def tamper(silo: str, question: Message, reply: Message) -> Message | None:
        return None if is_second(question) and silo == HOSTILE else reply

    impatient = features.model_copy(
        update={"rounds": features.rounds.model_copy(update={"timeout": 0.5})}
    )
    return run_arm(impatient, "fedkd", tamper=tamper)


@pytest.mark.parametrize("name", BAD_DENSITIES)
def test_bad_densities_leave_the_model_to_teach_with_an_equal_share(
    name: str, run_arm: Any, features: Any, silent: Any
) -> None:
    ran = run_arm(features, "fedkd", tamper=to_second(BAD_DENSITIES[name], HOSTILE))
    assert ran.refused == [(HOSTILE, 0)]
    assert_same(ran.state, silent.state)
    weights = ran.run.notes["mean_weights"]
    assert weights[HOSTILE] == pytest.approx(1 / 3, abs=1e-6)
    assert len(set(weights.values())) > 1, "the others are weighed"
    start = ran.run.curve[0]
    assert (start.silos_ok, start.silos_failed) == (2, 1)


def test_silence_is_noted_as_silence(silent: Any) -> None:
    assert silent.refused == [(HOSTILE, 0)]
    assert "did not answer in time" in silent.reasons


def test_where_densities_alone_teach_a_bad_one_is_left_out(run_arm: Any, make_study: Any) -> None:
    control = {
        **FEATURES,
        "consolidation": {**FEATURES["consolidation"], "teachers": "densities"},  # type: ignore[dict-item]
    }
    study = make_study({"rounds/max": 1, "arms/control-densities": control})
    tamper = to_second(with_arrays(keys.FAMILIARITY, first_to(math.nan)), HOSTILE)
    ran = run_arm(study, "control-densities", tamper=tamper)
    assert ran.refused == [(HOSTILE, 0)]
    assert list(ran.run.notes["mean_weights"]) == ["silo-0", "silo-2"]
    tamper = to_second(with_arrays(keys.FAMILIARITY, first_to(math.nan)))
    with pytest.raises(FedKDError, match=r"arms\.control-densities: no silo's .* can be used"):
        run_arm(study, "control-densities", tamper=tamper)


def test_a_silo_without_a_model_is_not_asked_again(run_arm: Any, features: Any) -> None:
    ear = Ear()

    def tamper(silo: str, question: Message, reply: Message) -> Message:
        ear(silo, question, reply)
        if silo == HOSTILE and question.metadata.message_type == keys.TEACHER:
            return Message(Error(2, "away"), reply_to=question)
        return reply

    ran = run_arm(features, "fedkd", tamper=tamper)
    assert ran.refused == [(HOSTILE, 0)]
    assert {silo for silo, _, _ in ear.of_second()} == {"silo-0", "silo-2"}


def test_too_few_images_spare_the_second_exchange(run_arm: Any, make_study: Any) -> None:
    changes = {"rounds/max": 1, "arms/fedkd": FEATURES, "data/transfer/size": 19}
    ran = run_arm(make_study(changes), "fedkd")
    assert ran.run.exchanges_before_round_1 == 1
    assert ran.run.notes["fallback"].startswith("equal")
    assert set(ran.run.notes["mean_weights"].values()) == {0.333333}


# Distillation on the student's silo.


def at_silo(**consolidation: Any) -> dict[str, Any]:
    settings = {"student": "best", "epochs": 3, **consolidation}
    return {
        "rounds/max": 1,
        "data/transfer": {"source": "student-silo"},
        "arms/fedkd": {"start": "consolidated", "consolidation": settings},
    }


def test_the_silos_student_is_what_the_server_would_have_made(
    run_arm: Any, make_study: Any
) -> None:
    """The same distillation with the silo's images, worked out without messages."""
    ran = run_arm(make_study(at_silo(weighting="size")), "fedkd")
    found = ran.start
    (silo,) = (s for s in ran.silos if s.name == ran.run.notes["student"])
    names = [teacher.silo for teacher in found.teachers.members]
    setup = DistillationSetup(
        transfer=silo.data,
        labelled=True,
        validation=ran.context.validation,
        arch="mlp",
        shape=silo.shape,
        compute=silo.compute,
        seed=silo.seed,
    )
    settings = ran.context.arm.consolidation
    own = silo.own_model().state
    expected = distil(own, found.teachers, names.index(silo.name), settings, setup)
    assert_same(found.state, expected.state)
    assert_same(found.student, own)
    assert not torch.equal(found.state["1.weight"], own["1.weight"])
    assert ran.run.notes["distillation_loss"] == pytest.approx(expected.loss, abs=1e-6)
    model = ran.context.model("anew")
    model.load_state_dict(expected.state)
    judged = evaluate(model, ran.context.validation, compute=silo.compute)
    assert ran.run.notes["validation_accuracy"] == round(judged.accuracy, 6)


def test_it_is_the_second_exchange_and_asks_one_silo_alone(run_arm: Any, make_study: Any) -> None:
    ear = Ear()
    study = make_study(at_silo())
    ran = run_arm(study, "fedkd", tamper=ear)
    assert ran.run.exchanges_before_round_1 == study.exchanges_before_round_1("fedkd") == 2
    ((silo, question, reply),) = ear.of_second()
    assert silo == ran.run.notes["student"]
    start = ran.run.curve[0]
    first = [e for e in ear.kept if e[1].content[keys.CONFIG][keys.ROUND] == 0]
    assert start.bytes_down == sum(count_bytes(q.content) for _, q, _ in first)
    assert start.bytes_up == sum(count_bytes(r.content) for _, _, r in first)
    assert (start.silos_ok, start.silos_failed) == (3, 0)
    index = ran.members.index(silo)
    others = {keys.teacher_record(m) for m in range(3) if m != index}
    assert set(question.content) == {keys.CONFIG, *others}, "its own model stays where it is"
    for record in others:
        (owner,) = (s for m, s in enumerate(ran.silos) if record == keys.teacher_record(m))
        sent = question.content.array_records[record].to_torch_state_dict()
        assert_same(dict(sent), owner.own_model().state)
    assert question.content[keys.CONFIG][keys.STUDENT] == index
    assert set(reply.content) == {keys.ARRAYS, keys.METRICS, keys.INFO}
    assert set(reply.content[keys.METRICS]) == {keys.NUM_EXAMPLES, keys.LOSS}


@pytest.mark.parametrize(
    ("consolidation", "told"),
    [
        ({"weighting": "equal"}, False),
        ({"weighting": "accuracy"}, True),
        (
            {"method": "dp-kd", "sequence": "sequential", "order": "weakest-first"},
            True,
        ),
        ({"method": "dp-kd", "sequence": "sequential", "order": "random"}, False),
    ],
)
def test_accuracies_are_told_only_where_they_decide(
    consolidation: dict[str, Any], told: bool, run_arm: Any, make_study: Any
) -> None:
    ear = Ear()
    ran = run_arm(make_study(at_silo(**consolidation)), "fedkd", tamper=ear)
    ((_, question, _),) = ear.of_second()
    config = question.content.config_records[keys.CONFIG]
    assert (keys.ACCURACIES in config) == told
    assert config[keys.NUM_EXAMPLES] == [len(silo.data) for silo in ran.silos]
    assert config[keys.CLASS_COUNTS] == [n for silo in ran.silos for n in silo.class_counts]
    if told:
        for silo, accuracy in zip(ran.silos, config[keys.ACCURACIES], strict=True):
            model = build_model("mlp", silo.shape, seed=0)
            model.load_state_dict(silo.own_model().state)
            found = evaluate(model, ran.context.validation, compute=silo.compute)
            assert accuracy == pytest.approx(found.accuracy)


def test_teachers_are_selected_by_the_server(run_arm: Any, make_study: Any) -> None:
    """The worst is no teacher of itself where only the two best may teach."""
    ear = Ear()
    study = make_study(at_silo(student="worst", select={"top": 2}))
    ran = run_arm(study, "fedkd", tamper=ear)
    ((silo, question, _),) = ear.of_second()
    assert silo == ran.run.notes["student"]
    assert silo not in ran.run.notes["teachers"]
    assert question.content[keys.CONFIG][keys.STUDENT] == keys.NO_TEACHER
    records = {keys.teacher_record(0), keys.teacher_record(1)}
    assert set(question.content) == {keys.CONFIG, *records}


@pytest.mark.parametrize(
    "consolidation",
    [
        {"method": "dml"},
        {"method": "fine-tune"},
        {"method": "dp-kd"},
        {"weighting": "class-prior"},
        {"weighting": "consensus"},
        {"student": "random"},
        {"student": "worst", "method": "dml", "select": {"top": 1}},
    ],
)
def test_methods_weightings_and_students_have_what_they_need(
    consolidation: dict[str, Any], run_arm: Any, make_study: Any
) -> None:
    ran = run_arm(make_study(at_silo(**consolidation)), "fedkd")
    assert ran.refused == []
    found = ran.start
    assert not torch.equal(found.state["1.weight"], found.student["1.weight"])


def test_a_random_student_needs_no_validation_data(run_arm: Any, make_study: Any) -> None:
    changes = {**at_silo(student="random"), "data/validation": 0}
    ran = run_arm(make_study(changes), "fedkd")
    assert "validation_accuracy" not in ran.run.notes
    assert ran.run.notes["student"].startswith("silo-")


BAD_STUDENTS: dict[str, tuple[Change, str]] = {
    "another silo's name": (with_info(silo="nobody"), "another silo's name"),
    "another run": (with_info(run_id="another"), "another run"),
    "a later round": (with_info(server_round=1), "belongs to round 1"),
    "nan": (with_arrays(keys.ARRAYS, first_to(math.nan)), "not finite"),
    "another shape": (with_arrays(keys.ARRAYS, lambda a: a.T), r"is \[64, 200\] where \[200, 64\]"),
    "another type": (with_arrays(keys.ARRAYS, lambda a: a.astype(np.float64)), "is float64 where"),
    "no model": (without(keys.ARRAYS), "has no model"),
    "no examples": (without(keys.METRICS), "num-examples is None"),
    "a problem": (with_info(problem="no memory"), "no memory"),
}


@pytest.mark.parametrize("name", BAD_STUDENTS)
def test_a_bad_student_ends_the_run_in_a_sentence(name: str, run_arm: Any, make_study: Any) -> None:
    change, reason = BAD_STUDENTS[name]
    sentence = rf"arms\.fedkd: silo-\d, whose model is the student, did not distil .*: .*{reason}"
    with pytest.raises(FedKDError, match=sentence):
        run_arm(make_study(at_silo()), "fedkd", tamper=to_second(change))


def test_silence_and_failure_end_the_run_in_a_sentence(run_arm: Any, make_study: Any) -> None:
    def fail(_: str, question: Message, reply: Message) -> Message:
        if is_second(question):
            return Message(Error(2, "RuntimeError: out of memory"), reply_to=question)
        return reply

    def hush(_: str, question: Message, reply: Message) -> Message | None:
        return None if is_second(question) else reply

    with pytest.raises(FedKDError, match=r"did not distil .*: it failed: RuntimeError: out of mem"):
        run_arm(make_study(at_silo()), "fedkd", tamper=fail)
    study = make_study({**at_silo(), "rounds/timeout": 0.3})
    with pytest.raises(FedKDError, match=r"did not distil .*: it did not answer in time"):
        run_arm(study, "fedkd", tamper=hush)


def test_a_distillation_that_diverges_on_the_silo_is_told(run_arm: Any, make_study: Any) -> None:
    study = make_study({**at_silo(lr=1000, epochs=5), "model/arch": "resnet8"})
    with pytest.raises(FedKDError, match=r"distillation diverged; lower consolidation\.lr"):
        run_arm(study, "fedkd")


# What a silo refuses.


@pytest.fixture(scope="module")
def silo_and_study(run_arm: Any, make_study: Any) -> Any:
    study = make_study(at_silo())
    return run_arm(study, "fedavg").silos[0], study


def question_for(silo: Any, **changes: Any) -> RecordDict:
    state = ArrayRecord(silo.own_model().state)
    config = {
        keys.RUN_ID: "r",
        keys.ROUND: 0,
        keys.STUDENT: keys.NO_TEACHER,
        keys.ARCHITECTURES: ["mlp"],
        keys.NUM_EXAMPLES: [5],
    }
    config.update({key.replace("_", "-"): value for key, value in changes.items()})
    return RecordDict({keys.CONFIG: ConfigRecord(config), keys.teacher_record(0): state})


def test_a_silo_builds_no_architecture_that_its_study_does_not_name(silo_and_study: Any) -> None:
    """An architecture may be any function: the server must not choose what a silo imports."""
    from clients.handlers import answer_distil
    from fedkd.messages.basis import read_basis

    silo, study = silo_and_study
    answer_distil(silo, study, "fedkd", question_for(silo))
    with pytest.raises(ValueError, match="'os:getcwd', which the study has not"):
        answer_distil(silo, study, "fedkd", question_for(silo, architectures=["os:getcwd"]))
    with pytest.raises(ValueError, match="no silo distil in arm fedavg"):
        answer_distil(silo, study, "fedavg", question_for(silo))
    basis = {
        keys.BASIS_MEAN: Array(np.zeros(200, dtype=np.float32)),
        keys.BASIS_COMPONENTS: Array(np.zeros((3, 200), dtype=np.float32)),
        keys.BASIS_SIDE: Array(np.array(0)),
    }
    config = ConfigRecord({keys.ARCHITECTURE: "os:getcwd"})
    content = RecordDict({keys.CONFIG: config, keys.BASIS: ArrayRecord(basis)})
    with pytest.raises(ValueError, match="basis is of 'os:getcwd', but the study's model is 'mlp'"):
        read_basis(content, global_arch=silo.global_arch, shape=silo.shape, compute=silo.compute)


def test_a_silo_whose_own_model_diverged_says_so(silo_and_study: Any) -> None:
    from clients.handlers import answer_distil
    from fedkd.federation.federation import Pretrained

    silo, study = silo_and_study
    question = question_for(silo)
    ill = replace(silo, own_model=lambda: Pretrained(None, "its model diverged"))
    with pytest.raises(FedKDError, match="its model diverged"):
        answer_distil(ill, study, "fedkd", question)
