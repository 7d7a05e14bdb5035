"""How the global model starts: functions of a session and the random initial model.

A start of the user's own is such a function too, named ``package.module:function`` by the arm's
``start``. Where it does without the silos' own models, it says so by ``needs_models = False``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedkd.config import Consolidation
from fedkd.data.columns import Encoder
from fedkd.data.images import Images
from fedkd.distillation.consolidate import (
    Consolidated,
    consolidate,
    join_notes,
    train_control,
)
from fedkd.distillation.density.basis import Basis, fit_basis, make_feature_basis
from fedkd.distillation.selection import choose
from fedkd.distillation.targets import DistillationSetup
from fedkd.distillation.teachers import Teachers
from fedkd.distillation.weighting.plausible import exclude_implausible, uses_models
from fedkd.errors import FedKDError
from fedkd.models.given import find_given, read_given
from fedkd.models.state import State, copy_state
from fedkd.registry import LEAST_TRANSFER_IMAGES
from strategies.collect import collect_densities, collect_teachers
from strategies.context import RunContext
from strategies.distil_at_silo import distil_at_silo
from strategies.run_state import Start
from strategies.session import Session

Distil = Callable[[Session, Teachers, Basis | None], Consolidated]


def random(session: Session, initial: State) -> Start:  # noqa: ARG001 -- one signature for all
    """Start from the random initial model."""
    return Start(dict(initial), exchanges=0)


def checkpoint(session: Session, initial: State) -> Start:  # noqa: ARG001 -- as above
    """Start from a model that was trained before; the exchanges of a run that made it are counted.

    Raises:
        UserError: it cannot be read, or does not fit the study.
    """
    context = session.context
    if context.arm.checkpoint is None:
        raise ValueError(f"arm {context.arm_name} names no checkpoint")
    what = f"arms.{context.arm_name}.checkpoint"
    given = find_given(context.arm.checkpoint, what=what)
    _, model = read_given(
        given,
        [context.arch],
        context.shape,
        context.classes,
        what=what,
        encoder=Encoder.from_json(context.encoder) if context.encoder else None,
    )
    notes = {
        "path": str(given.path),
        "hash": given.hash(),
        "exchanges": given.exchanges,
        "uncharged": given.uncharged,
    }
    return Start(model.state, given.exchanges, {"checkpoint": notes})


def average(session: Session, initial: State) -> Start:  # noqa: ARG001 -- as above
    """Start from the average of the silos' models, weighted by examples."""
    collected = collect_teachers(session)
    teachers, notes = keep_plausible(session.context, collected)
    return Start(teachers.average(session.context.arch), 1, notes, collected)


def best(session: Session, initial: State) -> Start:  # noqa: ARG001 -- as above
    """Start from the silos' model that is best on the server's validation data."""
    context, collected = session.context, collect_teachers(session)
    teachers, notes = keep_plausible(context, collected)
    index = teachers.choose_model("best", context.arch, context.validation, context.seed)
    return Start(copy_state(teachers.model(index)), 1, notes, collected)


def consolidated(session: Session, initial: State, distil: Distil | None = None) -> Start:  # noqa: ARG001 -- as above
    """Start from a student that learns from the silos' models: one or two exchanges.

    A second exchange is needed where densities are computed in features of the averaged model, or
    where the student learns on its own silo. The control on validation labels alone asks silos for
    nothing and costs no exchange. Alballa et al. 2402.14922.

    Args:
        session: with the silos.
        initial: unused; the student's start is a setting of the consolidation.
        distil: makes the student; by default :func:`distil_on_server`.
    """
    context, settings = session.context, settings_of(session.context)
    if not settings.asks_silos:
        control = _train(context, lambda: train_control(settings, _setup(session, None)))
        return Start(control.state, session.exchanges, control.notes, None, control.start)
    notes: dict[str, Any] = {}
    basis = None
    if settings.uses_densities and not settings.uses_features:
        basis = _check_basis(context, _fit_basis(context), notes)
    collected = collect_teachers(session, settings, basis)
    teachers, exclusion = keep_plausible(context, collected)
    if settings.uses_features:
        basis = _check_basis(context, _fit_feature_basis(context, teachers), notes)
        if basis is not None:
            teachers = collect_densities(session, teachers, settings, basis)
    if context.study.data.transfer.at_silo:
        student = _distil_at_silo(session, teachers)
    else:
        student = (distil or distil_on_server)(session, teachers, basis)
    return Start(
        student.state,
        session.exchanges,
        join_notes(notes, exclusion, student.notes),
        collected,
        student.start,
    )


def distil_on_server(session: Session, teachers: Teachers, basis: Basis | None) -> Consolidated:
    """Make one student of the teachers, on the server's transfer set."""
    context = session.context
    setup = _setup(session, basis)
    return _train(context, lambda: consolidate(teachers, settings_of(context), setup))


def _setup(session: Session, basis: Basis | None) -> DistillationSetup:
    context = session.context
    return DistillationSetup(
        transfer=_transfer(context),
        labelled=context.study.data.transfer.labelled,
        validation=context.validation,
        arch=context.arch,
        shape=context.shape,
        compute=context.compute,
        seed=context.seed,
        basis=basis,
        on_epoch=session.observer.on_distillation,
    )


def _train(context: RunContext, train: Callable[[], Consolidated]) -> Consolidated:
    """Return a trained student; an error names the arm."""
    try:
        return train()
    except FedKDError as error:
        raise type(error)(f"arms.{context.arm_name}: {error}") from error


def keep_plausible(context: RunContext, teachers: Teachers) -> tuple[Teachers, dict[str, Any]]:
    """Leave out teachers whose predictions are absurd, and return the others with notes.

    Raises:
        FedKDError: none is left.
    """
    if context.arm.consolidation and not uses_models(context.arm.consolidation):
        return teachers, {}
    try:
        kept, reasons = exclude_implausible(
            teachers, transfer=context.transfer, validation=context.validation
        )
    except FedKDError as error:
        raise type(error)(f"arms.{context.arm_name}: {error}") from error
    if not reasons:
        return kept, {}
    listed = "; ".join(f"{silo}: {reason}" for silo, reason in reasons.items())
    return kept, {"implausible": reasons, "warning": f"teachers left out: {listed}"}


def settings_of(context: RunContext) -> Consolidation:
    """Return the settings of an arm that consolidates."""
    settings = context.arm.consolidation
    if settings is None:
        raise ValueError(f"arm {context.arm_name} does not consolidate")
    return settings


def _distil_at_silo(session: Session, teachers: Teachers) -> Consolidated:
    """Choose by the server's validation data, and let the student's silo distil."""
    context = session.context
    choice = choose(
        teachers,
        settings_of(context),
        validation=context.validation,
        arch=context.arch,
        seed=context.seed,
    )
    if choice.silo is None:
        raise ValueError("a student that is no silo's model cannot learn on a silo")
    student = distil_at_silo(session, choice.silo, choice)
    notes = choice.notes | {"distillation_loss": round(student.loss, 6)}
    return Consolidated(student.state, choice.start, choice.teachers, notes, student.loss)


def _fit_basis(context: RunContext) -> Basis | None:
    """Fit the basis in which silos compute densities to the transfer set, if it is large enough."""
    images = _transfer(context).images
    return fit_basis(images, settings_of(context), context.shape, context.compute)


def _fit_feature_basis(context: RunContext, teachers: Teachers) -> Basis | None:
    """Fit the basis to the features that the average of the silos' models has there."""
    images = _transfer(context).images
    if len(images) < LEAST_TRANSFER_IMAGES:
        return None
    dims = settings_of(context).familiarity.effective_dims
    try:
        average = teachers.average(context.arch)
        model = context.model("basis")
        model.load_state_dict(average)
        return make_feature_basis(images, model, dims=dims, compute=context.compute)
    except FedKDError as error:
        raise type(error)(f"arms.{context.arm_name}: {error}") from error


def _check_basis(context: RunContext, basis: Basis | None, notes: dict[str, Any]) -> Basis | None:
    """Return the basis; without one, add to the notes what follows.

    Raises:
        FedKDError: densities alone should teach and there is no basis.
    """
    settings = settings_of(context)
    if basis is not None:
        return basis
    if settings.teachers == "densities":
        raise FedKDError(
            f"arms.{context.arm_name}: a transfer set of {len(_transfer(context))} examples is too "
            "small for densities to teach; 20 distinct ones are needed"
        )
    unjudged = ", so no teacher is excluded" if settings.trust != "equal" else ""
    notes["fallback"] = f"equal: the transfer set is too small for a basis{unjudged}"
    return None


def _transfer(context: RunContext) -> Images:
    if context.transfer is None:
        raise FedKDError("the server holds no transfer set to distil on")
    return context.transfer
