"""Plots of gain and forgetting by class, and of the scores of a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedkd.report.figure import HEAT, Figure, Variant, heat_map, plain
from fedkd.report.tables import clip, share
from fedkd.results.folder import Results, class_names, instruments, percent

FULL_GRID = 0.6
"""Share of a grid's cells that must have a score to draw it as a heat map."""


def gain_and_forgetting(results: Results, arm: str | None) -> Figure | None:
    """Plot gain and forgetting by class, of consolidation and of the rounds."""
    views: list[Variant] = []
    rows, start = [], 0
    for name in results.arms:
        for key, phase in (("student", "consolidation"), ("rounds", "rounds")):
            per_class = [
                entry["per_class"]
                for run in results.runs(name)
                if (entry := instruments(run).get(key)) and entry.get("per_class")
            ]
            if not per_class:
                continue
            gain, lost = (_means([each[k] for each in per_class]) for k in ("gain", "forgetting"))
            if name == arm and key == "student":
                start = len(views)
            classes = class_names(results, len(gain))
            views.append(_flip_view(f"{name}: {phase}", classes, gain, lost))
            rows += [
                [name, phase, label, share(gained), share(forgotten)]
                for label, gained, forgotten in zip(classes, gain, lost, strict=True)
            ]
    if not views:
        return None
    return Figure(
        name="flips",
        title="Gain and forgetting, by class",
        alt=(
            "Bar chart by class: upwards the share of test examples that became right, downwards "
            "the share that became wrong."
        ),
        caption=(
            "Share of a class's test examples that became right (up) and wrong (down), mean over "
            "seeds: by consolidation, or by the rounds after the start."
        ),
        variants=views,
        table=clip(["arm", "phase", "class", "gain", "forgetting"], rows),
        height=380,
        choice="arm and phase",
        start=start,
    )


def tuning(results: Results) -> Figure | None:
    """Plot the scores of fedkd tune over temperature and weight, one view per tuned arm.

    The plot shows the best score of each pair. If one of the two has no effect (with some methods,
    or on an unlabelled transfer set), the learning rate replaces it, as in the search.
    """
    views: list[Variant] = []
    rows, score_sources = [], []
    for search in results.summary.get("tuning") or []:
        axes = _axes(search)
        best = _best_scores(search, axes)
        if not best:
            continue
        views.append(_surface(search["arm"], best, axes))
        score_sources.append(f"{search['arm']} by {search['judged_by']}")
        rows += [
            [
                search["arm"],
                *(f"{name} {value:g}" for name, value in zip(axes, pair, strict=True)),
                percent(score),
            ]
            for pair, score in sorted(best.items())
        ]
    if not views:
        return None
    return Figure(
        name="tuning",
        title="Tuning",
        alt=(
            "Heat map of the scores of settings in a search, over temperature and weight or "
            "learning rate. The table lists the values."
        ),
        caption=(
            f"From fedkd tune, a separate search. Scores: {'; '.join(score_sources)}. Each cell "
            "is the best score of its pair of settings; the maximum over many trials is optimistic."
        ),
        variants=views,
        table=clip(["arm", "setting", "setting", "score"], rows),
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


def _best_scores(search: dict[str, Any], axes: tuple[str, str]) -> dict[tuple[float, float], float]:
    best: dict[tuple[float, float], float] = {}
    for trial in search["trials"]:
        x, y = (trial["settings"].get(key) for key in axes)
        score = trial["value"]
        if trial["state"] == "finished" and None not in (x, y, score):
            best[x, y] = max(score, best.get((x, y), score))
    return best


def _surface(label: str, best: dict[tuple[float, float], float], axes: tuple[str, str]) -> Variant:
    """Return a heat map if most cells of the grid have a score, else single points."""
    xs, ys = (sorted({pair[index] for pair in best}) for index in (0, 1))
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
