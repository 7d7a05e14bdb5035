"""Plots of the metrics against cost, and of the savings of each arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedkd.registry import METRICS, MetricName
from fedkd.report.curves import MAX_POINTS, MAX_POINTS_OF_OTHERS, Curve, band, curves_of, thin
from fedkd.report.figure import Figure, Variant, plain
from fedkd.report.savings import Row, is_defined, saved
from fedkd.report.tables import Table, curve_table, saving_rows
from fedkd.report.theme import ArmStyle, arm_styles
from fedkd.results.folder import Results, percent

MIN_POINTS_OF_RUN = 8
AXIS_TITLES = {"exchanges": "exchanges", "megabytes": "megabytes, both ways"}


def accuracy(results: Results, axis: str) -> Figure:
    """Plot a metric against a cost, one view for each metric: seeds, mean and range, targets."""
    chosen, unit = results.metric, "exchange" if axis == "exchanges" else "megabyte"
    shown = [metric for metric in METRICS if metric in results.metrics or metric == chosen]
    styles = arm_styles(results.arms, results.baselines)
    curves = {metric: curves_of(results, metric) for metric in shown}
    visible = {arm: look for arm, look in styles.items() if results.runs(arm)}
    name = METRICS[chosen]
    return Figure(
        name=f"accuracy-{axis}",
        title=f"{name[0].upper()}{name[1:]} by {unit}" if len(shown) == 1 else f"Curves by {unit}",
        alt=(
            f"Line chart of test {name} by {unit} for {_count(len(visible), 'arm')} and "
            f"{_count(len(results.seeds), 'seed')}; horizontal lines mark the targets "
            f"{', '.join(percent(t) for t in results.targets)}. The table lists the values."
        ),
        caption=(
            "Thick lines: mean over seeds; shading: minimum to maximum. Both end where the first "
            "seed stops. Thin lines: single seeds. Large markers: first round that reaches a "
            f"target{'' if len(shown) == 1 else f' ({name})'}. Crosses: runs that ended without "
            "reaching every target. A round is one exchange; so is a start from the silos' models."
        ),
        variants=[
            Variant(METRICS[metric], *_curve_view(results, curves[metric], axis, metric))
            for metric in shown
        ],
        table=curve_table(curves[chosen], axis),
        height=460,
        arms=visible,
        choice="metric",
        start=shown.index(chosen),
        more_tables={
            METRICS[metric]: curve_table(curves[metric], axis)
            for metric in shown
            if metric != chosen
        },
    )


def _curve_view(
    results: Results, curves: Mapping[str, Sequence[Curve]], axis: str, metric: MetricName
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return traces and layout of the curves of one metric; lines for targets if they are in it."""
    styles = arm_styles(results.arms, results.baselines)
    runs = sum(len(each) for each in curves.values())
    most = MAX_POINTS if metric == results.metric else MAX_POINTS_OF_OTHERS
    max_points = max(MIN_POINTS_OF_RUN, most // max(1, runs))
    data = []
    for arm, each in curves.items():
        if each:
            data += _arm_traces(arm, each, axis, styles[arm], max_points)
    layout = {
        "xaxis": {"title": {"text": AXIS_TITLES[axis]}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": f"test {METRICS[metric]}"}, "tickformat": ".0%"},
        "hovermode": "closest",
        **(_target_lines(results) if metric == results.metric else {}),
    }
    return data, layout


def savings(results: Results, headline: Row | None) -> Figure | None:
    """Plot the savings of each arm and their range over seeds, by target and baseline."""
    styles = arm_styles(results.arms, results.baselines)
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
            "range over seeds. The table lists the values."
        ),
        caption=(
            "Bars: range over seeds. A triangle pointing right is a lower bound: the baseline "
            "missed the target on some seed. One pointing left is an upper bound: the arm missed "
            "it. Ticks: the saving if the target is reached at the start. Arms left of zero need "
            "more exchanges than the baseline. Arms without a marker cannot be compared."
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
    arm: str, curves: Sequence[Curve], axis: str, look: ArmStyle, max_points: int
) -> list[dict[str, Any]]:
    colour = look.plotly_colour
    traces: list[dict[str, Any]] = []

    def add(layer: str, x: list[Any], y: list[Any], **style: Any) -> None:
        trace = {"type": "scatter", "x": x, "y": y, "name": plain(arm), "showlegend": False}
        traces.append({**trace, "meta": {"arm": arm, "layer": layer}, **style})

    mean_band = band(curves, axis)
    if mean_band is not None and len(curves) > 1 and len(mean_band.costs) > 1:
        outline = [*mean_band.costs, *reversed(mean_band.costs)]
        bounds = [*mean_band.low, *reversed(mean_band.high)]
        style = {"mode": "lines", "fill": "toself", "fillcolor": colour, "opacity": 0.16}
        add("band", outline, bounds, line={"width": 0}, hoverinfo="skip", **style)
    x, y, seeds = _seed_lines(curves, axis, max_points)
    single = len(curves) == 1
    own_line = {"color": colour, "width": 2.6 if single else 1, "dash": look.dash}
    position = "<br>%{x:.4~g} " + axis + "<br>%{y:.1%}<extra></extra>"
    hover = f"{plain(arm)}, seed %{{customdata}}{position}"
    add(
        "seeds",
        x,
        y,
        customdata=seeds,
        mode="lines",
        line=own_line,
        hovertemplate=hover,
        opacity=1 if single else 0.55,
    )
    if mean_band is not None and len(curves) > 1:
        thick = {"color": colour, "width": 2.6, "dash": look.dash}
        template = f"{plain(arm)}, mean{position}"
        # The mean may have a single point, the start; a line would be invisible.
        mode = "lines" if len(mean_band.costs) > 1 else "markers"
        marker = {"color": colour, "symbol": look.marker, "size": 9}
        style = {"mode": mode, "line": thick, "marker": marker, "hovertemplate": template}
        add("mean", mean_band.costs, mean_band.mean, **style)
    for layer, symbol, point_indices in (
        ("reached", look.marker, lambda curve: curve.reached()),
        ("unreached", "x", lambda curve: [-1] if curve.censored else []),
    ):
        points = [(curve, index) for curve in curves for index in point_indices(curve)]
        if points:
            status = "reached" if layer == "reached" else "ended without every target"
            add(
                layer,
                [round(curve.costs(axis)[index], 4) for curve, index in points],
                [curve.values[index] for curve, index in points],
                text=[f"{plain(arm)}, seed {curve.run['seed']}: {status}" for curve, _ in points],
                mode="markers",
                marker={
                    "color": colour,
                    "symbol": symbol,
                    "size": 10,
                    "line": {"color": "$paper", "width": 1},
                },
                hovertemplate="%{text}" + position,
            )
    return traces


def _seed_lines(
    curves: Sequence[Curve], axis: str, max_points: int
) -> tuple[list[Any], list[Any], list[Any]]:
    """Return all seeds of an arm as one line with gaps; few traces keep the plot fast."""
    x: list[Any] = []
    y: list[Any] = []
    seeds: list[Any] = []
    for curve in curves:
        chosen = thin(curve.values, max_points, curve.reached())
        x += [*(round(curve.costs(axis)[index], 4) for index in chosen), None]
        y += [*(round(curve.values[index], 5) for index in chosen), None]
        seeds += [curve.run["seed"]] * (len(chosen) + 1)
    return x, y, seeds


def _target_lines(results: Results) -> dict[str, Any]:
    """Return a line for each target, or a band if targets differ between seeds."""
    shapes, notes = [], []
    for index, target in enumerate(results.targets):
        # A run that was cut short may have none, where targets depend on its end.
        runs = [run for run in results.summary["runs"] if run["targets"]]
        seed_targets = [run["targets"][index]["target"] for run in runs]
        levels = sorted(set(seed_targets)) or ([] if results.relative else [target])
        if not levels:
            continue
        low, high = levels[0], levels[-1]
        shape = {"type": "rect" if high > low else "line", "xref": "paper", "x0": 0, "x1": 1}
        line = {"color": "$muted", "width": 0 if high > low else 1.2, "dash": "dot"}
        fill = {"fillcolor": "$muted", "opacity": 0.2} if high > low else {}
        shapes.append({**shape, "y0": low, "y1": high, "line": line, "layer": "below", **fill})
        label = f"target {percent(target)}" + (" of best" if results.relative else "")
        position = {"xref": "paper", "x": 1, "xanchor": "right", "y": high, "yanchor": "bottom"}
        style = {"font": {"size": 11, "color": "$ink"}, "bgcolor": "$paper", "opacity": 0.85}
        notes.append({**position, "text": label, "showarrow": False, **style})
    return {"shapes": shapes, "annotations": notes}


def _saving_view(
    rows: Sequence[Row], styles: dict[str, ArmStyle]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    data: list[dict[str, Any]] = []
    positions = list(range(len(rows)))[::-1]
    for position, row in zip(positions, rows, strict=True):
        look = styles[row["arm"]]
        value = row["exchanges_saved_pct"]
        if row["ceiling_pct"] is not None:
            marker = {"symbol": "line-ns-open", "size": 18, "color": "$muted", "line": {"width": 2}}
            hover = "ceiling %{x:.1f} %<extra></extra>"
            data.append(_dot(row["ceiling_pct"], position, marker, hovertemplate=hover))
        if not is_defined(row):
            continue
        symbol = {"at_least": "triangle-right", "at_most": "triangle-left"}.get(
            row["bound"], look.marker
        )
        marker = {"symbol": symbol, "size": 13, "color": look.plotly_colour}
        error_bars: dict[str, Any] = {}
        if row["range"]:
            above, below = max(0, row["range"][1] - value), max(0, value - row["range"][0])
            error_bars["error_x"] = {
                "type": "data",
                "symmetric": False,
                "array": [above],
                "arrayminus": [below],
                "color": look.plotly_colour,
                "thickness": 2,
                "width": 5,
            }
        text = f"{plain(row['arm'])}: {saved(row)}"
        data.append(
            _dot(
                value,
                position,
                marker,
                text=[text],
                hovertemplate="%{text}<extra></extra>",
                **error_bars,
            )
        )
    zero = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": 0, "x1": 0}
    layout = {
        "xaxis": {"title": {"text": "exchanges saved"}, "ticksuffix": " %", "zeroline": False},
        "yaxis": {
            "tickvals": positions,
            "ticktext": [plain(row["arm"]) for row in rows],
            "range": [-0.6, len(rows) - 0.4],
            "automargin": True,
            "zeroline": False,
        },
        "shapes": [{**zero, "layer": "below", "line": {"color": "$ink", "width": 1.2}}],
    }
    return data, layout


def _dot(x: float, y: float, marker: dict[str, Any], **style: Any) -> dict[str, Any]:
    style = {"showlegend": False, "cliponaxis": False, **style}
    return {"type": "scatter", "mode": "markers", "x": [x], "y": [y], "marker": marker, **style}


def _range(row: Row) -> str:
    return " to ".join(percent(value / 100) for value in row["range"] or ()) or "\u2013"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
