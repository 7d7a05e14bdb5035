"""Pairs: one student's figures by hand, the tuned method's choice, and what must hold of all."""

from __future__ import annotations

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fedkd.config import Consolidation
from fedkd.data.images import Images
from fedkd.errors import UserError
from fedkd.federation.describe import label_distance
from fedkd.federation.federation import Federation
from fedkd.models.build import Shape
from fedkd.pairs import measure as measuring
from fedkd.pairs.command import choose_methods, choose_settings
from fedkd.pairs.log import Log
from fedkd.pairs.measure import COLUMNS, KD_TUNED, Member, Pair, compare, grid, make_pairs, measure
from fedkd.pairs.outcome import summarise
from fedkd.training.compute import Compute
from fedkd.util.correlation import pearson, spearman

QUICK = Consolidation(epochs=4, lr=0.1)
VALIDATED = {"data/validation": 0.2}
LABELLED = {"data/transfer": {"size": 60, "labelled": True}}


def says(*classes: int) -> Tensor:
    """Return logits that predict ``classes``."""
    return functional.one_hot(torch.tensor(classes), 3).float()


def blank(labels: list[int]) -> Images:
    return Images(
        torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8),
        torch.tensor(labels, dtype=torch.int64),
    )


def hand_made(student: Tensor, teacher: Tensor, labels: list[int]) -> Pair:
    return Pair(
        teacher=Member("silo-0", "mlp", {}, torch.tensor([1, 3, 0]), teacher),
        student=Member("silo-1", "mlp", {}, torch.tensor([4, 0, 0]), student),
        transfer=blank([]),
        labelled=False,
        validation=blank([]),
        test=blank(labels),
        shape=Shape(3, 1, 1),
        compute=Compute(),
        seed=0,
    )


@pytest.fixture
def pairs(make_study: Any, cache_dir: Path, pool: ThreadPoolExecutor) -> Any:
    """Return a function that gives all pairs of the tiny study, with changes."""

    def make(*changes: dict[str, Any]) -> list[Pair]:
        merged = {key: value for each in changes for key, value in each.items()}
        federation = Federation.load(make_study(merged), 0, cache_dir)
        federation.pretrain(pool)
        return make_pairs(federation)

    return make


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "seconds"}


def test_the_figures_of_a_row_by_hand() -> None:
    labels = [0, 0, 0, 0, 1, 1, 2, 2]
    before = says(0, 0, 1, 1, 0, 1, 0, 0)
    pair = hand_made(before, says(1, 0, 0, 1, 1, 1, 2, 0), labels)
    found = compare(pair, says(1, 0, 0, 0, 1, 0, 0, 0))
    assert found["before"] == 3 / 8
    assert found["after"] == 4 / 8
    assert found["teacher_accuracy"] == 5 / 8
    assert found["gap"] == 2 / 8
    assert (found["gain"], found["forgetting"], found["delta"]) == (3 / 8, 2 / 8, 1 / 8)
    # The student's silo holds class 0 alone: two gained and one lost of four; of the rest one each.
    assert (found["delta_own"], found["delta_others"]) == (1 / 4, 0)
    assert found["complementary"] == 3 / 8


def test_a_student_of_all_classes_has_no_others() -> None:
    pair = hand_made(says(0, 1), says(0, 1), [0, 0])
    found = compare(pair, says(0, 0))
    assert (found["delta_own"], found["delta_others"]) == (0.5, None)


def test_without_a_student_only_what_was_known_before_is_there() -> None:
    found = compare(hand_made(says(0, 1), says(0, 0), [0, 0]), None)
    assert {key for key, value in found.items() if value is None} == {
        "after", "gain", "forgetting", "delta", "delta_own", "delta_others",
    }  # fmt: skip
    assert found["gap"] == 0.5


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([5, 5, 0], [1, 1, 0], 0.0),
        ([3, 0, 0], [0, 1, 9], 1.0),
        # JS of (1, 0) and (1/2, 1/2) is H(3/4) - H(1/2) / 2 bits.
        ([2, 0], [1, 1], math.sqrt(0.8112781245 - 0.5)),
    ],
)
def test_the_distance_of_two_label_mixes(
    first: list[int], second: list[int], expected: float
) -> None:
    one, other = torch.tensor(first), torch.tensor(second)
    assert label_distance(one, other) == pytest.approx(expected, abs=1e-6)
    assert label_distance(other, one) == label_distance(one, other)


def test_correlations_by_hand() -> None:
    # Ranks 2.5, 1, 2.5 against 2, 1, 3.
    assert spearman([3, 1, 3], [1, 0, 2]) == round(math.sqrt(3) / 2, 6)
    assert spearman([1, 2, 3, 4], [1, 8, 27, 64]) == 1
    assert pearson([1, 2, 3], [3, 2, 1]) == -1
    assert pearson([1, 2, 3, 4], [1, 0, 0, 1]) == 0
    assert pearson([1, 1, 1], [1, 2, 3]) is None
    assert spearman([1, 2], [1, 2]) is None


def test_every_ordered_pair_is_there_once(pairs: Any) -> None:
    found = [(pair.teacher.silo, pair.student.silo) for pair in pairs()]
    assert found == [
        ("silo-0", "silo-1"), ("silo-0", "silo-2"),
        ("silo-1", "silo-0"), ("silo-1", "silo-2"),
        ("silo-2", "silo-0"), ("silo-2", "silo-1"),
    ]  # fmt: skip


@pytest.mark.parametrize("labelled", [True, False])
def test_rows_agree_with_themselves(pairs: Any, labelled: bool) -> None:
    pair = pairs(LABELLED if labelled else {})[0]
    methods = ["kd", "dml", "dp-kd", *(["fine-tune"] if labelled else [])]
    rows = {method: measure(pair, method, QUICK) for method in methods}
    for row in rows.values():
        assert list(row) == list(COLUMNS)
        assert row["delta"] == pytest.approx(row["after"] - row["before"], abs=2e-6)
        assert row["delta"] == pytest.approx(row["gain"] - row["forgetting"], abs=2e-6)
        assert row["problem"] is None
        own = float((pair.student.class_counts[pair.test.labels] > 0).double().mean())
        parts = own * row["delta_own"] + (1 - own) * (row["delta_others"] or 0)
        assert row["delta"] == pytest.approx(parts, abs=1e-5)
    assert len({row["after"] for row in rows.values()}) > 1
    assert (rows["kd"]["temperature"], rows["kd"]["weight"]) == (1.0, 0.5 if labelled else 1.0)
    assert (rows["dp-kd"]["temperature"], rows["dp-kd"]["weight"]) == (1.0, None)
    assert (rows["dml"]["temperature"], rows["dml"]["weight"]) == (None, None)


def test_the_student_learns_from_this_teacher(pairs: Any) -> None:
    """A teacher that always says one class makes the student say it."""
    pair = pairs()[0]
    state = {name: torch.zeros_like(tensor) for name, tensor in pair.teacher.state.items()}
    state[list(state)[-1]][7] = 20.0
    pair = dataclasses.replace(pair, teacher=dataclasses.replace(pair.teacher, state=state))
    sevens = float((pair.test.labels == 7).double().mean())
    found = measure(pair, "kd", Consolidation(epochs=40, lr=0.1))
    assert found["after"] == pytest.approx(sevens, abs=1e-6)


@pytest.mark.parametrize("method", ["kd", "dml", "dp-kd"])
def test_models_of_different_architectures_teach_each_other(pairs: Any, method: str) -> None:
    for pair in pairs({"model/per_silo": {"silo-1": "lenet5"}})[:3]:
        assert measure(pair, method, QUICK)["after"] > 0


def test_the_same_pair_gives_the_same_row(pairs: Any) -> None:
    first, second = (
        [timeless(measure(pair, "dml", QUICK)) for pair in pairs()[:2]] for _ in range(2)
    )
    assert first == second
    assert first[0] != first[1]


def test_the_grid_begins_with_vanilla_and_needs_no_weight_without_labels() -> None:
    assert grid(labelled=True)[0] == grid(labelled=False)[0] == (1.0, 0.5)
    assert len(grid(labelled=True)) == len(set(grid(labelled=True))) == 9
    assert [temperature for temperature, _ in grid(labelled=False)] == [1, 4, 16]


def test_a_grid_of_vanilla_alone_gives_vanilla(pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "TEMPERATURES", (1.0,))
    monkeypatch.setattr(measuring, "WEIGHTS", (0.5,))
    pair = pairs(LABELLED, VALIDATED)[0]
    tuned, vanilla = (timeless(measure(pair, method, QUICK)) for method in (KD_TUNED, "kd"))
    assert tuned == {**vanilla, "method": KD_TUNED}


def test_tuning_looks_at_validation_data_alone(pairs: Any) -> None:
    """Validation images that are the test's make the tuned student the best of the grid there."""
    pair = pairs(LABELLED, VALIDATED)[0]
    every = []
    for temperature, weight in grid(labelled=True):
        point = QUICK.model_copy(update={"temperature": temperature, "weight": weight})
        model = measuring._distil(pair, point)
        assert model is not None
        logits = measuring.predict(model, pair.test.images, compute=pair.compute)
        every.append(compare(pair, logits)["after"])
    assert len(set(every)) > 1
    told = measure(dataclasses.replace(pair, validation=pair.test), KD_TUNED, QUICK)
    assert told["after"] == max(every)
    first = grid(labelled=True)[every.index(max(every))]
    assert (told["temperature"], told["weight"]) == first
    # Test labels that say nothing leave the choice as it is.
    honest = measure(pair, KD_TUNED, QUICK)
    mute = Images(pair.test.images, torch.zeros_like(pair.test.labels))
    blind = measure(dataclasses.replace(pair, test=mute), KD_TUNED, QUICK)
    assert [honest[key] for key in ("temperature", "weight")] == [
        blind[key] for key in ("temperature", "weight")
    ]


@pytest.mark.parametrize("method", ["kd", KD_TUNED])
def test_a_student_that_diverges_is_a_row_without_one(pairs: Any, method: str) -> None:
    pair = pairs(LABELLED, VALIDATED, {"model/arch": "resnet8", "pretraining/epochs": 1})[0]
    row = measure(pair, method, Consolidation(epochs=2, lr=1000))
    assert row["problem"] == "diverged at learning rate 1000"
    assert row["delta"] is None
    assert row["gap"] is not None
    (entry,) = summarise([row])
    assert (entry["pairs"], entry["diverged"], entry["delta"]) == (0, 1, None)


def test_a_student_on_its_own_images(pairs: Any) -> None:
    transfer = {"data/transfer": {"source": "student-silo"}, "arms/fedkd": None}
    changes = {**transfer, "arms": {"fedavg": {"start": "random"}}}
    changes.pop("arms/fedkd")
    for pair in pairs(changes):
        assert pair.labelled
        counts = torch.bincount(pair.transfer.labels, minlength=10)
        assert torch.equal(counts, pair.student.class_counts)


def row(method: str, seed: int, delta: float, gap: float) -> dict[str, Any]:
    figures = dict.fromkeys(("gain", "forgetting", "complementary", "label_distance"), 0.0)
    own = {"delta_own": delta, "delta_others": None}
    return {"method": method, "seed": seed, "delta": delta, "gap": gap, **figures, **own}


def test_the_summary_by_hand() -> None:
    rows = [row("kd", 0, 0.2, 3), row("kd", 0, -0.1, 2), row("kd", 1, -0.3, 1), row("dml", 0, 1, 0)]
    kd, dml = summarise(rows)
    assert kd["method"] == "kd"
    assert kd["pairs"] == 3
    assert kd["delta"] == kd["delta_own"] == pytest.approx(-0.2 / 3, abs=1e-6)
    assert kd["delta_others"] is None
    assert kd["delta_range"] == pytest.approx([-0.3, 0.05])
    assert kd["improved"] == pytest.approx(1 / 3, abs=1e-6)
    assert kd["correlations"]["gap"]["spearman"] == 1
    assert kd["correlations"]["complementary"] == {"pearson": None, "spearman": None}
    assert dml["correlations"]["gap"]["pearson"] is None


def test_methods_are_those_that_the_study_allows(make_study: Any) -> None:
    every = ["kd", KD_TUNED, "dml", "dp-kd", "fine-tune"]
    assert choose_methods(make_study(LABELLED), None) == every
    assert choose_methods(make_study(), None) == every[:-1]
    without = make_study({"data/validation": 0})
    assert choose_methods(without, None) == ["kd", "dml", "dp-kd"]
    assert choose_methods(without, ["dml", "kd"]) == ["dml", "kd"]
    with pytest.raises(UserError, match="selects by validation data"):
        choose_methods(without, [KD_TUNED])
    with pytest.raises(UserError, match="learns from labels"):
        choose_methods(without, ["fine-tune"])
    with pytest.raises(UserError, match=r"'kd-tune' \(did you mean 'kd-tuned'\?\)"):
        choose_methods(make_study(), ["kd-tune"])
    with pytest.raises(UserError, match="one twice"):
        choose_methods(make_study(), ["kd", "kd"])


def test_settings_are_the_first_consolidating_arms(make_study: Any) -> None:
    own = {"lr": 0.3, "batch_size": 7, "epochs": 9, "temperature": 5}
    study = make_study({"arms/fedkd/consolidation": own})
    found = choose_settings(study, None)
    assert (found.lr, found.batch_size, found.epochs, found.temperature) == (0.3, 7, 9, 1)
    assert choose_settings(study, 3).epochs == 3
    plain = make_study({"arms": {"fedavg": {"start": "random"}}})
    assert choose_settings(plain, None) == Consolidation()


def test_the_log_keeps_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    log = Log(path, fresh=False)
    log.append("a", {"delta": 1})
    with path.open("a") as file:
        file.write('nonsense\n{"key": "b", "row": {"del')
    again = Log(path, fresh=False)
    assert again.rows == {"a": {"delta": 1}}
    again.append("c", {"delta": 3})
    assert Log(path, fresh=False).rows == {"a": {"delta": 1}, "c": {"delta": 3}}
    assert Log(path, fresh=True).rows == {}
    assert path.read_text() == ""
