"""The section that records how an arm's settings were tuned."""

from __future__ import annotations

from pydantic import Field

from fedkd.config.sections import Count, Section, Seed


class Tuned(Section):
    """How the settings of an arm were chosen on validation data; written by ``fedkd tune``."""

    trials: Count = Field(description="number of trials, those that were stopped early included")
    seeds: list[Seed] = Field(
        min_length=1, max_length=1000, description="seeds of the trials; never seeds of the study"
    )
    at_edge: list[str] = Field(
        default=[],
        max_length=100,
        description="settings whose best value lies at the edge of the range that was searched",
    )
