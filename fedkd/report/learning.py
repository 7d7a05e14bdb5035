"""Plots of learning: what was gained and forgotten by class, and the surface of a tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedkd.report.figure import HEAT, Figure, Variant, heat_map, plain
from fedkd.report.tables import NONE, clip
from fedkd.results.folder import Results, class_names, instruments, percent

FULL_GRID = 0.6
"""Share of a grid's pairs from which on a map tells more than points."""


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
    """Plot the marks of fedkd tune over temperature and weight, a view for every tuned arm.

    The best mark of each pair counts. Where a method or a transfer set without labels leaves one of
    the two without effect, the learning rate takes its place, as in the search itself.
    """
    views: list[Variant] = []
    rows, judges = [], []
    for search in results.summary.get("tuning") or []:
        axes = _axes(search)
        best = _best_marks(search, axes)
        if not best:
            continue
        views.append(_surface(search["arm"], best, axes))
        judges.append(f"{search['arm']} by {search['judged_by']}")
        rows += [
            [search["arm"], *(f"{name} {value:g}" for name, value in zip(axes, at, strict=True)), m]
            for at, mark in sorted(best.items())
            for m in [percent(mark)]
        ]
    if not views:
        return None
    return Figure(
        name="tuning",
        title="Tuning",
        alt=(
            "Map of the marks that a search gave to settings, over temperature and weight or "
            "learning rate. The table holds the numbers."
        ),
        caption=(
            f"From fedkd tune, a search of its own. Judged: {'; '.join(judges)}. The best mark of "
            "each pair of settings; the highest of many flatters itself."
        ),
        variants=views,
        table=clip(["arm", "setting", "setting", "mark"], rows),
        height=380,
        choice="arm",
    )


def _axes(search: dict[str, Any]) -> tuple[str, str]:
    varied = {key for trial in search["trials"] for key in trial["settings"]}
    first, second, *_ = [k for k in ("temperature", "weight", "lr", "epochs") if k in varied] + [
        "temperature",
        "weight",
    ]
    return first, second


def _best_marks(search: dict[str, Any], axes: tuple[str, str]) -> dict[tuple[float, float], float]:
    best: dict[tuple[float, float], float] = {}
    for trial in search["trials"]:
        x, y = (trial["settings"].get(key) for key in axes)
        mark = trial["value"]
        if trial["state"] == "finished" and None not in (x, y, mark):
            best[x, y] = max(mark, best.get((x, y), mark))
    return best


def _surface(label: str, best: dict[tuple[float, float], float], axes: tuple[str, str]) -> Variant:
    """A map where most pairs of a grid were tried, single points otherwise."""
    xs, ys = (sorted({place[index] for place in best}) for index in (0, 1))
    if len(best) < FULL_GRID * len(xs) * len(ys):
        return _cloud(label, best, axes)
    return heat_map(
        label,
        [[best.get((x, y)) for x in xs] for y in ys],
        x=[f"{x:g}" for x in xs],
        y=[f"{y:g}" for y in ys],
        hover=f"{axes[0]} %{{x}}, {axes[1]} %{{y}}: %{{z:.1%}}<extra></extra>",
        titles=axes,
        template="%{z:.1%}",
    )


def _cloud(label: str, best: dict[tuple[float, float], float], titles: tuple[str, str]) -> Variant:
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
        "hovertemplate": (
            f"{titles[0]} %{{x:.3~g}}, {titles[1]} %{{y:.3~g}}: %{{text}}<extra></extra>"
        ),
    }
    axes = {
        name: {"title": {"text": title}}
        for name, title in zip(("xaxis", "yaxis"), titles, strict=True)
    }
    return Variant(label, [trace], axes)


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
