"""What a consolidation may say where the student learns on its silo, on the silo's own examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedkd.config.consolidation import Consolidation


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
