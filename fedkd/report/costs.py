"""Plots of what accuracy costs, and of what each arm saves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedkd.report.curves import MAX_POINTS, Curve, band, thin
from fedkd.report.figure import Figure, Variant, plain
from fedkd.report.tables import Table, curve_table, saving_rows
from fedkd.report.theme import Look, looks
from fedkd.report.verdict import Row, is_known, saved
from fedkd.results.folder import Results, percent

MIN_POINTS_OF_RUN = 8
AXIS_TITLES = {"exchanges": "exchanges", "megabytes": "megabytes, both ways"}


def accuracy(results: Results, axis: str) -> Figure:
    """Plot every run's accuracy along a cost: single seeds, bands, targets, unreached runs.

    Args:
        results: the study's.
        axis: ``exchanges`` or ``megabytes``.
    """
    styles = looks(results.arms, results.baselines)
    curves = {arm: [Curve.of(run) for run in results.runs(arm)] for arm in results.arms}
    runs = sum(len(each) for each in curves.values())
    limit = max(MIN_POINTS_OF_RUN, MAX_POINTS // max(1, runs))
    data = []
    for arm, each in curves.items():
        if each:
            data += _arm_traces(arm, each, axis, styles[arm], limit)
    layout = {
        "xaxis": {"title": {"text": AXIS_TITLES[axis]}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "test accuracy"}, "tickformat": ".0%"},
        "hovermode": "closest",
        **_target_lines(results),
    }
    shown = {arm: look for arm, look in styles.items() if curves[arm]}
    unit = "exchange" if axis == "exchanges" else "megabyte"
    return Figure(
        name=f"accuracy-{axis}",
        title=f"Accuracy by {unit}",
        alt=(
            f"Line chart of test accuracy by {unit} for {_count(len(shown), 'arm')} and "
            f"{_count(len(results.seeds), 'seed')}; horizontal lines mark the targets "
            f"{', '.join(percent(t) for t in results.targets)}. The table holds the numbers."
        ),
        caption=(
            "Thick lines: mean over seeds, shaded from the least to the greatest, as far as every "
            "seed goes on. Thin lines: single seeds. Large markers: a target reached for the "
            "first time. Crosses: a run that ended without reaching every target. A round is one "
            "exchange, and so is a start from the silos' models."
        ),
        variants=[Variant("", data, layout)],
        table=curve_table(curves, axis),
        height=460,
        arms=shown,
    )


def savings(results: Results, headline: Row | None) -> Figure | None:
    """Plot what each arm saves with its range over seeds, a view for every target and baseline."""
    styles = looks(results.arms, results.baselines)
    variants: list[Variant] = []
    start = 0
    for target in sorted(results.targets, reverse=True):
        for baseline in results.baselines:
            rows = saving_rows(results, target, baseline)
            if not rows:
                continue
            if headline and (headline["target"], headline["baseline"]) == (target, baseline):
                start = len(variants)
            label = f"to {percent(target)}, against {baseline}"
            variants.append(Variant(label, *_saving_view(rows, styles)))
    if not variants:
        return None
    return Figure(
        name="savings",
        title="Exchanges saved",
        alt=(
            "Dot plot of the share of exchanges that each arm saves against a baseline, with its "
            "range over seeds. The table holds the numbers."
        ),
        caption=(
            "Bars: range over seeds. A triangle to the right is a lower bound (the baseline missed "
            "the target on some seed), one to the left an upper bound (the arm did). Ticks: what "
            "reaching the target at the start would save. Arms left of zero cost more than they "
            "save; an arm without a marker cannot be compared."
        ),
        variants=variants,
        table=Table(
            ["target", "baseline", "arm", "saved", "range"],
            [
                [percent(row["target"]), row["baseline"], row["arm"], saved(row), _range(row)]
                for row in results.summary["comparison"]
            ],
        ),
        height=90 + 44 * max(len(view.layout["yaxis"]["tickvals"]) for view in variants),
        choice="target and baseline",
        start=start,
    )


def _arm_traces(
    arm: str, curves: Sequence[Curve], axis: str, look: Look, limit: int
) -> list[dict[str, Any]]:
    colour = look.plotly_colour
    traces: list[dict[str, Any]] = []

    def add(layer: str, x: list[Any], y: list[Any], **style: Any) -> None:
        trace = {"type": "scatter", "x": x, "y": y, "name": plain(arm), "showlegend": False}
        traces.append({**trace, "meta": {"arm": arm, "layer": layer}, **style})

    middle = band(curves, axis)
    if middle is not None and len(curves) > 1 and len(middle.costs) > 1:
        outline = [*middle.costs, *reversed(middle.costs)]
        edge = [*middle.low, *reversed(middle.high)]
        style = {"mode": "lines", "fill": "toself", "fillcolor": colour, "opacity": 0.16}
        add("band", outline, edge, line={"width": 0}, hoverinfo="skip", **style)
    x, y, seeds = _seed_lines(curves, axis, limit)
    alone = len(curves) == 1
    own_line = {"color": colour, "width": 2.6 if alone else 1, "dash": look.dash}
    place = "<br>%{x:.4~g} " + axis + "<br>%{y:.1%}<extra></extra>"
    hover = f"{plain(arm)}, seed %{{customdata}}{place}"
    add(
        "seeds",
        x,
        y,
        customdata=seeds,
        mode="lines",
        line=own_line,
        hovertemplate=hover,
        opacity=1 if alone else 0.55,
    )
    if middle is not None and len(curves) > 1:
        thick = {"color": colour, "width": 2.6, "dash": look.dash}
        template = f"{plain(arm)}, mean{place}"
        # A start that all seeds share may be the only point of the mean: a line would not show.
        mode = "lines" if len(middle.costs) > 1 else "markers"
        marker = {"color": colour, "symbol": look.marker, "size": 9}
        style = {"mode": mode, "line": thick, "marker": marker, "hovertemplate": template}
        add("mean", middle.costs, middle.mean, **style)
    for layer, symbol, pick in (
        ("reached", look.marker, lambda curve: curve.reached()),
        ("unreached", "x", lambda curve: [-1] if curve.censored else []),
    ):
        spots = [(curve, index) for curve in curves for index in pick(curve)]
        if spots:
            word = "reached" if layer == "reached" else "ended without every target"
            add(
                layer,
                [round(curve.costs(axis)[index], 4) for curve, index in spots],
                [curve.accuracy[index] for curve, index in spots],
                text=[f"{plain(arm)}, seed {curve.run['seed']}: {word}" for curve, _ in spots],
                mode="markers",
                marker={
                    "color": colour,
                    "symbol": symbol,
                    "size": 10,
                    "line": {"color": "$paper", "width": 1},
                },
                hovertemplate="%{text}" + place,
            )
    return traces


def _seed_lines(
    curves: Sequence[Curve], axis: str, limit: int
) -> tuple[list[Any], list[Any], list[Any]]:
    """All seeds of an arm as one line with gaps: a plot of few traces stays quick."""
    x: list[Any] = []
    y: list[Any] = []
    seeds: list[Any] = []
    for curve in curves:
        chosen = thin(curve.accuracy, limit, curve.reached())
        x += [*(round(curve.costs(axis)[index], 4) for index in chosen), None]
        y += [*(round(curve.accuracy[index], 5) for index in chosen), None]
        seeds += [curve.run["seed"]] * (len(chosen) + 1)
    return x, y, seeds


def _target_lines(results: Results) -> dict[str, Any]:
    """A line for each target; a band where the seeds' own targets differ."""
    shapes, notes = [], []
    for index, target in enumerate(results.targets):
        found = [run["targets"][index]["target"] for run in results.summary["runs"]]
        levels = sorted(set(found)) or ([] if results.relative else [target])
        if not levels:
            continue
        low, high = levels[0], levels[-1]
        whole = {"type": "rect" if high > low else "line", "xref": "paper", "x0": 0, "x1": 1}
        line = {"color": "$muted", "width": 0 if high > low else 1.2, "dash": "dot"}
        fill = {"fillcolor": "$muted", "opacity": 0.2} if high > low else {}
        shapes.append({**whole, "y0": low, "y1": high, "line": line, "layer": "below", **fill})
        label = f"target {percent(target)}" + (" of best" if results.relative else "")
        place = {"xref": "paper", "x": 1, "xanchor": "right", "y": high, "yanchor": "bottom"}
        style = {"font": {"size": 11, "color": "$ink"}, "bgcolor": "$paper", "opacity": 0.85}
        notes.append({**place, "text": label, "showarrow": False, **style})
    return {"shapes": shapes, "annotations": notes}


def _saving_view(
    rows: Sequence[Row], styles: dict[str, Look]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    data: list[dict[str, Any]] = []
    places = list(range(len(rows)))[::-1]
    for place, row in zip(places, rows, strict=True):
        look = styles[row["arm"]]
        value = row["exchanges_saved_pct"]
        if row["ceiling_pct"] is not None:
            mark = {"symbol": "line-ns-open", "size": 18, "color": "$muted", "line": {"width": 2}}
            template = "ceiling %{x:.1f} %<extra></extra>"
            data.append(_dot(row["ceiling_pct"], place, mark, hovertemplate=template))
        if not is_known(row):
            continue
        symbol = {"at_least": "triangle-right", "at_most": "triangle-left"}.get(
            row["bound"], look.marker
        )
        mark = {"symbol": symbol, "size": 13, "color": look.plotly_colour}
        more: dict[str, Any] = {}
        if row["range"]:
            ahead, behind = max(0, row["range"][1] - value), max(0, value - row["range"][0])
            more["error_x"] = {
                "type": "data",
                "symmetric": False,
                "array": [ahead],
                "arrayminus": [behind],
                "color": look.plotly_colour,
                "thickness": 2,
                "width": 5,
            }
        text = f"{plain(row['arm'])}: {saved(row)}"
        data.append(
            _dot(value, place, mark, text=[text], hovertemplate="%{text}<extra></extra>", **more)
        )
    zero = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": 0, "x1": 0}
    layout = {
        "xaxis": {
            "title": {"text": "exchanges saved"},
            "ticksuffix": " %",
            "zeroline": False,
        },
        "yaxis": {
            "tickvals": places,
            "ticktext": [plain(row["arm"]) for row in rows],
            "range": [-0.6, len(rows) - 0.4],
            "automargin": True,
            "zeroline": False,
        },
        "shapes": [{**zero, "layer": "below", "line": {"color": "$ink", "width": 1.2}}],
    }
    return data, layout


def _dot(x: float, y: float, marker: dict[str, Any], **style: Any) -> dict[str, Any]:
    dot = {"type": "scatter", "mode": "markers", "x": [x], "y": [y], "marker": marker}
    return {**dot, "showlegend": False, "cliponaxis": False, **style}


def _range(row: Row) -> str:
    if not row["range"]:
        return "\u2013"
    low, high = (percent(value / 100) for value in row["range"])
    return f"{low} to {high}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
