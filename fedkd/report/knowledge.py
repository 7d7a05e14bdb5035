"""Plots of who holds and knows what: classes, teachers, silos, flips, and the tuning surface."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from fedkd.report.figures import Figure, Variant, plain
from fedkd.report.results import Results, percent
from fedkd.report.tables import MAX_ROWS, NONE, Table
from fedkd.report.theme import looks

MAX_LABELLED_CELLS = 200
HEAT = [[0, "$heat-low"], [1, "$heat-high"]]


def class_map(results: Results) -> Figure | None:
    """Plot how many images of each class every silo holds, a view for every seed."""
    rows = results.summary.get("silos") or []
    if not rows:
        return None
    classes = _class_names(results, max(len(row["class_counts"]) for row in rows))
    variants = []
    for seed, group in groupby(rows, key=lambda row: row["seed"]):
        silos = list(group)
        counts = [row["class_counts"] for row in silos]
        variants.append(
            _heat(
                f"seed {seed}",
                counts,
                x=[plain(name) for name in classes],
                y=[plain(row["silo"]) for row in silos],
                hover="%{y}, class %{x}: %{z} images<extra></extra>",
                labelled=len(silos) * len(classes) <= MAX_LABELLED_CELLS,
                titles=("class", ""),
            )
        )
    tall = max(len(view.data[0]["y"]) for view in variants)
    return Figure(
        name="classes",
        title="Who holds which classes",
        alt=(
            f"Heat map of images by silo and class: {tall} silos, {len(classes)} classes. The "
            "table holds the numbers."
        ),
        caption="Images in each silo of each class; a darker or brighter cell holds more.",
        variants=variants,
        table=_clip(
            ["seed", "silo", "images", *classes],
            [
                [str(r["seed"]), r["silo"], str(r["num_examples"]), *map(str, r["class_counts"])]
                for r in rows
            ],
        ),
        height=min(900, 110 + 26 * tall),
        choice="seed",
    )


def teachers(results: Results, arm: str | None) -> Figure | None:
    """Plot every teacher's accuracy and what it knows that the student did not.

    Args:
        results: the study's.
        arm: whose student is meant; the first arm with teachers where None or without.
    """
    having = [run for run in results.summary["runs"] if _instruments(run).get("teachers")]
    if not having:
        return None
    chosen = [run for run in having if run["arm"] == arm] or [
        run for run in having if run["arm"] == having[0]["arm"]
    ]
    variants = [_teacher_view(run) for run in chosen]
    rows = [
        [
            run["arm"],
            str(run["seed"]),
            str(found["silo"]),
            percent(found["accuracy"]),
            NONE if found.get("complementary") is None else percent(found["complementary"]),
            _weight(run, found["silo"]),
            NONE
            if _instruments(run).get("agreement") is None
            else percent(_instruments(run)["agreement"]),
        ]
        for run in having
        for found in _instruments(run)["teachers"]
    ]
    tall = max(len(view.data[0]["y"]) for view in variants)
    return Figure(
        name="teachers",
        title="What the teachers know",
        alt=(
            f"Dot plot of {tall} teachers: accuracy on the test images, and the share that a "
            f"teacher gets right and the student of {chosen[0]['arm']} at first got wrong."
        ),
        caption=(
            f"Teachers of {chosen[0]['arm']}, on all test images. Rings: accuracy. Diamonds: "
            "complementary knowledge, the share of images that the student got wrong before it "
            "learnt and this teacher gets right. Teachers agree on "
            f"{_agreements(chosen)} of the images, over pairs."
        ),
        variants=variants,
        table=_clip(
            ["arm", "seed", "silo", "accuracy", "complementary", "weight", "agreement"], rows
        ),
        height=min(900, 120 + 26 * tall),
        choice="seed",
    )


def before_and_after(results: Results, arm: str | None) -> Figure | None:
    """Plot each silo's accuracy on its own classes, with its own model and with the final one."""
    own = _own_models(results.summary["runs"])
    views: list[Variant] = []
    rows, start, losses = [], 0, {}
    for name in results.arms:
        points = [
            (run["seed"], silo["silo"], own[run["seed"], silo["silo"]], silo["after"])
            for run in results.runs(name)
            for silo in _instruments(run).get("silos") or []
            if silo.get("after") is not None and (run["seed"], silo["silo"]) in own
        ]
        if not points:
            continue
        if name == arm:
            start = len(views)
        losses[name] = sum(after < before for _, _, before, after in points)
        views.append(_scatter_view(name, points, results))
        rows += [
            [name, str(seed), silo, percent(before), percent(after)]
            for seed, silo, before, after in points
        ]
    if not views:
        return None
    return Figure(
        name="silos",
        title="What each silo gets",
        alt=(
            "Scatter plot of silos: accuracy of its own model against accuracy of the final "
            "global model, both on the silo's own mix of classes."
        ),
        caption=(
            "Above the diagonal a silo is better served by the final global model than by its own "
            "on its own mix of classes, below it worse. Silos below, over all seeds: "
            + ", ".join(f"{name} {lost}" for name, lost in losses.items())
            + "."
        ),
        variants=views,
        table=_clip(["arm", "seed", "silo", "own model", "global model"], rows),
        height=460,
        choice="arm",
        start=start,
    )


def gain_and_forgetting(results: Results, arm: str | None) -> Figure | None:
    """Plot what was learnt and forgotten by class, in consolidation and in the rounds."""
    views: list[Variant] = []
    rows, start = [], 0
    for name in results.arms:
        for key, phase in (("student", "consolidation"), ("rounds", "rounds")):
            found = [
                entry["per_class"]
                for run in results.runs(name)
                if (entry := _instruments(run).get(key)) and entry.get("per_class")
            ]
            if not found:
                continue
            gain, lost = (_means([each[k] for each in found]) for k in ("gain", "forgetting"))
            if name == arm and key == "student":
                start = len(views)
            classes = _class_names(results, len(gain))
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
        table=_clip(["arm", "phase", "class", "gain", "forgetting"], rows),
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
        view = _heat(
            "",
            grid,
            x=[f"{x:g}" for x in xs],
            y=[f"{y:g}" for y in ys],
            hover="temperature %{x}, weight %{y}: %{z:.1%}<extra></extra>",
            labelled=len(best) <= MAX_LABELLED_CELLS,
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
        table=_clip(
            ["temperature", "weight", metric],
            [[f"{x:g}", f"{y:g}", percent(v)] for (x, y), v in sorted(best.items())],
        ),
        height=380,
    )


def _instruments(run: dict[str, Any]) -> dict[str, Any]:
    found = run.get("instruments")
    return found if isinstance(found, dict) else {}


def _class_names(results: Results, number: int) -> list[str]:
    names = [str(name) for name in results.summary.get("classes") or []]
    return names if len(names) == number else [str(index) for index in range(number)]


def _heat(
    label: str,
    values: Sequence[Sequence[Any]],
    *,
    x: list[str],
    y: list[str],
    hover: str,
    labelled: bool,
    titles: tuple[str, str],
    template: str = "%{z}",
) -> Variant:
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
            # Silos read from the top as they do in a table; numbers of a scale grow upwards.
            **({} if titles[1] else {"autorange": "reversed"}),
        },
    }
    return Variant(label, [trace], layout)


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


def _teacher_view(run: dict[str, Any]) -> Variant:
    found = _instruments(run)["teachers"]
    names = [plain(each["silo"]) for each in found]
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": [each.get(key) for each in found],
            "y": names,
            "marker": {"color": colour, "symbol": symbol, "size": size, **_ring(colour)},
            "hovertemplate": "%{y}: " + name + " %{x:.1%}<extra></extra>",
        }
        # An open ring around a small diamond: both are seen where they are equal.
        for key, name, colour, symbol, size in (
            ("accuracy", "accuracy", "$blue", "circle-open", 13),
            ("complementary", "complementary", "$orange", "diamond", 6),
        )
    ]
    layout = {
        "xaxis": {"tickformat": ".0%", "rangemode": "tozero"},
        "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
        "showlegend": True,
    }
    return Variant(f"seed {run['seed']}", data, layout)


def _ring(colour: str) -> dict[str, Any]:
    return {"line": {"width": 2, "color": colour}}


def _scatter_view(
    arm: str, points: Sequence[tuple[int, str, float, float]], results: Results
) -> Variant:
    look = looks(results.arms, results.baselines)[arm]
    least = min(min(before, after) for _, _, before, after in points)
    low = max(0.0, least - 0.05)
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [before for _, _, before, _ in points],
        "y": [after for _, _, _, after in points],
        "text": [f"{plain(silo)}, seed {seed}" for seed, silo, _, _ in points],
        "marker": {"color": look.plotly_colour, "symbol": look.marker, "size": 9},
        "hovertemplate": "%{text}<br>own model %{x:.1%}<br>global model %{y:.1%}<extra></extra>",
        "cliponaxis": False,
    }
    span = [low, 1.0]
    line = {"type": "line", "x0": low, "y0": low, "x1": 1, "y1": 1, "layer": "below"}
    layout = {
        "xaxis": {"title": {"text": "own model"}, "tickformat": ".0%", "range": span},
        "yaxis": {"title": {"text": "final global model"}, "tickformat": ".0%", "range": span},
        "shapes": [{**line, "line": {"color": "$muted", "width": 1.2, "dash": "dot"}}],
    }
    return Variant(arm, [trace], layout)


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


def _own_models(runs: Iterable[dict[str, Any]]) -> dict[tuple[int, str], float]:
    """Accuracy of each silo's own model, which all arms of a seed share."""
    return {
        (run["seed"], silo["silo"]): silo["before"]
        for run in runs
        for silo in _instruments(run).get("silos") or []
        if silo.get("before") is not None
    }


def _means(columns: Sequence[Sequence[float | None]]) -> list[float | None]:
    means: list[float | None] = []
    for values in zip(*columns, strict=True):
        known = [value for value in values if value is not None]
        means.append(round(sum(known) / len(known), 6) if known else None)
    return means


def _weight(run: dict[str, Any], silo: str) -> str:
    weight = (run["notes"].get("mean_weights") or {}).get(silo)
    return NONE if weight is None else percent(weight)


def _agreements(runs: Sequence[dict[str, Any]]) -> str:
    known = [a for run in runs if (a := _instruments(run).get("agreement")) is not None]
    if not known:
        return "an unknown share"
    low, high = percent(min(known)), percent(max(known))
    return low if low == high else f"{low} to {high}"


def _share(value: float | None) -> str:
    return NONE if value is None else percent(value)


def _clip(head: list[str], rows: list[list[str]]) -> Table:
    more = len(rows) - MAX_ROWS
    note = f"The first {MAX_ROWS} rows; {more} more are in summary.json." if more > 0 else ""
    return Table(head, rows[:MAX_ROWS], note=note)
