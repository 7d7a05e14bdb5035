"""Silos in the field, in this process: they share what their files say, and log what left them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from safetensors.torch import load_file

from fedkd.data.images import Images
from fedkd.deploy.bundle_hash import bundle_hash
from fedkd.deploy.silo_file import load_silo_file
from fedkd.errors import UserError
from fedkd.messages import keys
from fedkd.models.card import read_card
from fedkd.results.record import RunRecord
from fedkd.training.external import train_external
from fedkd.util.files import hash_file
from fedkd.util.lock import LOCK_FILE

NAMES = ("north", "south", "west")
LOGITS = {
    "start": "consolidated",
    "consolidation": {"mode": "logits", "student": "fresh", "epochs": 2},
}
ARMS = ("fedavg", "fedkd", "fedkd-pooled", "fedkd-logits")


def reasons(record: RunRecord) -> dict[str, str]:
    return {entry.silo: entry.reason for entry in record.quarantined}


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_runs_on_what_silos_tell(field: Any, arm: str) -> None:
    made = field()
    record = made.run(arm)
    assert record.accuracy_source == "silos"
    assert [point.silos_ok for point in record.curve] == [0 if arm == "fedavg" else 3, 3]
    assert not record.quarantined
    for name in NAMES:
        kinds = [entry["type"] for entry in made.audit(name)]
        asked = [] if arm == "fedavg" else [keys.TEACHER]
        expected = [keys.DESCRIBE, *asked, keys.EVALUATE, keys.TRAIN, keys.EVALUATE]
        assert kinds == expected


def test_the_audit_log_names_study_arm_code_data_and_transfer_set(field: Any) -> None:
    made = field()
    made.run("fedkd-logits")
    before = made.audit("north")
    with np.load(made.root / "north" / "data.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"]
    np.savez(made.root / "north" / "data.npz", images=images[::-1], labels=labels)
    made.ask("north", keys.DESCRIBE, {keys.TRANSFER_HASH: keys.NO_HASH}, arm="fedavg")
    last = made.audit("north")[-1]
    for entry in (*before, last):
        assert (entry["study"], entry["seed"], entry["code"]) == ("field", 0, bundle_hash())
    assert {entry["arm"] for entry in before} == {"fedkd-logits"}
    assert last["arm"] == "fedavg"
    transfer = {entry["type"]: entry["transfer"] for entry in before}
    assert transfer[keys.TEACHER] == transfer[keys.DESCRIBE] == made.transfer_hash()
    assert transfer[keys.TRAIN] is last["transfer"] is None
    assert len({entry["data"] for entry in before}) == 1
    assert last["data"] != before[0]["data"]


def test_the_final_model_comes_to_the_silos_that_ask_for_it_and_to_no_other(field: Any) -> None:
    made = field({"north": {"receive": "models"}})
    record = made.run("fedavg")
    assert record.notes["received_by"] == ["north"]
    (path,) = (made.root / "north" / "models").iterdir()
    final = load_file(made.root / "record" / "fedavg" / "checkpoint.safetensors")
    received = load_file(path)
    assert all(torch.equal(received[key], final[key]) for key in final)
    card = read_card(path, what="test")
    assert card is not None
    assert (card.classes, card.facts["arm"], card.facts["rounds"]) == (("a", "b", "c"), "fedavg", 1)
    last = made.audit("north")[-1]
    assert last["type"] == keys.RECEIVE
    assert last["received"] == hash_file(path)
    assert set(last["sent"]) == {"info"}
    # Nothing is charged for it, and whoever does not ask refuses what is sent all the same.
    assert record.curve[-1].silos_ok == 3
    arrays = RecordDict({keys.ARRAYS: ArrayRecord(final)})
    reply = made.ask("south", keys.RECEIVE, {}, "fedavg", arrays)
    assert reply.error.reason == "it does not ask for models (receive)"
    assert "received" not in made.audit("south")[-1]
    # The run's id, which ends the file's name, cannot lead out of the folder.
    own = (made.root / "north" / "own.safetensors").read_bytes()
    for run in ("x/../../own", "/../own", "../" * 9 + "tmp/x", ""):
        reply = made.ask("north", keys.RECEIVE, {keys.RUN_ID: run}, "fedavg", arrays)
        assert reply.has_error()
        assert "received" not in made.audit("north")[-1]
    assert (made.root / "north" / "own.safetensors").read_bytes() == own
    assert list((made.root / "north" / "models").iterdir()) == [path]


def test_the_audit_log_has_the_very_bytes_that_are_charged(field: Any) -> None:
    made = field()
    record = made.run("fedkd")
    logged = sum(entry["bytes"] for name in NAMES for entry in made.audit(name))
    assert logged == sum(point.bytes_up for point in record.curve)


def test_predictions_are_shared_where_weights_are_not(field: Any) -> None:
    made = field({"south": {"share": {"teacher": "logits"}}})
    record = made.run("fedkd")
    assert "share.teacher is logits" in reasons(record)["south"]
    assert set(record.notes["mean_weights"]) == {"north", "west"}
    record = made.run("fedkd-logits")
    assert not record.quarantined
    assert set(record.notes["mean_weights"]) == set(NAMES)
    for entry in made.audit("south"):
        assert entry["type"] != keys.TEACHER or set(entry["sent"]) <= {
            "teacher",
            "familiarity",
            "info",
        }


@pytest.mark.parametrize(
    ("share", "kind", "config", "said"),
    [
        ({"teacher": "none"}, keys.TEACHER, {"mode": "logits", "density": "none"}, "teacher"),
        ({"teacher": "logits"}, keys.TEACHER, {"mode": "weights", "density": "none"}, "teacher"),
        ({"teacher": "weights"}, keys.TEACHER, {"mode": "all", "density": "none"}, "teacher"),
        ({"teacher": "weights"}, keys.TEACHER, {"density": "none"}, "teacher"),
        ({"densities": False}, keys.TEACHER, {"mode": "none", "density": "sample"}, "densities"),
        ({"densities": False}, keys.TEACHER, {"mode": "weights"}, "densities"),
        ({"moments": False}, keys.TEACHER, {"mode": "weights", "density": "moments"}, "moments"),
        ({"rounds": False}, keys.TRAIN, {}, "rounds"),
        ({"metrics": False}, keys.EVALUATE, {}, "metrics"),
        ({"rounds": False}, keys.DISTIL, {}, "models trained"),
        ({"min_samples": 41}, keys.DESCRIBE, {"transfer-hash": "none"}, "min_samples"),
    ],
)
def test_what_is_not_shared_is_refused_by_name(
    field: Any, share: dict[str, Any], kind: str, config: dict[str, Any], said: str
) -> None:
    made = field({"north": {"share": share}})
    reply = made.ask("north", kind, config)
    assert reply.has_error()
    assert said in reply.error.reason
    (entry,) = made.audit("north")
    assert entry["refused"] == reply.error.reason
    assert entry["sent"] == {}


@pytest.mark.parametrize(("least", "kept"), [(1, [14, 13, 13]), (14, [14, 0, 0]), (15, None)])
def test_moments_leave_only_if_shared_and_of_classes_that_are_large(
    field: Any, least: int, kept: list[int] | None
) -> None:
    share = {"share": {"densities": False, "moments": True, "min_samples": least}}
    made = field({"north": share, "south": share, "west": share})
    record = made.run("fedkd-pooled")
    assert not record.quarantined
    (entry,) = [e for e in made.audit("north") if e["type"] == keys.TEACHER]
    if kept is None:
        assert "familiarity" not in entry["sent"]
    else:
        values = 3 + 3 * 5 + 5 * 6 // 2
        assert entry["sent"]["familiarity"] == {"arrays": 3, "values": values}


def test_the_guard_keeps_back_moments_of_few_images_whatever_the_silo_says(field: Any) -> None:
    from flwr.app import ArrayRecord

    from clients.guard import UnsharedError, withhold
    from fedkd.deploy.silo_file import Share

    share = Share(teacher="weights", moments=True, min_samples=10)
    question = Message(
        RecordDict({keys.CONFIG: ConfigRecord({"mode": "none", "density": "moments"})}),
        dst_node_id=1,
        message_type=keys.TEACHER,
    )
    for counts, refused in (([10, 0, 12], False), ([10, 9, 12], True)):
        record = ArrayRecord({keys.MOMENT_COUNTS: torch.tensor(counts)})
        content = RecordDict({keys.FAMILIARITY: record})
        if refused:
            with pytest.raises(UnsharedError, match="min_samples"):
                withhold(share, question, content)
        else:
            withhold(share, question, content)
    densities = RecordDict({keys.FAMILIARITY: ArrayRecord({keys.LOG_DENSITY: torch.zeros(3)})})
    with pytest.raises(UnsharedError, match="densities where moments are asked for"):
        withhold(share, question, densities)


COUNTS_ARE_SHARED = [
    ({}, True),
    ({"class_counts": False}, False),
    ({"min_samples": 13}, True),
    ({"min_samples": 14}, False),
]
"""The north's classes have 14, 13 and 13 images."""


@pytest.mark.parametrize(("share", "told"), COUNTS_ARE_SHARED)
def test_class_counts_leave_only_if_shared_and_large(
    field: Any, share: dict[str, Any], told: bool
) -> None:
    made = field({"north": {"share": share}})
    reply = made.ask("north", keys.DESCRIBE, {"transfer-hash": "none"})
    assert (keys.CLASS_COUNTS in reply.content.config_records[keys.INFO]) is told
    assert (keys.CLASS_COUNTS in made.audit("north")[0]["sent"]["info"]) is told


@pytest.mark.parametrize(("share", "told"), COUNTS_ARE_SHARED)
def test_sums_by_class_leave_on_the_terms_of_class_counts(
    field: Any, share: dict[str, Any], told: bool
) -> None:
    made = field({"north": {"share": share}})
    made.study["metric"] = "macro-f1"
    record = made.run("fedavg")
    sent = [e["sent"]["metrics"] for e in made.audit("north") if e["type"] == keys.EVALUATE]
    assert len(sent) == 2
    assert [keys.CLASS_HITS in each for each in sent] == [told, told]
    assert record.notes.get("metric_without", []) == ([] if told else ["north"])
    assert record.curve[1].metrics["macro_f1"] is not None


def test_private_paths_stay_in_the_silos_own_log(field: Any) -> None:
    made = field()
    (made.root / "north" / "data.npz").unlink()
    reply = made.ask("north", keys.DESCRIBE, {"transfer-hash": "none"})
    assert reply.has_error()
    assert str(made.root) not in reply.error.reason
    assert "fedkd silo check" in reply.error.reason


def test_nothing_leaves_unlogged(field: Any) -> None:
    made = field()
    (made.root / "north" / "audit.jsonl").mkdir()
    reply = made.ask("north", keys.DESCRIBE, {"transfer-hash": "none"})
    assert reply.has_error()


def test_a_silo_of_another_study_takes_no_part(field: Any) -> None:
    made = field({"north": {"name": "east"}})
    reply = made.ask("north", keys.DESCRIBE, {"transfer-hash": "none"})
    assert "partition.names" in reply.error.reason


def test_a_transfer_set_that_is_there_is_not_sent(field: Any) -> None:
    alone = field()
    sent = alone.run("fedkd-logits")
    held = {"transfer": alone.transfer("copy.npz")}
    made = field({"north": held, "west": held})
    spared = made.run("fedkd-logits")
    saved = sent.curve[0].bytes_down - spared.curve[0].bytes_down
    assert saved > 2 * 40 * 8 * 8
    assert [p.accuracy for p in spared.curve] == [p.accuracy for p in sent.curve]


def test_another_transfer_set_is_sent_all_the_same(field: Any) -> None:
    alone = field()
    sent = alone.run("fedkd-logits")
    made = field({"north": {"transfer": f"npz:{alone.root / 'north' / 'data.npz'}"}})
    again = made.run("fedkd-logits")
    assert not again.quarantined
    assert again.curve[0].bytes_down == sent.curve[0].bytes_down


def test_noise_is_the_silos_own_choice(field: Any) -> None:
    noisy = {
        "share": {"teacher": "none"},
        "local_dp": {"clipping_norm": 1.0, "sensitivity": 1.0, "epsilon": 1.0, "delta": 1e-5},
    }
    made = field({"south": noisy})
    first, second = (final(made, "fedavg") for _ in range(2))
    assert any(not torch.equal(first[key], second[key]) for key in first)


def final(made: Any, arm: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    made.run(arm)
    return load_file(made.root / "record" / arm / "checkpoint.safetensors")


def test_without_noise_the_same_run_gives_the_same_model(field: Any) -> None:
    made = field()
    first, second = (final(made, "fedavg") for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_silo_keeps_its_log_and_its_answers_and_nothing_else(field: Any) -> None:
    made = field()
    own = made.root / "north"
    before = set(own.rglob("*"))
    made.run("fedkd")
    folder = own / "audit.jsonl.answers"
    (answer,) = folder.glob("*.npz")
    kept = {own / "audit.jsonl", folder, folder / LOCK_FILE, answer}
    assert set(own.rglob("*")) - before == kept


@pytest.mark.parametrize(("threads", "expected"), [(3, 3), (None, 5)])
def test_a_silo_trains_with_all_cores_of_its_host_or_as_many_threads_as_its_file_says(
    threads: int | None, expected: int, field: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = set()

    def train(task: Any, *, generator: Any) -> float:
        used.add((torch.get_num_threads(), task.compute.threads))
        return 0.0

    monkeypatch.setattr("clients.silo.train_locally", train)
    monkeypatch.setattr("clients.deployed.available_cores", lambda: 5)
    made = field({"north": {"threads": threads}})
    assert made.run("fedavg").curve[-1].silos_ok == 3
    assert used == {(1, 1), (expected, expected)}


def test_a_forest_teaches_by_its_predictions_alone(field: Any) -> None:
    made = field()
    with np.load(made.root / "north" / "data.npz") as arrays:
        images, labels = (torch.from_numpy(arrays[key]) for key in ("images", "labels"))
    state = train_external("sklearn:RandomForestClassifier", Images(images[:, None], labels), 0)
    (made.root / "north" / "own.skops").write_bytes(state["file"].numpy().tobytes())
    made.study = {"model": {"arch": "cnn", "per_silo": {"north": "sklearn", "west": "mlp"}}}
    made.study["arms"] = {"fedkd-logits": LOGITS}
    changes = {"model": {"checkpoint": "own.skops"}, "labels": {"0": "a", "1": "b", "2": "c"}}
    made.write("north", {**changes, "share": {"teacher": "logits"}})
    record = made.run("fedkd-logits")
    assert not record.quarantined
    assert "north" in record.notes["mean_weights"]
    made.write("north", {**changes, "share": {"teacher": "weights"}})
    with pytest.raises(UserError, match="the model is of sklearn, which only predicts; set share"):
        load_silo_file(made.root / "north" / "silo.yaml")
