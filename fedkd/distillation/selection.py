"""Choice of the student and of its teachers, on the server's validation data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedkd.config import Consolidation
from fedkd.data.images import Images
from fedkd.distillation.density.basis import Basis
from fedkd.distillation.density.discriminant import lda_head_student
from fedkd.distillation.teachers import Teachers
from fedkd.models.build import Shape, build_model, rebuild
from fedkd.models.state import State, copy_state
from fedkd.training.evaluate import predict
from fedkd.util.seeding import derive_seed


@dataclass(frozen=True)
class Choice:
    """A student, and its teachers.

    Attributes:
        student: index of the selected teacher that the student is a copy of, or None.
        silo: name of the silo whose model the student is, or None.
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
    """Choose the student and its teachers.

    The validation examples may be empty if the rules in ``settings`` need none.

    Raises:
        FedKDError: no teacher has the architecture or the moments that the student needs.
    """
    notes: dict[str, Any] = {}
    chosen = silo = None
    if settings.student == "fresh":
        start = fresh_student(arch, teachers.shape, seed)
    elif settings.student == "lda-head":
        moments = [teacher.moments for teacher in teachers.members]
        scale = settings.familiarity.effective_scale
        start = lda_head_student(moments, basis, teachers.shape, scale=scale)
    elif settings.student == "average":
        start = teachers.average(arch)
    else:
        chosen = teachers.choose_model(settings.student, arch, validation, seed)
        start = copy_state(teachers.model(chosen))
        silo = notes["student"] = teachers.members[chosen].silo
    student_logits = None
    if settings.select.needs_validation:
        model = rebuild(arch, teachers.shape, start, teachers.compute.device)
        student_logits = predict(model, validation, compute=teachers.compute)
    selected = teachers.select(settings.select, validation, student_logits)
    if len(selected) < len(teachers):
        notes["teachers"] = [teachers.members[index].silo for index in selected]
    student = selected.index(chosen) if chosen in selected else None
    return Choice(start, teachers.subset(selected), student, silo, notes)


def fresh_student(arch: str, shape: Shape, seed: int) -> State:
    """Return the random initial weights of a student that is no silo's model."""
    return copy_state(build_model(arch, shape, seed=derive_seed(seed, "fresh-student")))
