"""What is checked and measured of a start before round 1."""

from __future__ import annotations

import json

from fedkd.errors import UserError
from fedkd.models.state import State
from fedkd.training.evaluate import evaluate
from strategies.context import RunContext
from strategies.run_state import Start
from strategies.session import Session
from strategies.updates import find_misfit


def check_start(start: Start, session: Session, initial: State) -> None:
    """Refuse a start that gives no usable model, hides an exchange or has notes of other kinds.

    Raises:
        UserError: the arm's start, or an override of ``begin``, is at fault.
    """
    context = session.context
    name = f"arms.{context.arm_name}.start: {context.arm.start}"
    if not isinstance(start, Start):
        raise UserError(f"{name} returned {type(start).__name__}, not a Start")
    if problem := find_misfit(start.state, initial):
        raise UserError(f"{name} returned an unusable model: {problem}")
    if start.exchanges < session.exchanges:
        raise UserError(f"{name} reports {start.exchanges} exchanges, but made {session.exchanges}")
    try:
        json.dumps(dict(start.notes), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{name} returned notes that JSON cannot hold ({error}): use numbers, texts, lists "
            "and mappings"
        ) from error


def find_unread(context: RunContext) -> dict[str, str]:
    """Return a warning of options that neither the start nor the strategy has read."""
    if not (unread := context.unread_options):
        return {}
    names = ", ".join(unread)
    path = f"arms.{context.arm_name}.options"
    return {"warning": f"{path}: nothing had read {names} when round 1 began; check the names"}


def validate(start: Start, context: RunContext) -> dict[str, float]:
    """Return the accuracy of a student on validation data; its seconds do not count."""
    if start.student is None or not len(context.validation):
        return {}
    model = context.model("evaluation")
    model.load_state_dict(start.state)
    measured = evaluate(model, context.validation, compute=context.compute)
    return {"validation_accuracy": round(measured.accuracy, 6)}
