"""What a silo says: the contract's keys, the right echoes, and nothing of its images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flwr.app import Message

from fedkd.data.images import content_hash
from fedkd.distillation.density.basis import NOTHING_KNOWN
from fedkd.messages import keys

CHANGES = {
    "rounds/max": 2,
    "arms/fedkd-logits": {
        "start": "consolidated",
        "consolidation": {
            "weighting": "familiarity",
            "mode": "logits",
            "student": "fresh",
            "epochs": 1,
        },
    },
    "arms/control-densities": {
        "start": "consolidated",
        "consolidation": {"weighting": "familiarity", "teachers": "densities", "epochs": 1},
    },
    "arms/fedkd-patches": {
        "start": "consolidated",
        "consolidation": {
            "weighting": "familiarity",
            "familiarity": {"basis": "patches"},
            "epochs": 1,
        },
    },
    "arms/fedkd-pooled": {
        "start": "consolidated",
        "consolidation": {
            "weighting": "familiarity",
            "teachers": "both",
            "familiarity": {"density": "pooled", "basis": "patches", "dims": 20},
            "epochs": 1,
        },
    },
    "arms/fedkd-features": {
        "start": "consolidated",
        "consolidation": {
            "weighting": "familiarity",
            "familiarity": {"basis": "features"},
            "epochs": 1,
        },
    },
    "arms/avg": {"start": "average"},
}

AT_SILO = {
    "data/transfer": {"source": "student-silo"},
    "arms": {
        "fedavg": {"start": "random"},
        "fedkd": {"start": "consolidated", "consolidation": {"student": "best", "epochs": 1}},
    },
}


@pytest.fixture
def listen(run_arm: Any, make_study: Any) -> Any:
    """Return a function that runs an arm and gives all questions and replies, and the run."""

    def run(arm: str, changes: dict[str, Any] | None = None) -> tuple[Any, list[Any]]:
        kept: list[Any] = []

        def note(silo: str, question: Message, reply: Message) -> Message:
            kept.append((silo, question, reply))
            return reply

        study = make_study(changes or CHANGES)
        ran = run_arm(study, arm, tamper=note, test=False)
        assert ran.refused == []
        return ran, kept

    return run


def replies(kept: list[Any], message_type: str) -> list[tuple[str, Message]]:
    return [(s, r) for s, q, r in kept if q.metadata.message_type == message_type]


ECHO = {keys.SILO, keys.RUN_ID, keys.ROUND}


def test_replies_hold_the_keys_of_the_contract(listen: Any) -> None:
    ran, kept = listen("fedkd")
    model = set(ran.state)
    for _, reply in replies(kept, keys.DESCRIBE):
        assert set(reply.content) == {keys.INFO}
        assert set(reply.content[keys.INFO]) == ECHO | {
            keys.ARCHITECTURE,
            keys.NUM_PARAMETERS,
            keys.NUM_EXAMPLES,
            keys.CLASS_COUNTS,
            keys.CHECKPOINT_HASH,
            keys.HOLDS_TRANSFER,
        }
    for _, reply in replies(kept, keys.TEACHER):
        assert set(reply.content) == {keys.TEACHER_RECORD, keys.FAMILIARITY, keys.INFO}
        assert set(reply.content[keys.TEACHER_RECORD]) == model
        assert set(reply.content[keys.FAMILIARITY]) == {keys.LOG_DENSITY}
        assert set(reply.content[keys.INFO]) == ECHO | {keys.NUM_EXAMPLES, keys.TRANSFER_HASH}
    for _, reply in replies(kept, keys.TRAIN):
        assert set(reply.content) == {keys.ARRAYS, keys.METRICS, keys.INFO}
        assert set(reply.content[keys.ARRAYS]) == model
        assert set(reply.content[keys.METRICS]) == {keys.NUM_EXAMPLES, keys.LOSS}
        assert set(reply.content[keys.INFO]) == ECHO
    for _, reply in replies(kept, keys.EVALUATE):
        assert set(reply.content) == {keys.METRICS, keys.INFO}
        assert set(reply.content[keys.METRICS]) == {
            keys.NUM_EXAMPLES,
            keys.ACCURACY,
            keys.LOSS,
            keys.MACRO_F1,
        }
    assert [len(replies(kept, t)) for t in (keys.DESCRIBE, keys.TEACHER)] == [3, 3]
    assert [len(replies(kept, t)) for t in (keys.TRAIN, keys.EVALUATE)] == [6, 9]


def test_replies_echo_silo_run_and_round(listen: Any) -> None:
    _, kept = listen("fedkd")
    for silo, question, reply in kept:
        info = reply.content[keys.INFO]
        assert info[keys.SILO] == silo
        assert info[keys.RUN_ID] == "this-run"
        assert info[keys.ROUND] == question.content[keys.CONFIG][keys.ROUND]
    assert {r.content[keys.INFO][keys.ROUND] for _, r in replies(kept, keys.TRAIN)} == {1, 2}


def test_wire_names_are_what_other_programs_speak() -> None:
    """The contract is spoken outside the project: a renamed key breaks strangers."""
    found = {value for key, value in vars(keys).items() if key.isupper() and isinstance(value, str)}
    assert {"query.describe", "query.teacher", "query.distil", "train", "evaluate"} <= found
    assert {"basis-model", "architectures", "accuracies", "student", "none"} <= found
    assert keys.teacher_record(3) == "teacher-3"
    assert {"arrays", "config", "metrics", "info", "teacher", "familiarity"} <= found
    assert {"transfer", "basis", "run-id", "transfer-hash", "num-examples"} <= found
    assert {"class-counts", "checkpoint-hash", "mode", "density", "weights", "logits"} <= found
    assert not any("_" in value or value != value.lower() for value in found)


def test_a_description_tells_the_truth(listen: Any) -> None:
    ran, kept = listen("fedkd")
    for name, reply in replies(kept, keys.DESCRIBE):
        (silo,) = (s for s in ran.silos if s.name == name)
        info = reply.content[keys.INFO]
        assert info[keys.ARCHITECTURE] == "mlp"
        assert info[keys.NUM_EXAMPLES] == len(silo.data) == sum(info[keys.CLASS_COUNTS])
        assert info[keys.CLASS_COUNTS] == [int((silo.data.labels == k).sum()) for k in range(10)]
        assert info[keys.NUM_PARAMETERS] == sum(t.numel() for t in ran.state.values())
        assert info[keys.HOLDS_TRANSFER] is False
    hashes = {r.content[keys.INFO][keys.CHECKPOINT_HASH] for _, r in replies(kept, keys.DESCRIBE)}
    assert len(hashes) == 3
    _, again = listen("fedkd")
    assert hashes == {
        r.content[keys.INFO][keys.CHECKPOINT_HASH] for _, r in replies(again, keys.DESCRIBE)
    }


def test_silos_without_a_use_for_a_model_describe_none(listen: Any) -> None:
    _, kept = listen("fedavg")
    for _, reply in replies(kept, keys.DESCRIBE):
        assert reply.content[keys.INFO][keys.CHECKPOINT_HASH] == "none"
        assert reply.content[keys.INFO][keys.NUM_PARAMETERS] == 0
    assert replies(kept, keys.TEACHER) == []


def test_models_predictions_and_densities_are_what_was_asked(listen: Any) -> None:
    ran, kept = listen("fedkd-logits")
    transfer = ran.context.transfer
    for name, reply in replies(kept, keys.TEACHER):
        (silo,) = (s for s in ran.silos if s.name == name)
        logits = torch.from_numpy(reply.content[keys.TEACHER_RECORD][keys.LOGITS].numpy())
        expected = silo.predict(silo.own_model().state, transfer.images)
        torch.testing.assert_close(logits, expected)
        assert reply.content[keys.FAMILIARITY][keys.LOG_DENSITY].numpy().shape == (60,)
        assert reply.content[keys.INFO][keys.TRANSFER_HASH] == content_hash(transfer.images)
    _, kept = listen("control-densities")
    for _, reply in replies(kept, keys.TEACHER):
        assert reply.content[keys.FAMILIARITY][keys.LOG_DENSITY].numpy().shape == (60, 10)


def test_moments_need_no_transfer_image(listen: Any) -> None:
    ran, kept = listen("fedkd-pooled")
    for name, question, reply in kept:
        if question.metadata.message_type != keys.TEACHER:
            continue
        (silo,) = (s for s in ran.silos if s.name == name)
        assert set(question.content) == {keys.CONFIG, keys.BASIS}
        config = question.content[keys.CONFIG]
        assert (config[keys.DENSITY], config[keys.DENSITY_KIND]) == ("moments", "pooled")
        told = {key: array.numpy() for key, array in reply.content[keys.FAMILIARITY].items()}
        counts = [n if n >= 5 else 0 for n in silo.class_counts]
        assert told[keys.MOMENT_COUNTS].tolist() == counts
        assert told[keys.MOMENT_MEANS].shape == (10, 20)
        assert told[keys.MOMENT_SECOND].shape == (20 * 21 // 2,)
        assert {str(array.dtype) for array in told.values()} == {"int64", "float32"}


def test_nothing_is_asked_for_or_sent_that_an_average_does_not_need(listen: Any) -> None:
    _, kept = listen("avg")
    for _, question, reply in kept:
        if question.metadata.message_type == keys.TEACHER:
            assert set(question.content) == {keys.CONFIG}
            assert set(reply.content) == {keys.TEACHER_RECORD, keys.INFO}


@pytest.mark.parametrize(
    ("arm", "changes"),
    [
        *((arm, {}) for arm in ("fedavg", "avg", "fedkd", "fedkd-logits", "fedkd-features")),
        ("fedkd-pooled", {}),
        ("control-densities", {}),
        ("fedkd", AT_SILO),
    ],
)
def test_no_reply_holds_private_images(arm: str, changes: dict[str, Any], listen: Any) -> None:
    """Neither as bytes nor as floats, neither whole nor one image, nor anything of their shape."""
    ran, kept = listen(arm, changes)
    for name, _, reply in kept:
        (silo,) = (s for s in ran.silos if s.name == name)
        arrays = [a for record in reply.content.array_records.values() for a in record.values()]
        blob = b"".join(array.data for array in arrays)
        for image in silo.data.images:
            assert image.numpy().tobytes() not in blob
            assert (image.float() / 255).numpy().tobytes() not in blob
        for array in arrays:
            assert array.numpy().dtype != "uint8"
            assert array.numpy().shape[0] != len(silo.data) or len(silo.data) in {10, 60, 200}


def test_local_training_depends_on_silo_and_round_alone(run_arm: Any, make_study: Any) -> None:
    ran = run_arm(make_study({"rounds/max": 1}), "fedavg")
    start, rounds = ran.context.model("initial-model").state_dict(), ran.context.rounds
    before = {key: tensor.clone() for key, tensor in start.items()}
    silo = ran.silos[0]
    first, loss = silo.train(start, 1, rounds)
    again, same_loss = silo.train(start, 1, rounds)
    later, _ = silo.train(start, 2, rounds)
    assert loss == same_loss
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], later[key]) for key in first)
    assert all(torch.equal(start[key], before[key]) for key in start), "the question is kept"


def test_densities_are_finite_and_single_precision(run_arm: Any, make_study: Any) -> None:
    from fedkd.distillation.density.basis import make_basis

    ran = run_arm(make_study({"rounds/max": 1}), "fedavg")
    images = ran.context.transfer.images
    basis = make_basis(images, dims=10)
    for per_class in (False, True):
        found = ran.silos[0].log_density(
            images, basis, per_class=per_class, kind="gaussian", neighbours=5
        )
        assert found.dtype == torch.float32
        assert found.shape == ((60, 10) if per_class else (60,))
        assert bool(torch.isfinite(found).all())
        assert float(found.min()) >= NOTHING_KNOWN
