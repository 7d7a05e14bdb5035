"""Consolidation: teachers in, one student out. No federation needed; it knows no messages."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.checkpoint import State, copy_state
from fedkd.data.images import Images
from fedkd.distillation import METHODS
from fedkd.distillation.blends import Blends, blend
from fedkd.distillation.choice import choose
from fedkd.distillation.densities import Densities, find_densities
from fedkd.distillation.ensemble import Ensemble, choose_subset, combine
from fedkd.distillation.familiarity import Basis
from fedkd.distillation.lesson import Lesson
from fedkd.distillation.teachers import Teachers
from fedkd.distillation.trust import BELIEVED, DOUBTED
from fedkd.distillation.weightings import Evidence
from fedkd.errors import FedKDError
from fedkd.models.building import Shape, build_model
from fedkd.seeding import numpy_generator, torch_generator
from fedkd.study import Consolidation
from fedkd.training import Compute, is_finite, predict


@dataclass(frozen=True)
class School:
    """Where consolidation takes place, and what it may use.

    Attributes:
        transfer: images to distil on.
        labelled: whether their labels may be used.
        validation: labelled images on which choices are made; may be empty.
        arch: architecture of the student.
        shape: what models are built for.
        compute: device and precision.
        seed: of the study's repetition.
        basis: in which the teachers' densities are told, or None.
        on_epoch: told of every epoch: its number from 1, and how many there are.
        on_student: shown the student after every epoch, with the same two numbers; it may look
            at the model but not change its weights.
    """

    transfer: Images
    labelled: bool
    validation: Images
    arch: str
    shape: Shape
    compute: Compute
    seed: int
    basis: Basis | None = None
    on_epoch: Callable[[int, int], None] | None = None
    on_student: Callable[[nn.Module, int, int], None] | None = None


@dataclass(frozen=True)
class Consolidated:
    """A student that has learnt, and what is known about how.

    Attributes:
        state: the student's weights.
        start: its weights before.
        teachers: those that taught.
        notes: figures for the record: mean weight of each teacher, last loss, who was chosen.
        loss: mean of the last epoch.
    """

    state: State
    start: State
    teachers: Teachers
    notes: dict[str, Any] = field(default_factory=dict)
    loss: float = math.nan


def consolidate(teachers: Teachers, settings: Consolidation, school: School) -> Consolidated:
    """Choose the student and the teachers, combine what they say, and let the student learn.

    Raises:
        FedKDError: distillation diverged, or nothing usable is there to learn from.
    """
    heard, told = leave_out_the_doubted(those_that_teach(teachers, settings), settings, school)
    choice = choose(
        heard, settings, validation=school.validation, arch=school.arch, seed=school.seed
    )
    learnt = distil(choice.start, choice.teachers, choice.student, settings, school)
    return replace(learnt, notes=told | choice.notes | learnt.notes)


def those_that_teach(teachers: Teachers, settings: Consolidation) -> Teachers:
    """Leave out silos too small to tell densities, where these alone teach.

    Raises:
        FedKDError: all are.
    """
    if settings.teachers != "densities":
        return teachers
    told = [
        m
        for m, teacher in enumerate(teachers.members)
        if teacher.log_density is not None or teacher.moments is not None
    ]
    if not told:
        raise FedKDError("every silo is too small to fit a density, which alone would teach here")
    return teachers.only(told)


def leave_out_the_doubted(
    teachers: Teachers, settings: Consolidation, school: School
) -> tuple[Teachers, dict[str, Any]]:
    """Leave out whom those that know the same images contradict, where trust is by agreement.

    One teacher after another, the least believed first: as long as a liar is heard, those that it
    contradicts seem doubtful too. Where leaving out :data:`~fedkd.distillation.trust.DOUBTED` of
    them does not make the rest agree, they contradict each other for another reason, such as too
    little training, and all are heard.

    Returns:
        Those that are heard, and notes: the trust in each of the others, or why there are none.
    """
    most = max(1, int(DOUBTED * len(teachers))) if len(teachers) > 2 else 0
    heard, doubted = teachers, dict[str, float]()
    while settings.trust == "agreement":
        trust = make_ensemble(heard, settings, school).trust
        if trust is None or float(trust.min()) >= BELIEVED:
            break
        if len(doubted) == most:
            sentence = "the teachers contradict each other too much for trust to tell who is wrong"
            return teachers, {"warning": sentence}
        least = int(trust.argmin())
        doubted[heard.members[least].silo] = round(float(trust[least]), 6)
        heard = heard.only([m for m in range(len(heard)) if m != least])
    return heard, {"doubted": doubted} if doubted else {}


def distil(
    start: State,
    teachers: Teachers,
    student: int | None,
    settings: Consolidation,
    school: School,
) -> Consolidated:
    """Combine what the teachers say, and let the student that begins at ``start`` learn.

    Args:
        start: the student's weights before.
        teachers: all of them teach.
        student: which of them the student is a copy of, or None.
        settings: of the consolidation; who learns and who teaches is settled.
        school: its validation data may be empty if the teachers' accuracies are told.

    Raises:
        FedKDError: distillation diverged, or nothing usable is there to learn from.
    """
    model = build_model(school.arch, school.shape, seed=0).to(school.compute.device)
    model.load_state_dict(start)
    ensemble = make_ensemble(teachers, settings, school)
    if settings.teachers == "validation":
        lesson = _control_lesson(school)
    else:
        lesson = _lesson(teachers, settings, school, ensemble, student)
    loss = _learn(model, lesson, settings, school)
    state = copy_state(model)
    if not is_finite(state):
        raise FedKDError(f"distillation diverged; lower consolidation.lr (now {settings.lr:g})")
    notes = _describe(teachers, ensemble, loss)
    said = predict(model, school.transfer.images, compute=school.compute).argmax(1)
    notes |= _describe_student(said, ensemble.target.argmax(1))
    return Consolidated(state, start, teachers, notes, loss)


def make_ensemble(
    teachers: Teachers, settings: Consolidation, school: School, blends: Blends | None = None
) -> Ensemble:
    """Combine what the teachers say of the transfer set, or of blends of its images.

    Raises:
        FedKDError: densities should teach and no silo has any.
    """
    images = school.transfer.images
    told = None
    if school.basis is not None and settings.uses_densities:
        told = find_densities(teachers, settings, school.basis, images, blends)
    if settings.teachers == "densities":
        logits = _by_densities(told, settings)
    else:
        logits = teachers.predict(images if blends is None else blends.images)
    evidence = Evidence(
        logits=logits,
        num_examples=torch.tensor([t.num_examples for t in teachers.members]),
        accuracy=teachers.accuracy(school.validation)
        if settings.uses_accuracy and teachers.can_be_judged(school.validation)
        else None,
        class_counts=teachers.class_counts(),
        log_density=None if told is None else told.marginal(),
        log_background=None if told is None else told.background,
    )
    ensemble = combine(evidence, settings)
    if settings.teachers != "both" or told is None or not told.known:
        return ensemble
    densities = replace(
        evidence,
        logits=_by_densities(told, settings),
        num_examples=evidence.num_examples[told.known],
        log_density=told.marginal()[told.known],
        class_counts=None,
    )
    opinion = combine(densities, settings).target
    return replace(ensemble, target=(ensemble.target + opinion) / 2)


def _by_densities(told: Densities | None, settings: Consolidation) -> Tensor:
    """Return joint log-densities ``[M, N, K]`` to stand where teachers' logits would."""
    if told is None:
        raise ValueError("densities should teach, but there is no basis for any")
    return told.joint() / settings.familiarity.class_scale


def _lesson(
    teachers: Teachers,
    settings: Consolidation,
    school: School,
    ensemble: Ensemble,
    student: int | None,
) -> Lesson:
    images = school.transfer.images
    by_densities = settings.teachers == "densities"
    rows = torch.arange(len(images))
    if settings.subset is not None:
        rows = choose_subset(ensemble.target, settings.subset, school.seed)
    lesson = Lesson(
        images=images,
        labels=school.transfer.labels if school.labelled else None,
        target=ensemble.target,
        logits=ensemble.logits,
        weights=ensemble.weights,
        models=teachers.models() if teachers.have_models and not by_densities else (),
        student=student,
        order=_order(teachers, settings, school),
    ).take(rows)
    if not settings.blends:
        return lesson
    drawn = blend(lesson.images, settings.blends, torch_generator(school.seed, "blends"))
    of_all = replace(drawn, first=rows[drawn.first], second=rows[drawn.second])
    return lesson.with_blends(drawn, make_ensemble(teachers, settings, school, of_all))


def _control_lesson(school: School) -> Lesson:
    """The control: what the server's validation labels teach without any teacher."""
    nothing = torch.zeros(0, len(school.validation), school.shape.num_classes)
    return Lesson(
        images=school.validation.images,
        labels=school.validation.labels,
        target=nothing.sum(0),
        logits=nothing,
        weights=nothing.sum(2),
    )


def _order(teachers: Teachers, settings: Consolidation, school: School) -> tuple[int, ...]:
    """Return in which turn the teachers speak where they speak one after another."""
    everyone = range(len(teachers))
    if settings.sequence == "parallel" or settings.order == "silos":
        return tuple(everyone)
    if settings.order == "random":
        permuted = numpy_generator(school.seed, "teacher-order").permutation(len(teachers))
        return tuple(int(index) for index in permuted)
    accuracy = teachers.accuracy(school.validation)
    sign = 1 if settings.order == "weakest-first" else -1
    return tuple(sorted(everyone, key=lambda m: (sign * float(accuracy[m]), m)))


def _learn(model: nn.Module, lesson: Lesson, settings: Consolidation, school: School) -> float:
    epochs = iter(range(1, settings.epochs + 1))

    def on_epoch() -> None:
        epoch = next(epochs, settings.epochs)
        if school.on_epoch:
            school.on_epoch(epoch, settings.epochs)
        if school.on_student:
            school.on_student(model, epoch, settings.epochs)
            model.train()  # whoever looked may have left it in evaluation mode

    loss: float = METHODS.load(settings.method)(
        model,
        lesson,
        settings,
        generator=torch_generator(school.seed, "distillation"),
        compute=school.compute,
        on_epoch=on_epoch,
    )
    return loss


def _describe(teachers: Teachers, ensemble: Ensemble, loss: float) -> dict[str, Any]:
    names = [teacher.silo for teacher in teachers.members]
    notes: dict[str, Any] = {
        "distillation_loss": round(loss, 6) if math.isfinite(loss) else None,
        "mean_weights": _by_name(names, ensemble.weights.mean(1)),
        "agreement": _by_name(names, ensemble.agreement),
    }
    if ensemble.trust is not None:
        notes["trust"] = _by_name(names, ensemble.trust)
    if ensemble.foreign is not None:
        notes["foreign_share"] = round(ensemble.foreign, 6)
    return notes


def _describe_student(said: Tensor, taught: Tensor) -> dict[str, Any]:
    """Tell how often the student says what the teachers say; warn if it has learnt nothing.

    Args:
        said: classes ``[N]``.
        taught: the ensemble's classes ``[N]``.
    """
    notes: dict[str, Any] = {"student_agreement": round(float((said == taught).double().mean()), 6)}
    if bool((said == said[0]).all()) and bool((taught != taught[0]).any()):
        notes["warning"] = (
            "the student says the same of every image and has learnt nothing; models of separate "
            "initialisations average to one that cannot learn: set student: fresh or best"
        )
    return notes


def _by_name(names: list[str], values: Tensor) -> dict[str, float]:
    return {name: round(value, 6) for name, value in zip(names, values.tolist(), strict=True)}
