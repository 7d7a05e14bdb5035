"""The page of the bench: README.md with tables of ratios, and a plot."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from experiments.bench.contenders import contenders
from experiments.bench.federated import TOLERANCE, accuracy, names, ratios, worst
from experiments.bench.workload import HERE, OWN_MODELS
from fedkd.util.files import replacing, write_text

RESULTS, README, PLOT = "results.json", "README.md", "rounds.svg"

INTRODUCTION = HERE / "introduction.md"


def publish(folder: Path, results: dict[str, Any]) -> None:
    """Write the page and, if there are results, the plot."""
    rows = results.get("federated") or []
    parts = [
        INTRODUCTION.read_text(encoding="utf-8").format(
            plot=PLOT, results=RESULTS, rounds=results["num_rounds"], tolerance=TOLERANCE
        ),
        _measured(results),
        _goals(results["goals"]),
    ]
    if rows:
        parts += [
            "## Contenders\n",
            _contenders(rows),
            f"![Seconds of a round, against fedkd inline]({PLOT})\n",
        ]
        _draw(folder / PLOT, rows)
    own = results.get("own-models") or {}
    described = {each.name: each.description for each in OWN_MODELS}
    for name, each in own.items():
        parts += [f"## {described[name][0].upper()}{described[name][1:]}\n", _contenders(each)]
    if own:
        parts.append(_worst({**own, **({"cnn": rows} if rows else {})}))
    failed = [
        f"- {name}: {problem.splitlines()[0]}"
        for name, each in results["measured"].items()
        for problem in each["problems"]
    ]
    if failed:
        parts.append("\n".join(["## What failed\n", *failed]))
    write_text(folder / README, "\n".join(parts).rstrip() + "\n")


def _measured(results: dict[str, Any]) -> str:
    """Say when, how often and on which machine each part was measured; alike ones in one line."""
    lines: dict[str, list[str]] = {}
    for name, each in results["measured"].items():
        lines.setdefault(_machine(each), []).append(name)
    return "\n".join(f"- {', '.join(names_)}: {line}" for line, names_ in lines.items()) + "\n"


def _machine(measured: dict[str, Any]) -> str:
    machine, turns = measured["machine"], measured["turns"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    return (
        f"measured {measured['date']} in {turns} turn{'s' * (turns > 1)}, on {machine['cores']} "
        f"cores of {machine['processor']} ({', '.join(machine['flags']) or 'no vector extensions'})"
        f", {machine['memory_bytes'] / 2**30:.0f} GiB, {machine['platform']}; Python "
        f"{machine['python']}, {packages}."
    )


def _goals(goals: list[dict[str, Any]]) -> str:
    lines = ["## Goals\n", "| goal | bound | measured | met |", "|---|---|---|---|"]
    for goal in goals:
        sign = "≥" if goal["at_least"] else "≤"
        measured = goal["measured"]
        text = _spread(measured) if measured else goal["note"] or "not measured"
        met = {True: "yes", False: "**no**", None: "-"}[goal["met"]]
        lines.append(f"| {goal['text']} | {sign} {goal['limit']:g} | {text} | {met} |")
    lines.append(
        "\nMeasured: median (minimum to maximum) over turns; ratios unless a unit is given.\n"
    )
    return "\n".join(lines)


def _worst(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Return a table of the workload on which fedkd inline is slowest against each contender."""
    lines = [
        "## The worst of all workloads\n",
        "Whole command, fedkd inline against the contender.\n",
        "| contender | workload | ratio |",
        "|---|---|---|",
    ]
    contenders_ = dict.fromkeys(name for each in rows.values() for name in names(each))
    lines += [
        f"| {name} | {found[0]} | {_spread(vars(found[1]))} |"
        for name in contenders_
        if not name.startswith("fedkd") and (found := worst(rows, name, "seconds"))
    ]
    return "\n".join(lines) + "\n"


def _contenders(rows: list[dict[str, Any]]) -> str:
    lines = [
        "Ratios to fedkd inline in the same turn.\n",
        "| contender | what it is | whole command | a round | memory | MB a round | accuracy |",
        "|---|---|---|---|---|---|---|",
    ]
    everyone = contenders(python=Path(sys.executable))
    described = {each.name: each.description for each in everyone}
    for name in names(rows):
        own_rows = [row for row in rows if row["contender"] == name and "error" not in row]
        if not own_rows:
            lines.append(f"| {name} | {described[name]} | failed | | | | |")
            continue
        cells = [
            _spread(vars(spread)) if (spread := ratios(rows, name, "fedkd inline", key)) else "-"
            for key in ("seconds", "round_seconds", "peak_bytes")
        ]
        sent = next((row["round_bytes"] for row in own_rows if row.get("round_bytes")), None)
        cells.append("-" if sent is None else f"{sent / 1e6:.3g}")
        mean = statistics.fmean(accuracy(row) for row in own_rows)
        lines.append(f"| {name} | {described[name]} | {' | '.join(cells)} | {mean:.3f} |")
    return "\n".join(lines) + "\n"


def _spread(spread: dict[str, float]) -> str:
    if spread["least"] == spread["greatest"]:
        return f"{spread['median']:.3g}"
    return f"{spread['median']:.3g} ({spread['least']:.3g} to {spread['greatest']:.3g})"


def _draw(path: Path, rows: list[dict[str, Any]]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    # A fixed salt: the same figures give the same file.
    mpl.rcParams["svg.hashsalt"] = "bench"
    from matplotlib import pyplot

    shown = [name for name in names(rows) if ratios(rows, name, "fedkd inline", "seconds")]
    if not shown:
        return
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 0.5 * len(shown) + 1.2), sharey=True)
    for axis, key, title in (
        (axes[0], "seconds", "whole command"),
        (axes[1], "round_seconds", "a round"),
    ):
        for index, name in enumerate(reversed(shown)):
            spread = ratios(rows, name, "fedkd inline", key)
            if spread is None:
                continue
            colour = "#0072B2" if name.startswith("fedkd") else "#999999"
            axis.barh(index, spread.median, color=colour)
            axis.plot([spread.least, spread.greatest], [index, index], color="black", linewidth=2)
            axis.text(spread.greatest, index, f" {spread.median:.2f}", va="center", fontsize=9)
        axis.axvline(1, color="black", linewidth=0.8, linestyle=":")
        axis.set_title(f"{title}, fedkd inline = 1", fontsize=10)
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(shown)), reversed(shown))
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    pyplot.close(figure)
