"""Plots of learning: what was gained and forgotten by class, and the surface of a tuning."""

from __future__ import annotations

from collections.abc import Sequence

from fedkd.report.figure import HEAT, Figure, Variant, heat_map, plain
from fedkd.report.results import Results, class_names, instruments, percent
from fedkd.report.tables import NONE, clip


def gain_and_forgetting(results: Results, arm: str | None) -> Figure | None:
    """Plot what was learnt and forgotten by class, in consolidation and in the rounds."""
    views: list[Variant] = []
    rows, start = [], 0
    for name in results.arms:
        for key, phase in (("student", "consolidation"), ("rounds", "rounds")):
            found = [
                entry["per_class"]
                for run in results.runs(name)
                if (entry := instruments(run).get(key)) and entry.get("per_class")
            ]
            if not found:
                continue
            gain, lost = (_means([each[k] for each in found]) for k in ("gain", "forgetting"))
            if name == arm and key == "student":
                start = len(views)
            classes = class_names(results, len(gain))
            views.append(_flip_view(f"{name}: {phase}", classes, gain, lost))
            rows += [
                [name, phase, label, _share(up), _share(down)]
                for label, up, down in zip(classes, gain, lost, strict=True)
            ]
    if not views:
        return None
    return Figure(
        name="flips",
        title="Learnt and forgotten, by class",
        alt=(
            "Bar chart by class: upwards the share of test images that became right, downwards "
            "the share that became wrong."
        ),
        caption=(
            "Share of a class's test images that became right (up) and wrong (down), mean over "
            "seeds: by consolidation, or by the rounds that followed the start."
        ),
        variants=views,
        table=clip(["arm", "phase", "class", "gain", "forgetting"], rows),
        height=380,
        choice="arm and phase",
        start=start,
    )


def tuning(results: Results) -> Figure | None:
    """Plot the validation score over temperature and weight, the best of each pair."""
    search = results.summary.get("tuning") or {}
    best: dict[tuple[float, float], float] = {}
    for trial in search.get("trials") or []:
        place = (trial.get("temperature"), trial.get("weight"))
        value = trial.get("value")
        if value is not None and None not in place:
            best[place] = max(value, best.get(place, value))
    if not best:
        return None
    metric = str(search.get("metric", "validation accuracy"))
    xs, ys = (sorted({place[index] for place in best}) for index in (0, 1))
    titles = ("temperature", "weight of the teachers")
    if len(best) >= 0.6 * len(xs) * len(ys):
        grid = [[best.get((x, y)) for x in xs] for y in ys]
        view = heat_map(
            "",
            grid,
            x=[f"{x:g}" for x in xs],
            y=[f"{y:g}" for y in ys],
            hover="temperature %{x}, weight %{y}: %{z:.1%}<extra></extra>",
            titles=titles,
            template="%{z:.1%}",
        )
    else:
        view = _cloud(best, titles)
    return Figure(
        name="tuning",
        title="Tuning: temperature and weight",
        alt=f"{metric} over temperature and weight; the table holds the numbers.",
        caption=f"{metric}, the best trial of each pair of temperature and weight.",
        variants=[view],
        table=clip(
            ["temperature", "weight", metric],
            [[f"{x:g}", f"{y:g}", percent(v)] for (x, y), v in sorted(best.items())],
        ),
        height=380,
    )


def _cloud(best: dict[tuple[float, float], float], titles: tuple[str, str]) -> Variant:
    points = sorted(best)
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "marker": {
            "size": 12,
            "color": [best[point] for point in points],
            "colorscale": HEAT,
            "showscale": True,
            "line": {"color": "$ink", "width": 1},
        },
        "text": [percent(best[point]) for point in points],
        "hovertemplate": "temperature %{x:.3~g}, weight %{y:.3~g}: %{text}<extra></extra>",
    }
    axes = {
        name: {"title": {"text": title}}
        for name, title in zip(("xaxis", "yaxis"), titles, strict=True)
    }
    return Variant("", [trace], axes)


def _flip_view(
    label: str, classes: list[str], gain: list[float | None], lost: list[float | None]
) -> Variant:
    data = [
        {
            "type": "bar",
            "name": name,
            "x": [plain(each) for each in classes],
            "y": values,
            "marker": {"color": colour, "pattern": {"shape": shape}},
            "hovertemplate": "class %{x}: %{y:.1%}<extra>" + name + "</extra>",
        }
        for name, values, colour, shape in (
            ("became right", gain, "$blue", ""),
            ("became wrong", [None if v is None else -v for v in lost], "$orange", "/"),
        )
    ]
    layout = {
        "barmode": "relative",
        "xaxis": {"title": {"text": "class"}, "type": "category"},
        "yaxis": {"tickformat": ".0%"},
        "showlegend": True,
    }
    return Variant(label, data, layout)


def _means(columns: Sequence[Sequence[float | None]]) -> list[float | None]:
    means: list[float | None] = []
    for values in zip(*columns, strict=True):
        known = [value for value in values if value is not None]
        means.append(round(sum(known) / len(known), 6) if known else None)
    return means


def _share(value: float | None) -> str:
    return NONE if value is None else percent(value)
