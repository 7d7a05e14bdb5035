"""Plots of the silos: classes, teachers' accuracy, accuracy before and after federation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from fedkd.report.figure import Figure, Variant, heat_map, plain
from fedkd.report.tables import clip, share
from fedkd.report.theme import arm_styles
from fedkd.results.folder import Results, class_names, instruments, percent


def class_map(results: Results) -> Figure | None:
    """Plot the number of examples per class and silo, one view per seed."""
    rows = results.summary.get("silos") or []
    if not rows:
        return None
    classes = class_names(results, max(len(row["class_counts"]) for row in rows))
    variants = []
    for seed, group in groupby(rows, key=lambda row: row["seed"]):
        silos = list(group)
        counts = [row["class_counts"] for row in silos]
        variants.append(
            heat_map(
                f"seed {seed}",
                counts,
                x=[plain(name) for name in classes],
                y=[plain(row["silo"]) for row in silos],
                hover="%{y}, class %{x}: %{z} examples<extra></extra>",
                titles=("class", ""),
            )
        )
    num_rows = max(len(view.data[0]["y"]) for view in variants)
    return Figure(
        name="classes",
        title="Classes by silo",
        alt=(
            f"Heat map of examples by silo and class: {num_rows} silos, {len(classes)} classes. "
            "The table lists the values."
        ),
        caption="Number of examples of each class in each silo.",
        variants=variants,
        table=clip(
            ["seed", "silo", "examples", *classes],
            [
                [str(r["seed"]), r["silo"], str(r["num_examples"]), *map(str, r["class_counts"])]
                for r in rows
            ],
        ),
        height=min(900, 110 + 26 * num_rows),
        choice="seed",
    )


def teachers(results: Results, arm: str | None) -> Figure | None:
    """Plot every teacher's accuracy and complementary knowledge.

    Without ``arm``, or if that has no teachers, the first arm with teachers is shown.
    """
    with_teachers = [run for run in results.summary["runs"] if instruments(run).get("teachers")]
    if not with_teachers:
        return None
    chosen = [run for run in with_teachers if run["arm"] == arm] or [
        run for run in with_teachers if run["arm"] == with_teachers[0]["arm"]
    ]
    variants = [_teacher_view(run) for run in chosen]
    rows = [
        [
            run["arm"],
            str(run["seed"]),
            str(teacher["silo"]),
            percent(teacher["accuracy"]),
            share(teacher.get("complementary")),
            share((run["notes"].get("mean_weights") or {}).get(teacher["silo"])),
            share(instruments(run).get("agreement")),
        ]
        for run in with_teachers
        for teacher in instruments(run)["teachers"]
    ]
    num_rows = max(len(view.data[0]["y"]) for view in variants)
    return Figure(
        name="teachers",
        title="Teachers: accuracy and complementary knowledge",
        alt=(
            f"Dot plot of {num_rows} teachers: accuracy on the test examples, and the share that a "
            f"teacher gets right and the initial student of {chosen[0]['arm']} gets wrong."
        ),
        caption=(
            f"Teachers of {chosen[0]['arm']}, on all test examples. Rings: accuracy. Diamonds: "
            "complementary knowledge, the share of examples that this teacher gets right and the "
            "student, before distillation, gets wrong. Mean agreement over pairs of teachers: "
            f"{_agreements(chosen)} of the examples."
        ),
        variants=variants,
        table=clip(
            ["arm", "seed", "silo", "accuracy", "complementary", "weight", "agreement"], rows
        ),
        height=min(900, 120 + 26 * num_rows),
        choice="seed",
    )


def before_and_after(results: Results, arm: str | None) -> Figure | None:
    """Plot each silo's accuracy on its own label mix, of its own model and of the final one."""
    own = _own_models(results.summary["runs"])
    views: list[Variant] = []
    rows, start, losses = [], 0, {}
    for name in results.arms:
        points = [
            (run["seed"], silo["silo"], own[run["seed"], silo["silo"]], silo["after"])
            for run in results.runs(name)
            for silo in instruments(run).get("silos") or []
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
        title="Accuracy per silo, own model and global model",
        alt=(
            "Scatter plot of silos: accuracy of its own model against accuracy of the final "
            "global model, both on the silo's own label mix."
        ),
        caption=(
            "Above the diagonal the final global model is more accurate than the silo's own model "
            "on the silo's label mix, below it less. Silos below, over all seeds: "
            + ", ".join(f"{name} {lost}" for name, lost in losses.items())
            + "."
        ),
        variants=views,
        table=clip(["arm", "seed", "silo", "own model", "global model"], rows),
        height=460,
        choice="arm",
        start=start,
    )


def _teacher_view(run: dict[str, Any]) -> Variant:
    entries = instruments(run)["teachers"]
    names = [plain(entry["silo"]) for entry in entries]
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": [entry.get(key) for entry in entries],
            "y": names,
            "marker": {"color": colour, "symbol": symbol, "size": size, **_ring(colour)},
            "hovertemplate": "%{y}: " + name + " %{x:.1%}<extra></extra>",
        }
        # An open ring around a small diamond: both stay visible where they are equal.
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
    look = arm_styles(results.arms, results.baselines)[arm]
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


def _own_models(runs: Iterable[dict[str, Any]]) -> dict[tuple[int, str], float]:
    """Return the accuracy of each silo's own model, which all arms of a seed share."""
    return {
        (run["seed"], silo["silo"]): silo["before"]
        for run in runs
        for silo in instruments(run).get("silos") or []
        if silo.get("before") is not None
    }


def _agreements(runs: Sequence[dict[str, Any]]) -> str:
    known = [a for run in runs if (a := instruments(run).get("agreement")) is not None]
    if not known:
        return "an unknown share"
    low, high = percent(min(known)), percent(max(known))
    return low if low == high else f"{low} to {high}"
