"""Whose moments labelled images contradict, and who is heard all the same."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.datasets import load_digits
from torch import Tensor

from fedkd.config import Consolidation
from fedkd.data.images import Images
from fedkd.distillation.consolidate import Consolidated, consolidate
from fedkd.distillation.density.basis import make_basis
from fedkd.distillation.density.moments import Moments, leave_one_out, merge_moments, moments_of
from fedkd.distillation.targets import DistillationSetup
from fedkd.distillation.teachers import Teacher, Teachers
from fedkd.distillation.weighting.exclusion import exclude_contradicted, sign_test
from fedkd.errors import FedKDError
from fedkd.models.build import Shape
from fedkd.registry import NUM_PATCH_FILTERS, PATCH_FEATURES
from fedkd.training.compute import Compute

DIGITS = load_digits()
PIXELS = torch.tensor(DIGITS.images * 15).to(torch.uint8)[:, None]
LABELS = torch.tensor(DIGITS.target).long()
SHAPE = Shape(10, 1, 8)
SETTINGS = Consolidation.model_validate(
    {
        "weighting": "familiarity",
        "student": "lda-head",
        "epochs": 0,
        "mode": "logits",
        "trust": "validation",
        "familiarity": {"density": "pooled", "basis": "patches", "filters": NUM_PATCH_FILTERS},
    }
)
SIZES = (400, 150, 150, 150, 150)
"""Of the silos; the first one lies where one does."""


def scores(*true: int) -> Tensor:
    return torch.zeros(20, dtype=torch.bool).index_fill(0, torch.tensor(true, dtype=torch.long), 1)


def test_the_sign_test_by_hand() -> None:
    assert sign_test(scores(), scores()) == 1
    assert sign_test(scores(1, 2, 3), scores()) == 1 / 8
    assert sign_test(scores(1, 2, 3, 4, 5), scores(6)) == (6 + 1) / 64
    assert sign_test(scores(), scores(6, 7)) == 1


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_sign_test_counts_coins(for_: int, against: int) -> None:
    p = sign_test(torch.arange(200) < for_, torch.arange(200) >= 200 - against)
    tosses = for_ + against
    heads = sum(math.comb(tosses, k) for k in range(for_, tosses + 1))
    assert p == pytest.approx(heads / 2**tosses)


def setup() -> DistillationSetup:
    transfer = Images(PIXELS[:300], torch.full((300,), -1))
    basis = make_basis(
        transfer.images, dims=500, kind="patches", filters=NUM_PATCH_FILTERS, fine=True
    )
    return DistillationSetup(
        transfer=transfer,
        labelled=False,
        validation=Images(PIXELS[300:450], LABELS[300:450]),
        arch=PATCH_FEATURES,
        shape=SHAPE,
        compute=Compute(),
        seed=0,
        basis=basis,
    )


SCHOOL = setup()


def silos(labels: Tensor = LABELS, liars: int = 1) -> list[Teacher]:
    """Return five silos, the first ones of which have other labels."""
    members = []
    rows = torch.arange(450, 1450).split(SIZES)
    for m, own in enumerate(rows):
        data = Images(PIXELS[own], (labels if m < liars else LABELS)[own])
        members.append(
            Teacher(f"silo-{m}", "cnn", len(own), logits=torch.zeros(300, 10), moments=told(data))
        )
    return members


def told(data: Images) -> Moments:
    assert SCHOOL.basis is not None
    found = moments_of(data, SCHOOL.basis, num_classes=10)
    assert found is not None
    return found


def made(members: list[Teacher], **changes: Any) -> Consolidated:
    settings = SETTINGS.model_copy(update=changes)
    return consolidate(Teachers(members, SHAPE, Compute()), settings, SCHOOL)


def same(one: Consolidated, other: Consolidated) -> bool:
    return all(torch.equal(one.state[key], other.state[key]) for key in other.state)


LIES = {
    "flipped": 9 - LABELS,
    "shifted": (LABELS + 1) % 10,
    "one class": torch.zeros_like(LABELS),
    "random": torch.randint(0, 10, LABELS.shape, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_liar_is_left_out_and_the_student_is_the_honest_ones(lie: str) -> None:
    members = silos(LIES[lie])
    found = made(members)
    assert list(found.notes["doubted"]) == ["silo-0"]
    assert found.notes["doubted"]["silo-0"] < 0.01
    assert same(found, made(members[1:], trust="equal"))
    assert not same(found, made(members, trust="equal"))


def test_a_liar_that_claims_many_images_is_left_out_too() -> None:
    members = silos(LIES["one class"])
    loud = members[0].moments
    assert loud is not None
    members[0] = replace(members[0], moments=replace(loud, counts=1000 * loud.counts))
    assert same(made(members), made(members[1:]))


def test_honest_silos_are_all_heard() -> None:
    members = silos()
    found = made(members)
    assert "doubted" not in found.notes
    assert same(found, made(members, trust="equal"))


def test_who_alone_knows_a_class_is_heard() -> None:
    """Every silo's images are those of two classes: without it nobody would know them."""
    members = []
    for m in range(5):
        rows = torch.arange(450, 1450)[LABELS[450:1450] // 2 == m]
        data = Images(PIXELS[rows], LABELS[rows])
        members.append(
            Teacher(f"silo-{m}", "cnn", len(rows), logits=torch.zeros(300, 10), moments=told(data))
        )
    assert "doubted" not in made(members).notes


def test_fewer_than_half_are_left_out() -> None:
    found = made(silos(LIES["shifted"], liars=4))
    assert len(found.notes.get("doubted", {})) <= 2
    assert "doubted" not in made(silos(LIES["shifted"])[:2]).notes, "of two, none"


def test_who_told_nothing_is_not_judged() -> None:
    members = silos(LIES["shifted"])
    members[4] = replace(members[4], moments=None)
    kept, notes = exclude_contradicted(Teachers(members, SHAPE, Compute()), SETTINGS, SCHOOL)
    assert [teacher.silo for teacher in kept.members] == [f"silo-{m}" for m in range(1, 5)]
    assert list(notes["doubted"]) == ["silo-0"]
    silent = [replace(member, moments=None) for member in members]
    teachers = Teachers(silent, SHAPE, Compute())
    assert exclude_contradicted(teachers, SETTINGS, SCHOOL) == (teachers, {})
    nowhere = replace(SCHOOL, basis=None)
    assert exclude_contradicted(teachers, SETTINGS, nowhere) == (teachers, {})


def test_without_labelled_images_it_is_refused() -> None:
    blind = replace(SCHOOL, validation=SCHOOL.validation.take(torch.tensor([], dtype=torch.int64)))
    with pytest.raises(FedKDError, match="labelled examples, and there are none"):
        exclude_contradicted(Teachers(silos(), SHAPE, Compute()), SETTINGS, blind)


def test_moments_less_one_are_those_of_the_others() -> None:
    moments = [member.moments for member in silos() if member.moments is not None]
    for m, rest in enumerate(leave_one_out(moments)):
        others = merge_moments([*moments[:m], *moments[m + 1 :]])
        assert others is not None
        assert rest.counts.tolist() == others.counts.tolist()
        torch.testing.assert_close(rest.means, others.means, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(rest.second, others.second, atol=1e-5, rtol=1e-5)


def test_a_class_of_the_one_alone_is_gone_with_it() -> None:
    alone = told(Images(PIXELS[450:750], LABELS[450:750] % 5))
    other = told(Images(PIXELS[750:1050], 5 + LABELS[750:1050] % 5))
    rest = next(leave_one_out([alone, other]))
    assert rest.counts.tolist() == other.counts.tolist()
    assert not rest.means[:5].any()


@pytest.mark.parametrize(
    "changes",
    [{"weighting": "equal"}, {"weighting": "familiarity", "familiarity": {"density": "gaussian"}}],
)
def test_it_is_refused_where_no_moments_are_told(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="trust: validation compares class sums"):
        Consolidation.model_validate({"trust": "validation", **changes})


def test_the_pages_table_is_the_records() -> None:
    top = Path(__file__).parents[2]
    page = (top / "docs" / "robustness.md").read_text(encoding="utf-8")
    for row in json.loads((top / "experiments" / "robustness" / "moments.json").read_text())[
        "lost"
    ]:
        figures = [f"{value:.1f}" for value in (row["without"], *row["lost"].values())]
        caught = f"{row['caught']} of {row['of']}" if row["trust"] == "validation" else ""
        assert f"| `{row['trust']}` | {' | '.join(figures)} | {caught}".rstrip() in page
        assert row["wrongly"] == 0


def test_it_needs_validation_data_and_no_model() -> None:
    assert SETTINGS.needs_validation
    assert not SETTINGS.judges_models
