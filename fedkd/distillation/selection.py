"""Who learns and who teaches: a choice for whoever holds the validation data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedkd.config import Consolidation
from fedkd.data.images import Images
from fedkd.distillation.density.basis import Basis
from fedkd.distillation.density.discriminant import lda_head_student
from fedkd.distillation.teachers import Teachers
from fedkd.models.build import build_model
from fedkd.models.state import State, copy_state
from fedkd.training.evaluate import predict
from fedkd.util.seeding import derive_seed


@dataclass(frozen=True)
class Choice:
    """A student, and the teachers it is to learn from.

    Attributes:
        start: the student's weights before.
        teachers: those that are to teach.
        student: which of these teachers the student is a copy of, or None.
        silo: whose model the student is, or None.
        notes: names, for the record.
    """

    start: State
    teachers: Teachers
    student: int | None
    silo: str | None
    notes: dict[str, Any]


def choose(
    teachers: Teachers,
    settings: Consolidation,
    *,
    validation: Images,
    arch: str,
    seed: int,
    basis: Basis | None = None,
) -> Choice:
    """Choose the student and those who teach it.

    Args:
        teachers: all there are.
        settings: ``student`` and ``select`` say how.
        validation: labelled images by which the choice is made; may be empty where it needs none.
        arch: architecture of the student.
        seed: of the study's repetition.
        basis: in which the teachers' moments are told, or None.

    Raises:
        FedKDError: no teacher has the architecture, or told the moments, that the student needs.
    """
    notes: dict[str, Any] = {}
    start, chosen = _student(teachers, settings, validation, arch, seed, basis)
    silo = None if chosen is None else teachers.members[chosen].silo
    if silo is not None:
        notes["student"] = silo
    before = None
    if settings.select.needs_validation:
        model = build_model(arch, teachers.shape, seed=0).to(teachers.compute.device)
        model.load_state_dict(start)
        before = predict(model, validation.images, compute=teachers.compute)
    selected = teachers.select(settings.select, validation, before)
    if len(selected) < len(teachers):
        notes["teachers"] = [teachers.members[index].silo for index in selected]
    student = selected.index(chosen) if chosen in selected else None
    return Choice(start, teachers.only(selected), student, silo, notes)


def _student(
    teachers: Teachers,
    settings: Consolidation,
    validation: Images,
    arch: str,
    seed: int,
    basis: Basis | None,
) -> tuple[State, int | None]:
    """Return the state in which the student begins, and which teacher it is, if one."""
    if settings.student == "fresh":
        drawn = derive_seed(seed, "fresh-student")
        return copy_state(build_model(arch, teachers.shape, seed=drawn)), None
    if settings.student == "lda-head":
        moments = [teacher.moments for teacher in teachers.members]
        scale = settings.familiarity.effective_scale
        return lda_head_student(moments, basis, teachers.shape, scale=scale), None
    if settings.student == "average":
        return teachers.average(arch), None
    index = teachers.pick(settings.student, arch, validation, seed)
    return copy_state(teachers.model(index)), index
