"""Summary of the pairs: gain and forgetting by method, and what correlates with the gain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from fedkd.results.diagnostics import DIGITS
from fedkd.util.correlation import pearson, spearman

TRAITS = {
    "gap": "gap",
    "complementary": "complementary knowledge",
    "label_distance": "label distance",
}
"""Properties of a pair that may correlate with the gain, and their names in tables."""

MEANS = ("delta", "gain", "forgetting", "delta_own", "delta_others")


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one entry for each method, in the order of the rows.

    Returns:
        ``method``; ``pairs``: with a student, over all seeds; ``diverged``: without; the means over
        pairs of ``delta``, ``gain``, ``forgetting``, ``delta_own`` and ``delta_others``;
        ``delta_range``: minimum and maximum over seeds of the mean delta; ``improved``: share of
        pairs with delta > 0; and under ``correlations``, for each of :data:`TRAITS`, ``pearson``
        and ``spearman`` of delta with it over the pairs, None where undefined.
    """
    entries = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        trained = [row for row in mine if row["delta"] is not None]
        deltas = [row["delta"] for row in trained]
        seeds = dict.fromkeys(row["seed"] for row in trained)
        by_seed = [_of_seed(trained, seed) for seed in seeds]
        entries.append(
            {
                "method": method,
                "pairs": len(trained),
                "diverged": len(mine) - len(trained),
                **{key: _mean([r[key] for r in trained if r[key] is not None]) for key in MEANS},
                "delta_range": [min(by_seed), max(by_seed)] if by_seed else None,
                "improved": _mean([float(delta > 0) for delta in deltas]),
                "correlations": {
                    trait: {
                        "pearson": pearson([row[trait] for row in trained], deltas),
                        "spearman": spearman([row[trait] for row in trained], deltas),
                    }
                    for trait in TRAITS
                },
            }
        )
    return entries


def _of_seed(rows: Sequence[dict[str, Any]], seed: int) -> float:
    deltas: list[float] = [row["delta"] for row in rows if row["seed"] == seed]
    return round(sum(deltas) / len(deltas), DIGITS)


def print_outcome(results: dict[str, Any], console: Console) -> None:
    """Print both tables and a legend."""
    console.print(_means(results))
    console.print()
    console.print(_correlations(results))
    for line in _legend(results):
        console.print(line, style="dim", soft_wrap=True)


def _means(results: dict[str, Any]) -> Table:
    settings, data = results["settings"], results["resolved"]["data"]["transfer"]
    labelled = data["labelled"] or data.get("source") == "student-silo"
    title = (
        f"{results['study']}: mean over pairs in points of test accuracy "
        f"({'labelled' if labelled else 'unlabelled'} transfer set, {settings['epochs']} epochs)"
    )
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("method", no_wrap=True)
    heads = ("pairs", "delta", "range", "gain", "forgetting", "delta > 0", "own", "others")
    for head in heads:
        table.add_column(head, justify="right")
    for entry in results["summary"]:
        diverged = f" (+{entry['diverged']} diverged)" if entry["diverged"] else ""
        table.add_row(
            entry["method"],
            f"{entry['pairs']}{diverged}",
            _points(entry["delta"], "+"),
            " to ".join(_points(end, "+") for end in entry["delta_range"] or ()),
            _points(entry["gain"]),
            _points(entry["forgetting"]),
            "" if entry["improved"] is None else f"{entry['improved']:.0%}",
            _points(entry["delta_own"], "+"),
            _points(entry["delta_others"], "+"),
        )
    return table


def _correlations(results: dict[str, Any]) -> Table:
    title = "Correlation of delta over pairs, Spearman (Pearson)"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("method", no_wrap=True)
    for name in TRAITS.values():
        table.add_column(f"with {name}", justify="right")
    for entry in results["summary"]:
        correlations = [entry["correlations"][trait] for trait in TRAITS]
        table.add_row(
            entry["method"],
            *(f"{_rank(each['spearman'])} ({_rank(each['pearson'])})" for each in correlations),
        )
    return table


def _legend(results: dict[str, Any]) -> list[str]:
    lines = [
        (
            "delta = gain - forgetting = accuracy after - before; range: over the seeds' means; "
            "own, others: delta over the classes that the student's silo has, and over all others."
        ),
        (
            "gap: accuracy of teacher - student; complementary knowledge: share of examples that "
            "the student gets wrong and the teacher right; label distance: Jensen-Shannon, of the "
            "two silos."
        ),
        (
            "Pairs share silos, and a weak student gains most, so the correlations are a "
            "description and not a test."
        ),
    ]
    if "fine-tune" in results["methods"]:
        lines.append(
            "fine-tune uses no teacher: what correlates with its delta comes from the student."
        )
    if results["grid"]:
        lines.append(
            f"kd-tuned: the best of {len(results['grid'])} points (temperature, weight) on "
            "validation data, for each pair. For other methods they are 1 and 0.5; without labels "
            "the weight has no effect."
        )
    if results["missing"]:
        lines.append(f"{results['missing']} rows are missing; all figures are of the others.")
    return lines


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), DIGITS) if values else None


def _points(share: float | None, sign: str = "") -> str:
    return "" if share is None else f"{100 * share:{sign}.1f}"


def _rank(value: float | None) -> str:
    return "undefined" if value is None else f"{value:+.2f}"
