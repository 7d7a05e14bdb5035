"""A plot as a plain Plotly dictionary, with title, description and table; the page draws it.

A colour such as ``$ink`` is a name that the page resolves for its colour scheme. Names from a
study or a silo reach Plotly through :func:`plain` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fedkd.report.tables import Table
from fedkd.report.theme import ArmStyle

MAX_LABELLED_CELLS = 200
HEAT = [[0, "$heat-low"], [1, "$heat-high"]]


@dataclass(frozen=True)
class Variant:
    """One view of a figure; ``label`` is its entry in the menu of views."""

    label: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A plot with title, description, caption and table.

    Attributes:
        name: short, unique on a page of one study.
        title: a heading.
        alt: text alternative to the plot.
        caption: how to read it.
        variants: at least one view.
        table: the plotted values.
        height: in pixels.
        arms: names and styles of the arms, if the reader may switch them on and off.
        choice: what distinguishes the views, such as ``seed``.
        start: index of the view shown first.
        more_tables: of the values of other views, by their titles.
    """

    name: str
    title: str
    alt: str
    caption: str
    variants: list[Variant]
    table: Table
    height: int = 420
    arms: dict[str, ArmStyle] = field(default_factory=dict)
    choice: str = ""
    start: int = 0
    more_tables: dict[str, Table] = field(default_factory=dict)


def plain(text: object) -> str:
    """Return text that Plotly shows verbatim, with its markup and templates escaped."""
    escaped = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("%{", "%&#123;")


def heat_map(
    label: str,
    values: Sequence[Sequence[Any]],
    *,
    x: list[str],
    y: list[str],
    hover: str,
    titles: tuple[str, str],
    template: str = "%{z}",
) -> Variant:
    """Return a view of values ``[rows][columns]`` as coloured cells.

    None leaves a cell empty. Rows are listed top down, unless their axis has a title and
    therefore is a scale. Plotly's ``template`` shows the values of few cells.
    """
    labelled = len(x) * len(y) <= MAX_LABELLED_CELLS
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": values,
        "x": x,
        "y": y,
        "colorscale": HEAT,
        "hovertemplate": hover,
        "xgap": 1,
        "ygap": 1,
        "showscale": not labelled,
    }
    if labelled:
        trace |= {"texttemplate": template, "textfont": {"size": 10}}
    layout = {
        "xaxis": {"title": {"text": titles[0]}, "type": "category", "showgrid": False},
        "yaxis": {
            "title": {"text": titles[1]},
            "type": "category",
            "showgrid": False,
            "automargin": True,
            # Silos are listed top down as in a table; a numeric scale grows upwards.
            **({} if titles[1] else {"autorange": "reversed"}),
        },
    }
    return Variant(label, [trace], layout)
