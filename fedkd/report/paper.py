"""Figures and tables for papers: PNG and SVG drawn by matplotlib, CSV in tidy form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.errors import UserError
from fedkd.registry import METRICS
from fedkd.report import theme
from fedkd.report.curves import band, curves_of, tidy_rows
from fedkd.report.savings import is_defined
from fedkd.report.tables import saving_rows
from fedkd.report.theme import arm_styles
from fedkd.results.folder import Results, percent
from fedkd.util.files import replacing, to_csv, write_text
from fedkd.util.requirements import install_command

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = ("png", "svg")
_IN_LATEX = str.maketrans(
    {"\u2265": r"$\geq$", "\u2264": r"$\leq$", "\u2212": "$-$", "\u2013": "--", "\u00a0": "~"}
)
INCHES = (6.4, 4.0)
DPI = 200
# Plotly's names of dashes and markers, to matplotlib's.
DASHES: dict[str, Any] = dict(zip(theme.DASHES, ("-", "--", ":", "-.", (0, (9, 3))), strict=True))
MARKERS = dict(zip(theme.MARKERS, "osD^*Pph", strict=True))
INK = "#000000"


def write_pictures(results: Results, folder: Path, kind: str) -> list[Path]:
    """Write every figure as ``png`` or ``svg`` into a folder and return the paths."""
    drawings: list[tuple[str, Callable[[], Figure]]] = []
    if results.summary["runs"]:
        drawings.append(("accuracy-exchanges", lambda: draw_accuracy(results, "exchanges")))
        drawings.append(("accuracy-megabytes", lambda: draw_accuracy(results, "megabytes")))
    for target in results.targets if results.baselines else ():
        if saving_rows(results, target, results.baselines[0]):
            name = f"savings-{100 * target:g}".replace(".", "_")
            drawings.append((name, lambda target=target: draw_savings(results, target)))  # type: ignore[misc]
    if results.summary.get("silos"):
        drawings.append(("classes", lambda: draw_classes(results)))
    paths = []
    for name, draw in drawings:
        path = folder / f"{name}.{kind}"
        figure = draw()
        with replacing(path) as temporary:
            # No date and no random ids, so that equal results give equal bytes.
            metadata = {"Date": None} if kind == "svg" else {"Software": "fedkd"}
            figure.savefig(temporary, format=kind, dpi=DPI, metadata=metadata)
        paths.append(path)
    return paths


def write_csv(results: Results, folder: Path) -> list[Path]:
    """Write curves, targets, comparison and silos as tidy CSV; return the paths."""
    tables = {
        "curves": list(tidy_rows(results.summary["runs"])),
        "targets": [
            {"arm": run["arm"], "seed": run["seed"], **target}
            for run in results.summary["runs"]
            for target in run["targets"]
        ],
        "comparison": comparison_rows(results),
        "silos": [
            {**{k: row[k] for k in ("seed", "silo", "num_examples")}, "class": index, "images": n}
            for row in results.summary.get("silos") or []
            for index, n in enumerate(row["class_counts"])
        ],
    }
    paths = []
    for name, rows in tables.items():
        if rows:
            paths.append(folder / f"{name}.csv")
            write_text(paths[-1], to_csv(rows))
    return paths


def comparison_rows(results: Results) -> list[dict[str, Any]]:
    """Return the summary's comparison as flat rows: one per arm, baseline and target."""
    rows = []
    for row in results.summary["comparison"]:
        low, high = row["range"] or (None, None)
        sides = ("reached", "failed", "uncharged", "exchanges")
        flat = {key: value for key, value in row.items() if key not in (*sides, "range")}
        for key in sides:
            flat |= {f"{key}_{side}": row[key][side] for side in ("arm", "baseline")}
        rows.append({**flat, "range_low": low, "range_high": high})
    return rows


def draw_accuracy(results: Results, axis: str = "exchanges") -> Figure:
    """Plot the study's metric against ``exchanges`` or ``megabytes``, with bands and targets."""
    figure, axes = _canvas()
    by_arm = curves_of(results, results.metric)
    for arm, look in arm_styles(results.arms, results.baselines).items():
        curves = by_arm[arm]
        if not curves:
            continue
        colour, dash = _colour(look.colour), DASHES[look.dash]
        for curve in curves:
            axes.plot(
                curve.costs(axis), curve.values, color=colour, linestyle=dash, lw=0.6, alpha=0.5
            )
            for index in curve.reached():
                position = (curve.costs(axis)[index], curve.values[index])
                axes.plot(*position, marker=MARKERS[look.marker], color=colour, ms=5)
            if curve.censored:
                axes.plot(curve.costs(axis)[-1], curve.values[-1], "x", color=colour, ms=6, mew=2)
        if mean_band := band(curves, axis):
            axes.fill_between(
                mean_band.costs, mean_band.low, mean_band.high, color=colour, alpha=0.12, lw=0
            )
            axes.plot(mean_band.costs, mean_band.mean, color=colour, linestyle=dash, lw=1.8)
        axes.plot([], [], color=colour, linestyle=dash, marker=MARKERS[look.marker], label=arm)
    for target in results.targets if not results.relative else ():
        axes.axhline(target, color="0.45", linestyle=":", lw=0.9)
    axes.set_xlabel(axis)
    axes.set_ylabel(f"test {METRICS[results.metric]}")
    axes.yaxis.set_major_formatter(lambda value, _: percent(value, 0))
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def draw_savings(results: Results, target: float) -> Figure:
    """Plot the savings of every arm against the first baseline, with their range over seeds."""
    figure, axes = _canvas()
    rows = saving_rows(results, target, results.baselines[0])
    styles = arm_styles(results.arms, results.baselines)
    for position, row in zip(range(len(rows))[::-1], rows, strict=True):
        if not is_defined(row):
            continue
        value, look = row["exchanges_saved_pct"], styles[row["arm"]]
        low, high = row["range"] or (value, value)
        marker = {"at_least": ">", "at_most": "<"}.get(row["bound"], MARKERS[look.marker])
        error = [[max(0, value - low)], [max(0, high - value)]]
        colour = _colour(look.colour)
        axes.errorbar(value, position, xerr=error, fmt=marker, color=colour, capsize=3, ms=7)
    axes.axvline(0, color=INK, lw=0.8)
    axes.set_yticks(range(len(rows))[::-1], [row["arm"] for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    goal = results.name_target(target)
    axes.set_xlabel(f"exchanges saved against {results.baselines[0]} to {goal} (%)")
    return figure


def draw_classes(results: Results) -> Figure:
    """Plot the number of examples per class and silo, for the first seed."""
    figure, axes = _canvas()
    seed = results.summary["silos"][0]["seed"]
    rows = [row for row in results.summary["silos"] if row["seed"] == seed]
    heat_map = axes.imshow([row["class_counts"] for row in rows], cmap="Blues", aspect="auto")
    # matplotlib would read $...$ in a silo's name as a formula.
    names = [str(row["silo"]).replace("$", r"\$") for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.set_xlabel("class")
    figure.colorbar(heat_map, label=f"examples, seed {seed}")
    return figure


def _canvas() -> tuple[Figure, Axes]:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            f"figures need matplotlib, which is not installed: {install_command('plots')}"
        ) from None
    mpl.rcParams["svg.hashsalt"] = "fedkd"
    figure = Figure(figsize=INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _colour(colour: str) -> str:
    return INK if colour == "ink" else colour


def to_latex(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of text as LaTeX, for the package booktabs."""
    import pandas as pd

    frame = pd.DataFrame(list(rows), columns=list(head))
    return str(frame.to_latex(index=False, escape=True)).translate(_IN_LATEX)
