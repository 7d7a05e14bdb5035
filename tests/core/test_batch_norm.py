"""BatchNorm in averages: new statistics, by hand and in a study, and the warning without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fedkd
from fedkd.config import Study
from fedkd.data.images import Images, as_float
from fedkd.federation.check import check_study
from fedkd.federation.federation import Federation
from fedkd.federation.simulated_teachers import SimulatedTeachers
from fedkd.models.build import Shape, build_model
from fedkd.models.state import State, average_states, copy_state, load_state
from fedkd.training.batch_norm import batch_norm_keys, recalibrate
from fedkd.training.compute import Compute

MODULE = """
from torch import nn

def bn(num_classes, in_channels, image_size):
    width = in_channels * image_size**2
    return nn.Sequential(
        nn.Flatten(), nn.Linear(width, 8), nn.BatchNorm1d(8), nn.Dropout(0.5),
        nn.Linear(8, num_classes),
    )
"""
SHAPE = Shape(3, 1, 8)


@pytest.fixture(autouse=True)
def _own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "normed.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


def images_of(size: int) -> Images:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Images(images, torch.zeros(size, dtype=torch.int64))


def same(first: State, second: State) -> bool:
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("size", [40, 513])
def test_statistics_are_the_mean_over_batches_and_nothing_else_changes(size: int) -> None:
    """A single last image joins the batch before it: 513 are batches of 256 and 257."""
    state = copy_state(build_model("normed:bn", SHAPE, seed=1))
    state["2.running_mean"] += 5
    images = images_of(size)
    found = recalibrate(state, "normed:bn", SHAPE, images, Compute())
    hidden = nn.functional.linear(
        as_float(images.images).flatten(1), state["1.weight"], state["1.bias"]
    )
    batches = [hidden] if size == 40 else [hidden[:256], hidden[256:]]
    mean = torch.stack([batch.mean(0) for batch in batches]).mean(0)
    variance = torch.stack([batch.var(0) for batch in batches]).mean(0)
    torch.testing.assert_close(found["2.running_mean"], mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["2.running_var"], variance, atol=1e-5, rtol=1e-4)
    changed = {key for key in state if not torch.equal(state[key], found[key])}
    assert changed == {"2.running_mean", "2.running_var", "2.num_batches_tracked"}
    assert same(found, recalibrate(found, "normed:bn", SHAPE, images, Compute()))


def test_a_model_without_batch_norm_keeps_its_state() -> None:
    state = copy_state(build_model("mlp", SHAPE, seed=1))
    assert recalibrate(state, "mlp", SHAPE, images_of(4), Compute()) is state


def test_the_tensors_of_batch_norm_are_known_by_name() -> None:
    model = build_model("normed:bn", SHAPE, seed=1)
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert batch_norm_keys(model) == {f"2.{name}" for name in names}
    assert batch_norm_keys(nn.BatchNorm1d(2)) == set(names)
    assert batch_norm_keys(nn.Sequential(nn.GroupNorm(2, 4), nn.LayerNorm(4))) == frozenset()


ARMS = {
    "average": {"start": "average"},
    "fedkd": {"start": "consolidated", "consolidation": {"epochs": 1, "student": "average"}},
}


@pytest.fixture
def study(make_study: Any) -> Callable[..., Study]:
    """Return a function that gives a study of models with BatchNorm."""

    def make(batch_norm: str, **changes: Any) -> Study:
        found: Study = make_study(
            {"model": {"arch": "normed:bn", "batch_norm": batch_norm}, "baselines": []}
            | {"arms": ARMS, **changes}
        )
        return found

    return make


def test_every_average_of_a_study_has_new_statistics(study: Any, tmp_path: Path) -> None:
    """The state of an average is a fixed point; so is that of the last round's."""
    recalibrated = study("recalibrate")
    federation = Federation.load(recalibrated, 0, tmp_path)
    transfer = federation.split.transfer
    assert transfer is not None
    teachers = SimulatedTeachers(federation, "fedkd").teachers()
    average = teachers.average("normed:bn")
    plain = average_states(
        [teacher.state for teacher in teachers.members if teacher.state],
        [float(teacher.num_examples) for teacher in teachers.members],
    )
    again = recalibrate(plain, "normed:bn", federation.shape, transfer, Compute())
    assert same(average, again)
    assert not same(average, plain)
    assert same(teachers.subset([0, 1, 2]).average("normed:bn"), average)

    starts = []
    for batch_norm in ("average", "recalibrate"):
        made = study(batch_norm, arms={"average": {"start": "average"}}, **{"rounds/max": 1})
        found = fedkd.compare(study=made, out=tmp_path / batch_norm)
        starts.append(found.summary["runs"][0]["curve"][0])
        (path,) = (tmp_path / batch_norm).glob("*/*/average/seed-0/checkpoint.safetensors")
        state = load_state(path, plain)
        anew = recalibrate(state, "normed:bn", federation.shape, transfer, Compute())
        assert same(state, anew) == (batch_norm == "recalibrate")
    assert starts[0]["loss"] != starts[1]["loss"]


def test_an_average_start_over_batch_norm_warns_without_recalibration(
    study: Any, tmp_path: Path
) -> None:
    def warnings(made: Study) -> list[str]:
        found = check_study([Federation.load(made, 0, tmp_path)])
        return [sentence for sentence in found if "BatchNorm" in sentence]

    assert warnings(study("average")) == [
        f"arms.{name}: averages models with BatchNorm, whose averaged statistics fit none of them; "
        "set model.batch_norm: recalibrate"
        for name in ARMS
    ]
    assert warnings(study("recalibrate")) == []
    assert warnings(study("average", model={"arch": "mlp"})) == []
    fresh = {"start": "consolidated", "consolidation": {"student": "fresh"}}
    assert warnings(study("average", arms={"fedkd": fresh, "fedavg": {"start": "random"}})) == []
