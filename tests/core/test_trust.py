"""Bad teachers: who is believed, how much anyone may weigh, and what robust pooling makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedkd.config import Consolidation
from fedkd.data.images import Images
from fedkd.distillation.consolidate import consolidate
from fedkd.distillation.density.basis import make_basis
from fedkd.distillation.targets import DistillationSetup
from fedkd.distillation.teachers import Teacher, Teachers
from fedkd.distillation.weighting.ensemble import combine
from fedkd.distillation.weighting.exclusion import exclude_contradicted
from fedkd.distillation.weighting.trust import agreement, cap, coverage, trust
from fedkd.distillation.weighting.weightings import Evidence, pool
from fedkd.errors import UserError
from fedkd.models.build import Shape, build_model
from fedkd.models.state import copy_state
from fedkd.training.compute import Compute


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def even(teachers: int, samples: int) -> Tensor:
    return torch.full((teachers, samples), 1 / teachers, dtype=torch.float64)


# Trust.


def test_a_liar_among_those_that_know_the_same_is_not_believed() -> None:
    truth = torch.arange(60) % 3
    votes = torch.stack([truth, truth, truth, truth, (truth + 1) % 3])
    believed = trust(votes, torch.ones(5, 60, dtype=torch.float64))
    assert believed[:4].min() > 0.99
    assert believed[4] < 0.1


def test_who_stands_alone_in_what_it_knows_is_believed() -> None:
    """Two silos, each of a class that the other has never seen: both are right where they weigh."""
    votes = torch.stack([torch.zeros(40), torch.ones(40)]).long()
    known = torch.tensor([0.999] * 20 + [0.001] * 20, dtype=torch.float64)
    believed = trust(votes, torch.stack([known, 1 - known]))
    assert believed.min() > 0.95


def test_a_loud_liar_does_not_drag_down_those_it_contradicts() -> None:
    """It claims to know all; nobody else meets anyone but it and one other."""
    truth = torch.arange(80) % 4
    votes = torch.stack([truth] * 8 + [torch.zeros(80, dtype=torch.int64)])
    known = torch.zeros(9, 80, dtype=torch.float64)
    for m in range(8):
        known[m, truth == m // 2] = 0.7
    known[8] = 1.0
    believed = trust(votes, known)
    assert believed[:8].min() > 0.9
    assert believed[8] < 0.5


@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 2**31 - 1))
def test_trust_is_a_share_and_knows_no_order(teachers: int, samples: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    votes = torch.randint(0, 4, (teachers, samples), generator=generator)
    raw = torch.rand((teachers, samples), dtype=torch.float64, generator=generator) + 1e-3
    weights = raw / raw.sum(0)
    believed = trust(votes, weights)
    assert bool((believed > 0).all() and (believed <= 1).all())
    order = torch.randperm(teachers, generator=generator)
    torch.testing.assert_close(trust(votes[order], weights[order]), believed[order])


def test_who_knows_an_image_by_hand() -> None:
    """Likelier than the background by more than the margin, and how much beside the others."""
    nan = float("nan")
    density = rows([40.0, 3.0], [40.0, -40.0], [nan, nan])
    weights = rows([0.4, 0.9], [0.4, 0.0], [0.2, 0.1])
    known = coverage(density, torch.zeros(2, dtype=torch.float64), weights)
    torch.testing.assert_close(known, rows([1.0, 0.5], [1.0, 0.0], [0.0, 0.0]))


@pytest.mark.parametrize(
    "settings", [{"weighting": "equal"}, {"familiarity": {"density": "knn"}}, {}]
)
def test_trust_is_refused_where_nobody_says_who_knows_what(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="trust: agreement compares teachers on examples"):
        Consolidation.model_validate({"trust": "agreement", **settings})


def test_agreement_is_a_share_of_images() -> None:
    votes = torch.tensor([[1, 1, 2, 2], [1, 0, 0, 0]])
    assert agreement(votes, torch.tensor([1, 1, 2, 0])).tolist() == [0.75, 0.5]


# The cap.


@given(
    st.integers(1, 8),
    st.integers(1, 12),
    st.floats(0.01, 1.0),
    st.booleans(),
    st.integers(0, 2**31 - 1),
)
def test_no_teacher_weighs_more_on_average_than_it_may(
    teachers: int, samples: int, most: float, per_class: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (teachers, samples, 3) if per_class else (teachers, samples)
    weights = torch.softmax(9 * torch.randn(shape, dtype=torch.float64, generator=generator), dim=0)
    capped = cap(weights, most)
    # At a cap of very nearly 1/M the factors are found to one part in a hundred only.
    assert float(capped.flatten(1).mean(1).max()) <= max(most, 1 / teachers) * 1.01
    torch.testing.assert_close(capped.sum(0), torch.ones(shape[1:]).double())
    assert bool((capped >= 0).all())


def test_a_cap_that_nobody_reaches_changes_nothing() -> None:
    weights = rows([0.5, 0.2], [0.3, 0.3], [0.2, 0.5])
    torch.testing.assert_close(cap(weights, 0.4), weights)


def test_a_claim_to_know_everything_leaves_the_others_as_they_were() -> None:
    """A constant on all log-densities is taken away again, but for the cap."""
    seeded = torch.Generator().manual_seed(0)
    honest = torch.softmax(torch.randn(4, 50, dtype=torch.float64, generator=seeded), dim=0)
    assert float(0.75 * honest.mean(1).max()) < 0.25, "no honest one is to reach the cap itself"
    loud = torch.cat([honest * 1e-12, torch.ones(1, 50, dtype=torch.float64)])
    capped = cap(loud / loud.sum(0), 0.25)
    torch.testing.assert_close(capped[4].mean(), torch.tensor(0.25).double())
    torch.testing.assert_close(capped[:4] / capped[:4].sum(0), honest)


# Robust pooling.


def test_the_weighted_median_by_hand() -> None:
    """Three teachers, two classes: the middle of each class's probabilities, renormalised."""
    probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]).double()
    logits = probs.log()[:, None, :]
    found = pool(logits, even(3, 1), temperature=1.0, pooling="median")
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.4]]))
    heavy = rows([0.7], [0.2], [0.1])
    found = pool(logits, heavy, temperature=1.0, pooling="median")
    torch.testing.assert_close(found, torch.tensor([[0.9, 0.1]]))


def test_the_trimmed_mean_of_equal_weights_is_that_of_the_middle_teachers() -> None:
    logits = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0)).double()
    found = pool(logits, even(5, 7), temperature=2.0, pooling="trimmed-mean", trim=0.2)
    middle = torch.softmax(logits / 2, dim=2).sort(dim=0).values[1:4].mean(0)
    torch.testing.assert_close(found, (middle / middle.sum(1, keepdim=True)).float())


@pytest.mark.parametrize("pooling", ["median", "trimmed-mean"])
def test_where_all_disagree_the_mean_is_left(pooling: str) -> None:
    logits = (200 * torch.eye(3)).double()[:, None, :]
    found = pool(logits, even(3, 1), temperature=1.0, pooling=pooling, trim=0.4)
    torch.testing.assert_close(found, torch.full((1, 3), 1 / 3))


@pytest.mark.parametrize("pooling", ["probs", "median", "trimmed-mean"])
@pytest.mark.parametrize("per_class", [False, True])
def test_targets_are_distributions(pooling: str, per_class: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 5 * torch.randn(4, 9, 3, dtype=torch.float64, generator=generator)
    shape = (4, 9, 3) if per_class else (4, 9)
    weights = torch.softmax(torch.randn(shape, dtype=torch.float64, generator=generator), dim=0)
    found = pool(logits, weights, temperature=1.0, pooling=pooling, trim=0.2)
    torch.testing.assert_close(found.sum(1), torch.ones(9))
    assert bool((found >= 0).all())


# All together.


def test_the_options_are_heard_and_change_nothing_by_default() -> None:
    generator = torch.Generator().manual_seed(3)
    truth = torch.randint(0, 3, (50,), generator=generator)
    honest = 6 * torch.nn.functional.one_hot(truth, 3).float()
    logits = torch.stack([honest, honest, honest, 9 * torch.eye(3)[0].expand(50, 3)])
    densities = torch.zeros(4, 50, dtype=torch.float64)
    densities[3] = 400.0
    evidence = Evidence(logits, torch.tensor([10, 10, 10, 10]), log_density=densities)

    def right(**settings: object) -> float:
        made = Consolidation(weighting="familiarity", **settings)  # type: ignore[arg-type]
        return float((combine(evidence, made).target.argmax(1) == truth).float().mean())

    assert right() < 0.6
    assert right(max_weight=0.3) == 1.0
    believing = Consolidation(weighting="familiarity", max_weight=0.3, trust="agreement")
    assert combine(evidence, believing).trust is None, "without a background nobody knows anything"
    known = replace(evidence, log_background=torch.full((50,), -9.0, dtype=torch.float64))
    made = combine(known, believing)
    assert made.trust is not None
    assert float(made.trust[3]) < 0.6 < 0.99 < float(made.trust[:3].min())
    assert float((made.target.argmax(1) == truth).float().mean()) == 1.0
    assert made.agreement[:3].tolist() == [1.0, 1.0, 1.0]
    assert combine(evidence, Consolidation(weighting="equal")).trust is None


def make_teachers(truth: Tensor, shape: Shape) -> list[Teacher]:
    """Return four that know every image and say the truth of it, and one that says otherwise."""
    members = []
    for m in range(5):
        said = (truth + 1) % 3 if m == 4 else truth
        members.append(
            Teacher(
                f"silo-{m}",
                "cnn",
                num_examples=10 + m,
                state=copy_state(build_model("cnn", shape, seed=m)),
                logits=6 * torch.nn.functional.one_hot(said, 3).float(),
                log_density=torch.full((len(truth),), 50.0, dtype=torch.float64),
            )
        )
    return members


@pytest.fixture
def setup() -> DistillationSetup:
    """Return a place with sixty unlabelled images: dark, grey and bright ones in turn."""
    noise = torch.randint(0, 80, (60, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    images = (noise + 80 * (torch.arange(60) % 3).reshape(60, 1, 1, 1)).to(torch.uint8)
    transfer = Images(images, torch.full((60,), -1))
    return DistillationSetup(
        transfer=transfer,
        labelled=False,
        validation=transfer.take(torch.tensor([], dtype=torch.int64)),
        arch="cnn",
        shape=Shape(num_classes=3, in_channels=1, image_size=8),
        compute=Compute(),
        seed=0,
        basis=make_basis(images, dims=5),
    )


def test_an_excluded_teacher_neither_teaches_nor_is_in_the_average(
    setup: DistillationSetup,
) -> None:
    members = make_teachers(torch.arange(60) % 3, setup.shape)
    teachers = Teachers(members, setup.shape, setup.compute)
    settings = Consolidation(weighting="familiarity", trust="agreement", epochs=1)
    made = consolidate(teachers, settings, setup)
    honest = Teachers(members[:4], setup.shape, setup.compute)
    average = honest.average("cnn")
    assert all(torch.equal(made.start[key], average[key]) for key in average)
    assert list(made.notes["doubted"]) == ["silo-4"]
    assert made.notes["doubted"]["silo-4"] < 0.1
    assert list(made.notes["mean_weights"]) == ["silo-0", "silo-1", "silo-2", "silo-3"]
    alone = consolidate(honest, settings, setup)
    assert "doubted" not in alone.notes
    assert all(torch.equal(made.state[key], alone.state[key]) for key in alone.state)


def test_where_all_contradict_each_other_all_are_heard(setup: DistillationSetup) -> None:
    members = [
        replace(m, logits=torch.roll(m.logits, i, dims=1))
        for i, m in enumerate(make_teachers(torch.arange(60) % 3, setup.shape))
        if m.logits is not None
    ]
    teachers = Teachers(members, setup.shape, setup.compute)
    settings = Consolidation(weighting="familiarity", trust="agreement")
    kept, notes = exclude_contradicted(teachers, settings, setup)
    assert kept is teachers
    assert "contradict each other too much" in notes["warning"]


def test_of_two_teachers_nobody_can_tell_who_is_wrong(setup: DistillationSetup) -> None:
    members = make_teachers(torch.arange(60) % 3, setup.shape)[3:]
    teachers = Teachers(members, setup.shape, setup.compute)
    settings = Consolidation(weighting="familiarity", trust="agreement")
    kept, notes = exclude_contradicted(teachers, settings, setup)
    assert (len(kept), list(notes)) == (2, ["warning"])
    assert exclude_contradicted(teachers, Consolidation(), setup) == (teachers, {})


def test_a_student_that_learns_nothing_is_told_of(setup: DistillationSetup) -> None:
    members = make_teachers(torch.arange(60) % 3, setup.shape)[:4]
    settings = Consolidation(epochs=20)
    learnt = consolidate(Teachers(members, setup.shape, setup.compute), settings, setup)
    assert learnt.notes["student_agreement"] > 0.4
    assert "warning" not in learnt.notes
    zero = {key: torch.zeros_like(t) for key, t in (members[0].state or {}).items()}
    dead = [replace(m, state=zero) for m in members]
    still = consolidate(Teachers(dead, setup.shape, setup.compute), settings, setup)
    assert still.notes["student_agreement"] == pytest.approx(1 / 3)
    assert "student: fresh" in still.notes["warning"]
    fresh = Consolidation(student="fresh", epochs=1, lr=1e-9)
    teachers = Teachers(members, setup.shape, setup.compute)
    lost = consolidate(teachers, fresh, setup).notes.get("warning", "")
    assert "student: fresh" not in lost, "it is fresh"


def test_images_that_no_silo_knows_are_told_of(setup: DistillationSetup) -> None:
    members = make_teachers(torch.arange(60) % 3, setup.shape)[:4]
    settings = Consolidation(weighting="familiarity", epochs=1)

    def warning(log_density: float) -> str:
        told = torch.full((60,), log_density, dtype=torch.float64)
        known = [replace(member, log_density=told) for member in members]
        teachers = Teachers(known, setup.shape, setup.compute)
        found: str = consolidate(teachers, settings, setup).notes.get("warning", "")
        return found

    assert "unlike any silo's" in warning(-500.0)
    assert "unlike any silo's" not in warning(50.0)


def says_nothing(*_: object, **__: object) -> None:
    """Be a method that forgets to return its loss."""


def test_a_method_that_returns_no_loss_is_refused(setup: DistillationSetup) -> None:
    members = make_teachers(torch.arange(60) % 3, setup.shape)
    teachers = Teachers(members, setup.shape, setup.compute)
    settings = Consolidation(method=f"{__name__}:says_nothing", epochs=1)
    with pytest.raises(UserError, match="says_nothing must return the mean loss"):
        consolidate(teachers, settings, setup)


def test_no_warning_hides_another(setup: DistillationSetup) -> None:
    members = [
        replace(
            member,
            logits=torch.roll(member.logits, m, dims=1),
            state={key: torch.zeros_like(t) for key, t in (member.state or {}).items()},
        )
        for m, member in enumerate(make_teachers(torch.arange(60) % 3, setup.shape))
        if member.logits is not None
    ]
    teachers = Teachers(members, setup.shape, setup.compute)
    settings = Consolidation(weighting="familiarity", trust="agreement", epochs=1)
    warning = consolidate(teachers, settings, setup).notes["warning"]
    assert "contradict each other too much" in warning
    assert "predicts the same class for every example" in warning


@pytest.mark.parametrize("learns", [True, False])
def test_teachers_that_are_constant_together_are_told_of(
    setup: DistillationSetup, learns: bool
) -> None:
    fives = torch.zeros(60, setup.shape.num_classes)
    fives[:, 2] = 5.0
    members = [
        replace(member, logits=fives, state=None if learns else member.state)
        for member in make_teachers(torch.arange(60) % 3, setup.shape)
    ]
    teachers = Teachers(members, setup.shape, setup.compute)
    settings = Consolidation(student="fresh", epochs=30, lr=0.1 if learns else 1e-6)
    warning = consolidate(teachers, settings, setup).notes["warning"]
    assert "the ensemble predicts the same class for every transfer example" in warning
    assert ("and so does the student" in warning) is learns
    assert "the student predicts the same class" not in warning
