"""Targets: test accuracies, or fractions of the best accuracy of a baseline."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from fedkd.config.sections import Fraction, Section


class RelativeTargets(Section):
    """Targets as fractions of the best accuracy of the first baseline."""

    of_baseline_best: list[Fraction] = Field(min_length=1, max_length=20)


def _kind_of_targets(value: Any) -> str:
    return "relative" if isinstance(value, dict | RelativeTargets) else "absolute"


Targets = Annotated[
    Annotated[list[Fraction], Field(min_length=1, max_length=20), Tag("absolute")]
    | Annotated[RelativeTargets, Tag("relative")],
    Discriminator(_kind_of_targets),
]
