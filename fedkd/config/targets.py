"""Targets: values of the study's metric, or fractions of the best value of a baseline."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from fedkd.config.sections import Fraction, Section
from fedkd.registry import METRICS_FROM_SUMS, NO_SOURCE


class RelativeTargets(Section):
    """Targets as fractions of the best value of the first baseline."""

    of_baseline_best: list[Fraction] = Field(min_length=1, max_length=20)


Targets = Annotated[
    Annotated[list[Fraction], Field(min_length=1, max_length=20), Tag("absolute")]
    | Annotated[RelativeTargets, Tag("relative")],
    Discriminator(lambda v: "relative" if isinstance(v, dict | RelativeTargets) else "absolute"),
]


def check_metric(metric: str, source: str) -> None:
    """Refuse a metric that does not follow from what silos share, if the server has no examples.

    Raises:
        ValueError: it needs the scores of all examples together.
    """
    if source == NO_SOURCE and metric != "accuracy" and metric not in METRICS_FROM_SUMS:
        known = ", ".join(("accuracy", *sorted(METRICS_FROM_SUMS)))
        raise ValueError(
            f"metric: {metric} ranks the scores of all test examples together, which sums that "
            f"silos share do not give; use {known}, or give the server test examples by data.source"
        )
