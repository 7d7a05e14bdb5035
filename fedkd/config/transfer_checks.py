"""What a study needs of the server's transfer set, and of its labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedkd.registry import METHODS, NO_SOURCE
from fedkd.user_code import LOSS_SETTINGS

if TYPE_CHECKING:
    from fedkd.config.consolidation import Consolidation
    from fedkd.config.study import Study


def check_recalibration(study: Study) -> None:
    """Refuse BatchNorm statistics from a transfer set that the server does not have."""
    transfer = study.data.transfer
    if study.model.batch_norm != "recalibrate":
        return
    reason = ""
    if transfer.at_silo:
        reason = f"data.transfer.source is {transfer.source}"
    elif study.data.source == NO_SOURCE and transfer.source is None:
        reason = f"data.source is {NO_SOURCE} and data.transfer.source is missing"
    if reason:
        raise ValueError(
            "model.batch_norm: recalibrate computes statistics on the server's transfer set, but "
            f"{reason}; name a source under data.transfer.source, or use average"
        )


def check_labels(study: Study, settings: Consolidation, path: str) -> None:
    """Refuse a method that needs labels, and settings about labels, where there are none.

    A method of the user's own is imported.
    """
    if study.has_labels(settings):
        return
    if "labels" in METHODS.spec(settings.method).needs:
        raise ValueError(
            f"{path}.method: {settings.method} learns from labels, but data.transfer.labelled is "
            "false"
        )
    for key in LOSS_SETTINGS:
        if getattr(settings, key) != type(settings).model_fields[key].default:
            raise ValueError(
                f"{path}.{key}: is about labels, but data.transfer.labelled is false; leave it out"
            )


def check_at_silo(settings: Consolidation) -> None:
    """Refuse what cannot be done on a silo, whose model is the student."""
    reason = "but data.transfer.source is student-silo"
    if settings.student not in ("best", "worst", "random"):
        raise ValueError(
            f"student: {settings.student} is not the model of a silo, {reason}; use best, worst or "
            "random"
        )
    if settings.uses_densities:
        raise ValueError(f"weighting: familiarity needs transfer examples at all silos, {reason}")
    if settings.mode == "logits":
        raise ValueError(f"mode: logits leaves no model to send to the silo, {reason}")
    if settings.select.by == "complementary":
        raise ValueError(
            f"select.by: complementary needs the transfer examples on the server, {reason}"
        )
    if settings.subset:
        raise ValueError(f"subset: needs the transfer examples on the server, {reason}")
