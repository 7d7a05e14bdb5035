"""Consolidation: teachers in, one student out. No federation needed; it knows no messages."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from fedkd.config import Consolidation
from fedkd.distillation.methods.base import DistillationData
from fedkd.distillation.selection import choose
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
from fedkd.models.build import build_model
from fedkd.models.state import State, copy_state, is_finite
from fedkd.registry import METHODS
from fedkd.training.evaluate import predict
from fedkd.util.seeding import torch_generator


@dataclass(frozen=True)
class Consolidated:
    """A student that has learnt, and what is known about how.

    Attributes:
        state: the student's weights.
        start: its weights before.
        teachers: those that taught.
        notes: figures for the record: mean weight of each teacher, last loss, who was chosen.
        loss: mean of the last epoch; NaN where there was none.
    """

    state: State
    start: State
    teachers: Teachers
    notes: dict[str, Any] = field(default_factory=dict)
    loss: float = math.nan


def consolidate(
    teachers: Teachers, settings: Consolidation, setup: DistillationSetup
) -> Consolidated:
    """Choose the student and the teachers, combine what they say, and let the student learn.

    Raises:
        FedKDError: distillation diverged, or nothing usable is there to learn from.
    """
    kept, told = exclude_contradicted(those_that_teach(teachers, settings), settings, setup)
    choice = choose(
        kept,
        settings,
        validation=setup.validation,
        arch=setup.arch,
        seed=setup.seed,
        basis=setup.basis,
    )
    learnt = distil(choice.start, choice.teachers, choice.student, settings, setup)
    return replace(learnt, notes=join_notes(told, choice.notes, learnt.notes))


def join_notes(*notes: dict[str, Any]) -> dict[str, Any]:
    """Return all notes as one; no warning hides another."""
    warnings = [each["warning"] for each in notes if "warning" in each]
    joined = {key: value for each in notes for key, value in each.items()}
    return joined | ({"warning": "; ".join(warnings)} if warnings else {})


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


def distil(
    start: State,
    teachers: Teachers,
    student: int | None,
    settings: Consolidation,
    setup: DistillationSetup,
) -> Consolidated:
    """Combine what the teachers say, and let the student that begins at ``start`` learn.

    Args:
        start: the student's weights before.
        teachers: all of them teach.
        student: which of them the student is a copy of, or None.
        settings: of the consolidation; who learns and who teaches is settled.
        setup: its validation data may be empty if the teachers' accuracies are told.

    Raises:
        FedKDError: distillation diverged, or nothing usable is there to learn from.
    """
    model = build_model(setup.arch, setup.shape, seed=0).to(setup.compute.device)
    model.load_state_dict(start)
    ensemble = make_ensemble(teachers, settings, setup)
    loss = math.nan
    if settings.all_epochs:
        if settings.teachers == "validation":
            data = make_control_data(setup)
        else:
            data = make_data(teachers, settings, setup, ensemble, student)
        loss = _learn(model, data, settings, setup)
    state = copy_state(model)
    if not is_finite(state, start):
        raise FedKDError(f"distillation diverged; lower consolidation.lr (now {settings.lr:g})")
    notes = _describe(teachers, ensemble, loss)
    said = predict(model, setup.transfer.images, compute=setup.compute).argmax(1)
    notes["student_agreement"] = _share_alike(said, ensemble.target.argmax(1))
    warnings = _warnings(said, ensemble, settings)
    if warnings:
        notes["warning"] = "; ".join(warnings)
    return Consolidated(state, start, teachers, notes, loss)


def _learn(
    model: nn.Module, data: DistillationData, settings: Consolidation, setup: DistillationSetup
) -> float:
    last = settings.all_epochs
    epochs = iter(range(1, last + 1))

    def on_epoch() -> None:
        epoch = next(epochs, last)
        if setup.on_epoch:
            setup.on_epoch(epoch, last)
        if setup.on_student:
            setup.on_student(model, epoch, last)
            model.train()  # whoever looked may have left it in evaluation mode

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
            f"method {settings.method} must return the mean loss of its last epoch, a number, and "
            f"not {type(loss).__name__}"
        ) from error


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


_REMEDIES = {
    "average": "models of separate initialisations average to one that cannot learn: set student: "
    "fresh or best",
    "worst": "set student: fresh or best",
    "random": "set student: fresh or best",
    "best": "set student: fresh",
}
_FOREIGN = (
    "most transfer images are unlike any silo's (foreign_share in the notes); another data set or "
    "noise teaches little: take images of the silos' own kind"
)
STRANGE = 0.7
"""Of gaussian densities: a greater share that no silo knows is seen on foreign transfer sets only
(0.94 to 1 of the recorded ones, 0.14 to 0.43 where the images are the silos' own kind)."""


def _share_alike(said: Tensor, taught: Tensor) -> float:
    """Return how often the student says what the teachers say, of classes ``[N]`` each."""
    return round(float((said == taught).double().mean()), 6)


def _warnings(said: Tensor, ensemble: Ensemble, settings: Consolidation) -> list[str]:
    """Say what is likely to have gone wrong, if anything.

    Args:
        said: the student's classes ``[N]``.
        ensemble: what it was taught.
        settings: how it began, and in which densities silos told what they know.
    """
    found = []
    taught = ensemble.target.argmax(1)
    constant = [len(each) > 1 and bool((each == each[0]).all()) for each in (said, taught)]
    if constant[1]:
        student = " and so does the student" if constant[0] else ""
        found.append(
            f"the teachers together predict one class for every transfer image{student}; look "
            "whether they are trained, and the transfer images of the silos' kind"
        )
    elif constant[0]:
        remedy = _REMEDIES.get(settings.student, "more epochs or another learning rate may help")
        found.append(
            f"the student predicts one class for every image and has learnt nothing; {remedy}"
        )
    gaussian = settings.familiarity.density == "gaussian"
    if gaussian and ensemble.foreign is not None and ensemble.foreign > STRANGE:
        found.append(_FOREIGN)
    return found


def _by_name(names: list[str], values: Tensor) -> dict[str, float]:
    return {name: round(value, 6) for name, value in zip(names, values.tolist(), strict=True)}
