"""Hostile replies: each leaves the model exactly as if its silo had not been asked."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedkd.messages import keys
from fedkd.messages.validate import MAX_EXAMPLES, RefusedError, read_array
from fedkd.models.state import State, average_states

HOSTILE = "silo-1"
KEY = "1.weight"
"""The first linear layer of the mlp, ``[200, 64]``."""

Arrays = dict[str, Array]


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def header(text: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """Return a .npy file with any text for its header."""
    encoded = text.encode("latin1") + b"\n"
    width = 2 if version == (1, 0) else 4
    length = len(encoded).to_bytes(width, "little")
    return b"\x93NUMPY" + bytes(version) + length + encoded + data


def raw(data: bytes, shape: tuple[int, ...] = (200, 64), stype: str = "numpy.ndarray") -> Array:
    return Array("float32", shape, stype, data)


def with_key(change: Callable[[np.ndarray], Any]) -> Callable[[Arrays], Arrays]:
    """Return a change of the one tensor ``KEY``, to an array or to an ``Array``."""

    def apply(arrays: Arrays) -> Arrays:
        changed = change(arrays[KEY].numpy())
        arrays[KEY] = changed if isinstance(changed, Array) else Array(changed)
        return arrays

    return apply


def spoil(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def apply(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[3, 5] = value
        return array

    return apply


def without_key(arrays: Arrays) -> Arrays:
    del arrays[KEY]
    return arrays


class Trap:
    """Fails the test if it is ever unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return pytest.fail, ("a reply was unpickled",)


BAD_ARRAYS: dict[str, Callable[[Arrays], Arrays]] = {
    "nan": with_key(spoil(math.nan)),
    "inf": with_key(spoil(math.inf)),
    "minus inf": with_key(spoil(-math.inf)),
    "transposed": with_key(lambda a: a.T),
    "broadcastable row": with_key(lambda a: a[:1]),
    "broadcastable scalar": with_key(lambda a: np.array(1.0, dtype=np.float32)),
    "one axis more": with_key(lambda a: a[None]),
    "flattened": with_key(lambda a: a.reshape(-1)),
    "empty": with_key(lambda a: a[:0]),
    "float64": with_key(lambda a: a.astype(np.float64)),
    "float16": with_key(lambda a: a.astype(np.float16)),
    "integers": with_key(lambda a: a.astype(np.int32)),
    "complex": with_key(lambda a: a.astype(np.complex64)),
    "big-endian": with_key(lambda a: a.astype(">f4")),
    "structured": with_key(lambda a: raw(npy(np.zeros((200, 64), dtype=[("x", "<f4")])))),
    "strings": with_key(lambda a: np.full(a.shape, "x")),
    "missing key": without_key,
    "extra key": lambda arrays: {**arrays, "backdoor": Array(np.zeros(3, dtype=np.float32))},
    "renamed key": lambda arrays: {("w" if k == KEY else k): a for k, a in arrays.items()},
    "no tensors": lambda arrays: {},
    "ten gigabytes": with_key(
        lambda a: raw(header("{'descr': '<f4', 'fortran_order': False, 'shape': (2684354560,)}"))
    ),
    "right shape, no data": with_key(
        lambda a: raw(header("{'descr': '<f4', 'fortran_order': False, 'shape': (200, 64)}"))
    ),
    "negative shape": with_key(
        lambda a: raw(header("{'descr': '<f4', 'fortran_order': False, 'shape': (-200, -64)}"))
    ),
    "truncated": with_key(lambda a: raw(npy(a)[:-9])),
    "trailing bytes": with_key(lambda a: raw(npy(a) + b"1234")),
    "no bytes": with_key(lambda a: raw(b"")),
    "half a magic": with_key(lambda a: raw(b"\x93NUM")),
    "not an array": with_key(lambda a: raw(b"hello, server")),
    "a zip of arrays": with_key(lambda a: raw(b"PK\x03\x04" + bytes(60))),
    "unknown version": with_key(lambda a: raw(header("{}", version=(9, 0)))),
    "header of no mapping": with_key(lambda a: raw(header("[1, 2, 3]"))),
    "header cut short": with_key(lambda a: raw(header("{'descr': ("))),
    "header of code": with_key(lambda a: raw(header("__import__('os').getcwd()"))),
    "header of brackets": with_key(lambda a: raw(header("(" * 9000))),
    "header of minus signs": with_key(lambda a: raw(header("-" * 9000 + "1"))),
    "header of sums": with_key(lambda a: raw(header("1+" * 3000 + "1"))),
    "header too long": with_key(lambda a: raw(header("{" + " " * 60_000 + "}"))),
    "object array": with_key(lambda a: raw(npy(np.array([Trap()], dtype=object)))),
    "object array of the shape": with_key(
        lambda a: raw(npy(np.full((200, 64), Trap(), dtype=object)))
    ),
    "a bare pickle": with_key(lambda a: raw(pickle.dumps(Trap()))),
    "fields that lie": with_key(lambda a: raw(npy(a.T), shape=(200, 64))),
    "other encoding": with_key(lambda a: raw(npy(a), stype="pickle")),
}


def change_arrays(change: Callable[[Arrays], Arrays]) -> Callable[[RecordDict], RecordDict]:
    def apply(content: RecordDict) -> RecordDict:
        return rebuilt(content, arrays=ArrayRecord(change(dict(content.array_records["arrays"]))))

    return apply


def rebuilt(content: RecordDict, **records: Any) -> RecordDict:
    """Return a reply with some records replaced, or left out where they are None."""
    return RecordDict({k: r for k, r in {**content, **records}.items() if r is not None})


def change_info(**changes: Any) -> Callable[[RecordDict], RecordDict]:
    """Return a change of ``info``; a value of None leaves the key out."""

    def apply(content: RecordDict) -> RecordDict:
        info = {**content.config_records[keys.INFO]}
        info.update({k.replace("_", "-"): v for k, v in changes.items()})
        info = {k: v for k, v in info.items() if v is not None}
        return rebuilt(content, info=ConfigRecord(info))

    return apply


def change_examples(value: Any) -> Callable[[RecordDict], RecordDict]:
    def apply(content: RecordDict) -> RecordDict:
        metrics = {**content.metric_records[keys.METRICS]}
        metrics.pop(keys.NUM_EXAMPLES)
        if value is not None:
            metrics[keys.NUM_EXAMPLES] = value
        return rebuilt(content, metrics=MetricRecord(metrics))

    return apply


def boolean_examples(content: RecordDict) -> RecordDict:
    """Return a reply whose number of examples is a boolean in a record that allows one."""
    return rebuilt(content, metrics=ConfigRecord({keys.NUM_EXAMPLES: True, keys.LOSS: 1.0}))


BAD_REPLIES: dict[str, Callable[[RecordDict], RecordDict]] = {
    **{f"arrays: {name}": change_arrays(change) for name, change in BAD_ARRAYS.items()},
    "examples: nan": change_examples(math.nan),
    "examples: inf": change_examples(math.inf),
    "examples: negative": change_examples(-5),
    "examples: zero": change_examples(0),
    "examples: 1e300": change_examples(1e300),
    "examples: a half": change_examples(1.5),
    "examples: over the study's cap": change_examples(10_000_001),
    "examples: over any limit": change_examples(MAX_EXAMPLES + 1),
    "examples: a list": change_examples([5, 5]),
    "examples: none": change_examples(None),
    "examples: boolean": boolean_examples,
    "no metrics": lambda content: rebuilt(content, metrics=None),
    "no model": lambda content: rebuilt(content, arrays=None),
    "model of another kind": lambda content: rebuilt(content, arrays=ConfigRecord({"a": 1})),
    "no info": lambda content: rebuilt(content, info=None),
    "empty info": lambda content: rebuilt(content, info=ConfigRecord()),
    "empty": lambda content: RecordDict(),
    "an older round": change_info(server_round=0),
    "a later round": change_info(server_round=2),
    "round as text": change_info(server_round="1"),
    "another run": change_info(run_id="another-run"),
    "no run": change_info(run_id=None),
    "another silo's name": change_info(silo="silo-0"),
    "no name": change_info(silo=None),
    "a problem of its own": change_info(problem="out of memory\x1b[31m\nand so on"),
}


def tamper_with(
    change: Callable[[RecordDict], RecordDict], message_type: str = keys.TRAIN
) -> Callable[[str, Message, Message], Message]:
    def tamper(silo: str, question: Message, reply: Message) -> Message:
        if silo != HOSTILE or question.metadata.message_type != message_type:
            return reply
        return Message(change(reply.content), reply_to=question)

    return tamper


@pytest.fixture(scope="module")
def average_without() -> Callable[..., State]:
    """Return a function that works out one round of FedAvg over all silos but one.

    It does so without the server, and once: all runs here begin from the same model.
    """
    found: dict[str, State] = {}

    def average_without(ran: Any, hostile: str = HOSTILE) -> State:
        if hostile not in found:
            start = ran.context.model("initial-model").state_dict()
            honest = [silo for silo in ran.silos if silo.name != hostile]
            states = [silo.train(start, 1, ran.context.rounds)[0] for silo in honest]
            found[hostile] = average_states(states, [float(len(silo.data)) for silo in honest])
        return found[hostile]

    return average_without


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize("name", BAD_REPLIES)
def test_a_hostile_update_is_as_if_not_asked(
    name: str, run_arm: Any, make_study: Any, average_without: Any
) -> None:
    study = make_study({"rounds/max": 1})
    ran = run_arm(study, "fedavg", tamper=tamper_with(BAD_REPLIES[name]))
    assert ran.refused == [(HOSTILE, 1)]
    assert_same(ran.state, average_without(ran))
    assert (ran.run.curve[1].silos_ok, ran.run.curve[1].silos_failed) == (2, 1)
    assert ran.reasons.isprintable()
    assert len(ran.reasons) < 400


def test_an_honest_round_is_the_average_of_all(
    run_arm: Any, make_study: Any, average_without: Any
) -> None:
    ran = run_arm(make_study({"rounds/max": 1}), "fedavg", tamper=tamper_with(lambda c: c))
    assert ran.refused == []
    assert_same(ran.state, average_without(ran, hostile=""))


def test_error_replies_and_silence_are_as_if_not_asked(
    run_arm: Any, make_study: Any, average_without: Any
) -> None:
    study = make_study({"rounds/max": 1, "rounds/timeout": 0.3})

    def fail(silo: str, question: Message, reply: Message) -> Message | None:
        if question.metadata.message_type != keys.TRAIN or silo != HOSTILE:
            return reply
        return Message(Error(2, "line one\nOutOfMemoryError: \x07boom"), reply_to=question)

    def vanish(silo: str, question: Message, reply: Message) -> Message | None:
        gone = question.metadata.message_type == keys.TRAIN and silo == HOSTILE
        return None if gone else reply

    for tamper, reason in ((fail, "it failed: OutOfMemoryError:  boom"), (vanish, "in time")):
        ran = run_arm(study, "fedavg", tamper=tamper)
        assert ran.refused == [(HOSTILE, 1)]
        assert reason in ran.reasons
        assert_same(ran.state, average_without(ran))


def test_a_loss_of_nan_harms_no_model(run_arm: Any, make_study: Any, average_without: Any) -> None:
    """The training loss is told to no one who decides by it."""

    def lie(content: RecordDict) -> RecordDict:
        metrics = {**content.metric_records[keys.METRICS], keys.LOSS: math.nan}
        return rebuilt(content, metrics=MetricRecord(metrics))

    ran = run_arm(make_study({"rounds/max": 1}), "fedavg", tamper=tamper_with(lie))
    assert ran.refused == []
    assert_same(ran.state, average_without(ran, hostile=""))


def test_of_two_replies_the_first_counts(
    run_arm: Any, make_study: Any, average_without: Any
) -> None:
    """And a second can neither mend nor spoil it, nor stand for a silo that has not answered."""
    study = make_study({"rounds/max": 1})

    def twice(first: Any, second: Any) -> Any:
        def tamper(silo: str, question: Message, reply: Message) -> Any:
            if silo != HOSTILE or question.metadata.message_type != keys.TRAIN:
                return reply
            contents = (first(reply.content), second(reply.content))
            return [Message(content, reply_to=question) for content in contents]

        return tamper

    def honest(content: RecordDict) -> RecordDict:
        return content

    poison = BAD_REPLIES["arrays: nan"]
    ran = run_arm(study, "fedavg", tamper=twice(honest, poison))
    assert ran.refused == []
    assert_same(ran.state, average_without(ran, hostile=""))
    ran = run_arm(study, "fedavg", tamper=twice(poison, honest))
    assert ran.refused == [(HOSTILE, 1)]
    assert_same(ran.state, average_without(ran))


def test_a_reply_in_another_silos_place_is_that_silos_failure(
    run_arm: Any, make_study: Any, average_without: Any
) -> None:
    """What is sent from one node is judged as that node's, whatever it says of itself."""

    def swap(content: RecordDict) -> RecordDict:
        return change_info(silo="silo-2", run_id="this-run")(content)

    ran = run_arm(make_study({"rounds/max": 1}), "fedavg", tamper=tamper_with(swap))
    assert ran.refused == [(HOSTILE, 1)]
    assert "another silo's name" in ran.reasons
    assert_same(ran.state, average_without(ran))


# The teachers' exchange: logits, densities, hashes.

LOGITS_ARM = {
    "arms/fedkd": {
        "start": "consolidated",
        "consolidation": {
            "weighting": "familiarity",
            "mode": "logits",
            "student": "fresh",
            "epochs": 2,
        },
    },
    "rounds/max": 1,
}


def change_logits(change: Callable[[np.ndarray], Any]) -> Callable[[RecordDict], RecordDict]:
    def apply(content: RecordDict) -> RecordDict:
        logits = content.array_records[keys.TEACHER_RECORD][keys.LOGITS].numpy().copy()
        changed = change(logits)
        array = changed if isinstance(changed, Array) else Array(changed)
        return rebuilt(content, teacher=ArrayRecord({keys.LOGITS: array}))

    return apply


def change_density(
    change: Callable[[np.ndarray], np.ndarray],
) -> Callable[[RecordDict], RecordDict]:
    def apply(content: RecordDict) -> RecordDict:
        density = content.array_records[keys.FAMILIARITY][keys.LOG_DENSITY].numpy().copy()
        record = ArrayRecord({keys.LOG_DENSITY: Array(change(density))})
        return rebuilt(content, familiarity=record)

    return apply


def first_to(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def apply(array: np.ndarray) -> np.ndarray:
        array.flat[0] = value
        return array

    return apply


MOMENTS_ARM = {
    "rounds/max": 1,
    "arms/fedkd/consolidation": {
        "weighting": "familiarity",
        "familiarity": {"density": "pooled", "dims": 12},
        "epochs": 1,
    },
}


def change_moments(
    key: str, change: Callable[[np.ndarray], np.ndarray]
) -> Callable[[RecordDict], RecordDict]:
    def apply(content: RecordDict) -> RecordDict:
        arrays = dict(content.array_records[keys.FAMILIARITY])
        arrays[key] = Array(change(arrays[key].numpy().copy()))
        return rebuilt(content, familiarity=ArrayRecord(arrays))

    return apply


def without_moments(key: str) -> Callable[[RecordDict], RecordDict]:
    def apply(content: RecordDict) -> RecordDict:
        arrays = dict(content.array_records[keys.FAMILIARITY])
        del arrays[key]
        return rebuilt(content, familiarity=ArrayRecord(arrays))

    return apply


def of_an_empty_class(means: np.ndarray) -> np.ndarray:
    empty = np.abs(means).sum(1) == 0
    assert empty.any(), "the silo lacks a class"
    means[empty] = 1
    return means


BAD_MOMENTS: dict[str, Callable[[RecordDict], RecordDict]] = {
    "nan": change_moments("second-moment", first_to(math.nan)),
    "inf": change_moments("class-means", first_to(math.inf)),
    "a second moment beyond all images": change_moments("second-moment", first_to(1e12)),
    "a negative square": change_moments("second-moment", first_to(-1.0)),
    "no square at all": change_moments("second-moment", lambda a: 0 * a),
    "means beyond what the squares allow": change_moments("class-means", lambda a: 5 * a),
    "a mean of no image": change_moments("class-means", of_an_empty_class),
    "more images than the silo has": change_moments("class-counts", lambda a: 1000 * a),
    "images that overflow when added": change_moments(
        "class-counts", lambda a: np.full_like(a, 2**62)
    ),
    "no images": change_moments("class-counts", lambda a: 0 * a),
    "negative images": change_moments("class-counts", first_to(-1)),
    "half images": change_moments("class-counts", lambda a: a.astype(np.float32)),
    "another number of classes": change_moments("class-counts", lambda a: a[:-1]),
    "fewer dimensions": change_moments("class-means", lambda a: a[:, :-1]),
    "a whole matrix": change_moments("second-moment", lambda a: np.eye(12, dtype=np.float32)),
    **{f"no {key}": without_moments(key) for key in ("class-counts", "class-means")},
    "densities for moments": lambda content: rebuilt(
        content, familiarity=ArrayRecord({keys.LOG_DENSITY: Array(np.zeros(60, dtype=np.float32))})
    ),
}


@pytest.fixture(scope="module")
def without_moments_of_the_silo(run_arm: Any, make_study: Any) -> Any:
    """The run in which the hostile silo had no moments to tell."""
    tamper = tamper_with(change_info(problem="away"), keys.TEACHER)
    return run_arm(make_study(MOMENTS_ARM), "fedkd", tamper=tamper)


@pytest.mark.parametrize("name", BAD_MOMENTS)
def test_hostile_moments_are_as_if_not_asked(
    name: str, run_arm: Any, make_study: Any, without_moments_of_the_silo: Any
) -> None:
    study = make_study(MOMENTS_ARM)
    ran = run_arm(study, "fedkd", tamper=tamper_with(BAD_MOMENTS[name], keys.TEACHER))
    assert ran.refused == [(HOSTILE, 0)]
    assert list(ran.run.notes["mean_weights"]) == ["silo-0", "silo-2"]
    assert_same(ran.state, without_moments_of_the_silo.state)


def test_honest_moments_pass(run_arm: Any, make_study: Any) -> None:
    ran = run_arm(make_study(MOMENTS_ARM), "fedkd")
    assert ran.refused == []
    assert all(teacher.moments is not None for teacher in ran.start.teachers.members)
    assert "transfer-hash" not in str(ran.reasons)


BAD_TEACHERS: dict[str, Callable[[RecordDict], RecordDict]] = {
    "logits 1e30": change_logits(first_to(1e30)),
    "logits -1e30": change_logits(first_to(-1e30)),
    "logits nan": change_logits(first_to(math.nan)),
    "logits of fewer samples": change_logits(lambda a: a[:-1]),
    "logits of one sample": change_logits(lambda a: a[:1]),
    "logits transposed": change_logits(lambda a: a.T),
    "logits in float64": change_logits(lambda a: a.astype(np.float64)),
    "logits pickled": change_logits(lambda a: raw(npy(np.full(a.shape, Trap(), dtype=object)))),
    "no logits": lambda content: rebuilt(content, teacher=None),
    "a model for logits": lambda content: rebuilt(
        content, teacher=ArrayRecord({KEY: Array(np.zeros((200, 64), dtype=np.float32))})
    ),
    "density above the bound": change_density(first_to(1e4)),
    "density a little above": change_density(first_to(1e3)),
    "density inf": change_density(first_to(math.inf)),
    "density nan": change_density(first_to(math.nan)),
    "density of fewer samples": change_density(lambda a: a[:-1]),
    "density as a column": change_density(lambda a: a[:, None]),
    "density in another key": lambda content: rebuilt(
        content, familiarity=ArrayRecord({"density": Array(np.zeros(60, dtype=np.float32))})
    ),
    "another transfer set": change_info(transfer_hash="0" * 64),
    "no transfer hash": change_info(transfer_hash=None),
    "another run": change_info(run_id="another-run"),
    "another round": change_info(server_round=1),
    "another silo's name": change_info(silo="silo-2"),
    "boolean examples": change_info(num_examples=True),
    "negative examples": change_info(num_examples=-3),
    "examples as text": change_info(num_examples="10"),
    "empty": lambda content: RecordDict(),
}


@pytest.fixture(scope="module")
def without_the_silo(run_arm: Any, make_study: Any) -> Any:
    """The run in which the hostile silo fails to answer the server's question at all."""

    def fail(silo: str, question: Message, reply: Message) -> Message:
        if silo == HOSTILE and question.metadata.message_type == keys.TEACHER:
            return Message(Error(2, "away"), reply_to=question)
        return reply

    return run_arm(make_study(LOGITS_ARM), "fedkd", tamper=fail)


@pytest.mark.parametrize("name", BAD_TEACHERS)
def test_a_hostile_teacher_is_as_if_not_asked(
    name: str, run_arm: Any, make_study: Any, without_the_silo: Any
) -> None:
    tamper = tamper_with(BAD_TEACHERS[name], keys.TEACHER)
    ran = run_arm(make_study(LOGITS_ARM), "fedkd", tamper=tamper)
    assert ran.refused == [(HOSTILE, 0)]
    assert_same(ran.state, without_the_silo.state)
    assert list(ran.run.notes["mean_weights"]) == ["silo-0", "silo-2"]


def test_a_hostile_model_is_no_teacher(run_arm: Any, make_study: Any) -> None:
    def poison(content: RecordDict) -> RecordDict:
        arrays = dict(content.array_records[keys.TEACHER_RECORD])
        arrays[KEY] = Array(spoil(math.nan)(arrays[KEY].numpy()))
        return rebuilt(content, teacher=ArrayRecord(arrays))

    study = make_study({"rounds/max": 1, "arms/fedkd-average": {"start": "consolidated"}})
    ran = run_arm(study, "fedkd-average", tamper=tamper_with(poison, keys.TEACHER))
    assert ran.refused == [(HOSTILE, 0)]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in ran.state.values())


@pytest.fixture(scope="module")
def without_the_model(run_arm: Any, make_study: Any) -> Any:
    """The run in which the hostile silo's model was not to be had."""
    tamper = tamper_with(change_info(problem="away"), keys.TEACHER)
    return run_arm(make_study(WEIGHTS_ARM), "fedkd", tamper=tamper)


WEIGHTS_ARM = {"rounds/max": 1, "arms/fedkd/consolidation/epochs": 1}


def change_teacher(change: Callable[[Arrays], Arrays]) -> Callable[[RecordDict], RecordDict]:
    def apply(content: RecordDict) -> RecordDict:
        record = content.array_records[keys.TEACHER_RECORD]
        return rebuilt(content, teacher=ArrayRecord(change(dict(record))))

    return apply


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_a_hostile_teachers_model_is_as_if_not_asked(
    name: str, run_arm: Any, make_study: Any, without_the_model: Any
) -> None:
    tamper = tamper_with(change_teacher(BAD_ARRAYS[name]), keys.TEACHER)
    ran = run_arm(make_study(WEIGHTS_ARM), "fedkd", tamper=tamper)
    assert ran.refused == [(HOSTILE, 0)]
    assert_same(ran.state, without_the_model.state)


# Introductions and evaluation.

BAD_INTRODUCTIONS = {
    "a name taken": change_info(silo="silo-0"),
    "no name": change_info(silo=None),
    "a path for a name": change_info(silo="../../etc"),
    "control characters": change_info(silo="silo\x1b[2J"),
    "a number for a name": change_info(silo=7),
    "an unknown architecture": change_info(architecture="torchvision:resnet152"),
    "no examples": change_info(num_examples=0),
    "examples over the study's cap": change_info(num_examples=10_000_001),
    "negative class counts": change_info(class_counts=[-1] * 10),
    "class counts of another number": change_info(class_counts=[1] * 9),
    "class counts of floats": change_info(class_counts=[0.5] * 10),
    "class counts beyond measure": change_info(class_counts=[10**12] * 10),
    "another run": change_info(run_id="x"),
    "another round": change_info(server_round=3),
}


@pytest.mark.parametrize("name", BAD_INTRODUCTIONS)
def test_a_hostile_introduction_keeps_a_node_out(
    name: str, run_arm: Any, make_study: Any, average_without: Any
) -> None:
    study = make_study({"rounds/max": 1})
    ran = run_arm(study, "fedavg", tamper=tamper_with(BAD_INTRODUCTIONS[name], keys.DESCRIBE))
    assert ran.members == ["silo-0", "silo-2"]
    assert ran.refused == [("node-3", 0)]
    assert_same(ran.state, average_without(ran))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (keys.LOSS, math.nan),
        (keys.MACRO_F1, math.inf),
        (keys.ACCURACY, math.nan),
        (keys.ACCURACY, 1e300),
        (keys.ACCURACY, -1.0),
        (keys.NUM_EXAMPLES, -1),
    ],
)
def test_a_hostile_evaluation_leaves_no_trace_in_the_mean(
    key: str, value: float, run_arm: Any, make_study: Any
) -> None:
    """A reply refused for its last figure must not have been counted for its first."""

    def lie(content: RecordDict) -> RecordDict:
        metrics = {**content.metric_records[keys.METRICS], key: value}
        return rebuilt(content, metrics=MetricRecord(metrics))

    ran = run_arm(
        make_study({"rounds/max": 1}), "fedavg", tamper=tamper_with(lie, keys.EVALUATE), test=False
    )
    assert ran.refused == [(HOSTILE, 0), (HOSTILE, 1)]
    honest = [silo for silo in ran.silos if silo.name != HOSTILE]
    found = [(len(silo.data), silo.evaluate(ran.state)) for silo in honest]
    total = sum(size for size, _ in found)
    point = ran.run.curve[1]
    assert point.accuracy == pytest.approx(sum(n * m.accuracy for n, m in found) / total)
    assert point.loss == pytest.approx(sum(n * m.loss for n, m in found) / total)


def test_reading_an_array_needs_no_more_memory_than_its_bytes() -> None:
    """A header may declare any size: it is compared before anything is made."""
    huge = raw(header("{'descr': '<f4', 'fortran_order': False, 'shape': (2684354560,)}"))
    with pytest.raises(RefusedError, match="bytes where 10737418240 are due"):
        read_array(huge, "w", (2684354560,), torch.float32)


@pytest.mark.parametrize(
    "tensor",
    [torch.randn(3, 4), torch.tensor(3), torch.randn(2, 3).double(), torch.tensor([True, False])],
)
def test_honest_arrays_pass_to_the_bit(tensor: torch.Tensor) -> None:
    found = read_array(Array(tensor.numpy()), "w", tuple(tensor.shape), tensor.dtype)
    assert found.dtype == tensor.dtype
    assert torch.equal(found, tensor)


def test_column_order_and_version_2_headers_are_honest_too() -> None:
    tensor = torch.arange(12.0).reshape(3, 4)
    fortran = Array(np.asfortranarray(tensor.numpy()))
    assert torch.equal(read_array(fortran, "w", (3, 4), torch.float32), tensor)
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4)}"
    second = raw(header(text, tensor.numpy().tobytes(), version=(2, 0)))
    assert torch.equal(read_array(second, "w", (3, 4), torch.float32), tensor)
