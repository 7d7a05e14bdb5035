"""Colour, dash and marker of an arm: the same in every plot, distinguishable without colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Okabe and Ito, Color Universal Design (2008), without yellow, which is invisible on white. "ink"
# is black on a light page and white on a dark one.
OKABE_ITO = ("ink", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MARKERS = ("circle", "square", "diamond", "triangle-up", "star", "cross", "pentagon", "hexagon")


@dataclass(frozen=True)
class ArmStyle:
    """Colour (hexadecimal, or ``ink``), dash and marker, as Plotly names them."""

    colour: str
    dash: str
    marker: str

    @property
    def plotly_colour(self) -> str:
        """The colour, or ``$ink``, which the page resolves for its colour scheme."""
        return "$ink" if self.colour == "ink" else self.colour


def arm_styles(arms: Sequence[str], baselines: Sequence[str]) -> dict[str, ArmStyle]:
    """Return every arm's style; baselines come first, so that the first one is in ink."""
    order = [arm for arm in baselines if arm in arms]
    order += [arm for arm in arms if arm not in order]
    return {
        arm: ArmStyle(
            OKABE_ITO[index % len(OKABE_ITO)],
            DASHES[index % len(DASHES)],
            MARKERS[index % len(MARKERS)],
        )
        for index, arm in enumerate(order)
    }
