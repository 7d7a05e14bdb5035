"""A study with more rounds, as ``fedkd compare --resume RUN --rounds N`` continues it."""

from __future__ import annotations

from fedkd.config.arm import Arm
from fedkd.config.study import Study
from fedkd.errors import UserError


def lengthen(study: Study, rounds: int) -> Study:
    """Return the study with ``rounds.max`` of all arms set to ``rounds``.

    Arms that have so many rounds already stay as they are, so that the same command continues a
    study that was interrupted after it was lengthened.

    Raises:
        UserError: an arm has more rounds, or its learning rates depend on their number.
    """
    for name in study.arms:
        settings = study.rounds_of(name)
        if rounds < settings.max:
            raise UserError(
                f"--rounds: arms.{name} has {settings.max} rounds, more than {rounds}; a study "
                "can only be lengthened"
            )
        if rounds > settings.max and settings.length_decides_rates:
            key = f"schedule: {settings.schedule}"
            if settings.schedule == "constant":
                key = f"warmup: {settings.warmup:g}"
            raise UserError(
                f"--rounds: arms.{name} has {key}, so that its learning rates depend on rounds.max "
                "from round 1 on; run the study anew with another rounds.max"
            )
    longer = {name: _longer_arm(arm, rounds) for name, arm in study.arms.items()}
    changed = {"rounds": study.rounds.model_copy(update={"max": rounds}), "arms": longer}
    return study.model_copy(update=changed)


def _longer_arm(arm: Arm, rounds: int) -> Arm:
    """Return an arm whose own ``rounds.max``, if it has one, is ``rounds``."""
    if arm.rounds.max is None:
        return arm
    return arm.model_copy(update={"rounds": arm.rounds.model_copy(update={"max": rounds})})
