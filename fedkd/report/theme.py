"""How an arm looks, the same in every plot: colour, dash and marker, told apart by any eye."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Okabe and Ito, Color Universal Design (2008); without yellow, which white paper swallows. "ink"
# stands for black on light and white on dark paper.
OKABE_ITO = ("ink", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MARKERS = ("circle", "square", "diamond", "triangle-up", "star", "cross", "pentagon", "hexagon")


@dataclass(frozen=True)
class Look:
    """Colour (hexadecimal, or ``ink``), dash and marker, as Plotly names them."""

    colour: str
    dash: str
    marker: str

    @property
    def plotly_colour(self) -> str:
        """The colour, or the name of the page's own that depends on the scheme."""
        return "$ink" if self.colour == "ink" else self.colour


def looks(arms: Sequence[str], baselines: Sequence[str]) -> dict[str, Look]:
    """Give every arm its look; baselines come first, so that the first one is in ink."""
    order = [arm for arm in baselines if arm in arms]
    order += [arm for arm in arms if arm not in order]
    return {
        arm: Look(
            OKABE_ITO[index % len(OKABE_ITO)],
            DASHES[index % len(DASHES)],
            MARKERS[index % len(MARKERS)],
        )
        for index, arm in enumerate(order)
    }
