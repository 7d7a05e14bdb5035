"""The section that records how an arm's settings were tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def check_tuning_seeds(tuned: Mapping[str, Tuned | None], seeds: Sequence[int]) -> None:
    """Refuse an arm that was tuned on a seed of the study.

    An arm that was not tuned has None.
    """
    for name, section in tuned.items():
        if shared := set(section.seeds if section else ()) & set(seeds):
            raise ValueError(
                f"arms.{name}.tuned.seeds: the arm was tuned on seed {min(shared)}, so it cannot "
                "be judged on it; take other seeds, or tune it anew"
            )
