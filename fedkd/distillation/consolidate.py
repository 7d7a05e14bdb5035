"""Consolidation: distil teachers into one student, without federation or messages."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from fedkd.config import Consolidation
from fedkd.distillation.methods.base import DistillationData
from fedkd.distillation.selection import choose, fresh_student
from fedkd.distillation.targets import (
    DistillationSetup,
    make_control_data,
    make_data,
    make_ensemble,
)
from fedkd.distillation.teachers import Teachers
from fedkd.distillation.weighting.ensemble import Ensemble
from fedkd.distillation.weighting.exclusion import exclude_contradicted
from fedkd.errors import FedKDError, UserError
from fedkd.models.build import rebuild
from fedkd.models.state import State, copy_state, is_finite
from fedkd.registry import METHODS
from fedkd.training.evaluate import predict
from fedkd.util.seeding import torch_generator


@dataclass(frozen=True)
class Consolidated:
    """A distilled student, and notes on its distillation.

    Attributes:
        teachers: the teachers that were used; empty where silos are not asked.
        notes: for the record: mean weight of each teacher, last loss, chosen student.
        loss: mean of the last epoch; NaN without epochs.
    """

    state: State
    start: State
    teachers: Teachers
    notes: dict[str, Any] = field(default_factory=dict)
    loss: float = math.nan


def consolidate(
    teachers: Teachers, settings: Consolidation, setup: DistillationSetup
) -> Consolidated:
    """Choose student and teachers, pool the teachers' predictions, and distil the student.

    Raises:
        FedKDError: distillation diverged, or there is no teacher to learn from.
    """
    kept, exclusion_notes = exclude_contradicted(
        drop_without_densities(teachers, settings), settings, setup
    )
    choice = choose(
        kept,
        settings,
        validation=setup.validation,
        arch=setup.arch,
        seed=setup.seed,
        basis=setup.basis,
    )
    distilled = distil(choice.start, choice.teachers, choice.student, settings, setup)
    return replace(distilled, notes=join_notes(exclusion_notes, choice.notes, distilled.notes))


def join_notes(*notes: dict[str, Any]) -> dict[str, Any]:
    """Return all notes as one; no warning hides another."""
    warnings = [each["warning"] for each in notes if "warning" in each]
    joined = {key: value for each in notes for key, value in each.items()}
    return joined | ({"warning": "; ".join(warnings)} if warnings else {})


def drop_without_densities(teachers: Teachers, settings: Consolidation) -> Teachers:
    """Drop teachers without densities if ``teachers: densities``.

    Raises:
        FedKDError: no teacher is left.
    """
    if settings.teachers != "densities":
        return teachers
    with_densities = [
        m
        for m, teacher in enumerate(teachers.members)
        if teacher.log_density is not None or teacher.moments is not None
    ]
    if not with_densities:
        raise FedKDError(
            "every silo is too small to compute densities, but teachers: densities needs them"
        )
    return teachers.subset(with_densities)


def distil(
    start: State,
    teachers: Teachers,
    student: int | None,
    settings: Consolidation,
    setup: DistillationSetup,
) -> Consolidated:
    """Pool the teachers' predictions, and distil the student from ``start``.

    All teachers are used; settings that choose student and teachers have no effect. ``student``
    is the index of the teacher that the student is a copy of, or None. The validation data may
    be empty if the teachers' accuracies are given.

    Raises:
        FedKDError: distillation diverged, or there is no teacher to learn from.
    """
    ensemble = make_ensemble(teachers, settings, setup)
    data = None
    if settings.all_epochs:
        if settings.teachers == "validation":
            data = make_control_data(setup)
        else:
            data = make_data(teachers, settings, setup, ensemble, student)
    model, state, loss = _train(start, data, settings, setup)
    notes = _describe(teachers, ensemble, loss)
    predicted = predict(model, setup.transfer.images, compute=setup.compute).argmax(1)
    agreed = predicted == ensemble.target.argmax(1)
    notes["student_agreement"] = round(float(agreed.double().mean()), 6)
    warnings = _warnings(predicted, ensemble, settings)
    if warnings:
        notes["warning"] = "; ".join(warnings)
    return Consolidated(state, start, teachers, notes, loss)


def train_control(settings: Consolidation, setup: DistillationSetup) -> Consolidated:
    """Train a fresh student on the validation labels alone, without any teacher.

    Raises:
        FedKDError: training diverged.
    """
    start = fresh_student(setup.arch, setup.shape, setup.seed)
    _, state, loss = _train(start, make_control_data(setup), settings, setup)
    notes = {"distillation_loss": _rounded(loss)}
    return Consolidated(state, start, Teachers((), setup.shape, setup.compute), notes, loss)


def _train(
    start: State, data: DistillationData | None, settings: Consolidation, setup: DistillationSetup
) -> tuple[nn.Module, State, float]:
    """Train from ``start``; return the model, its weights and the last epoch's mean loss."""
    model = rebuild(setup.arch, setup.shape, start, setup.compute.device)
    loss = math.nan if data is None else _fit(model, data, settings, setup)
    state = copy_state(model)
    if not is_finite(state, start):
        raise FedKDError(f"distillation diverged; lower consolidation.lr (now {settings.lr:g})")
    return model, state, loss


def _fit(
    model: nn.Module, data: DistillationData, settings: Consolidation, setup: DistillationSetup
) -> float:
    last = settings.all_epochs * (len(data.order) if settings.sequence == "sequential" else 1)
    epochs = iter(range(1, last + 1))

    def on_epoch() -> None:
        epoch = next(epochs, last)
        if setup.on_epoch:
            setup.on_epoch(epoch, last)
        if setup.on_student:
            setup.on_student(model, epoch, last)
            model.train()  # the callback may have set evaluation mode

    loss = METHODS.call(
        settings.method,
        model,
        data,
        settings,
        generator=torch_generator(setup.seed, "distillation"),
        compute=setup.compute,
        on_epoch=on_epoch,
    )
    try:
        return float(loss)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"method {settings.method} must return the mean loss of its last epoch, a number, not "
            f"{type(loss).__name__}"
        ) from error


def _describe(teachers: Teachers, ensemble: Ensemble, loss: float) -> dict[str, Any]:
    names = [teacher.silo for teacher in teachers.members]
    notes: dict[str, Any] = {
        "distillation_loss": _rounded(loss),
        "mean_weights": _by_name(names, ensemble.weights.mean(1)),
        "agreement": _by_name(names, ensemble.agreement),
    }
    if ensemble.trust is not None:
        notes["trust"] = _by_name(names, ensemble.trust)
    if ensemble.foreign is not None:
        notes["foreign_share"] = round(ensemble.foreign, 6)
    return notes


_REMEDIES = {
    "average": "the average of models that differ much, in labels or initialisations, is a poor "
    "initial model: set student: fresh or best",
    "worst": "set student: fresh or best",
    "random": "set student: fresh or best",
    "best": "set student: fresh",
}
_FOREIGN = (
    "most transfer examples are unlike any silo's (foreign_share in the notes): use transfer "
    "examples of the silos' own kind, not another data set or noise"
)
MAX_FOREIGN_SHARE = 0.7
"""With gaussian densities only foreign transfer sets have a larger share: 0.94 to 1 in the records,
against 0.14 to 0.43 for examples of the silos' own kind."""


def _warnings(predicted: Tensor, ensemble: Ensemble, settings: Consolidation) -> list[str]:
    """Return warnings about likely failures of the distillation."""
    warnings = []
    target = ensemble.target.argmax(1)
    constant = [len(each) > 1 and bool((each == each[0]).all()) for each in (predicted, target)]
    if constant[1]:
        student = " and so does the student" if constant[0] else ""
        warnings.append(
            f"the ensemble predicts the same class for every transfer example{student}; check that "
            "the teachers are trained and that the transfer examples are of the silos' kind"
        )
    elif constant[0]:
        remedy = _REMEDIES.get(settings.student, "more epochs or another learning rate may help")
        warnings.append(f"the student predicts the same class for every example; {remedy}")
    gaussian = settings.familiarity.density == "gaussian"
    if gaussian and ensemble.foreign is not None and ensemble.foreign > MAX_FOREIGN_SHARE:
        warnings.append(_FOREIGN)
    return warnings


def _rounded(loss: float) -> float | None:
    return round(loss, 6) if math.isfinite(loss) else None


def _by_name(names: list[str], values: Tensor) -> dict[str, float]:
    return {name: round(value, 6) for name, value in zip(names, values.tolist(), strict=True)}
