"""A study's summary as tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedkd.federation.recommend import Recommendation
from fedkd.util.yaml_loader import dump_yaml

UNREACHED = "red"


def render(summary: dict[str, Any]) -> RenderableType:
    """Return one table a target, and a legend that says how to read them."""
    targets = _target_values(summary)
    tables: list[RenderableType] = []
    for index, target in enumerate(targets):
        tables += [_target_table(summary, index, target), ""]
    tables.append(Text(_legend(summary), style="dim"))
    return Group(*tables)


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Print the tables; without a terminal they are plain text of a fixed width."""
    console.print(render(summary))


def print_recommendation(found: Recommendation, figures: dict[str, Any], console: Console) -> None:
    """Print a federation's figures, the method for it, the reasons, and how far to trust them."""
    table = Table(title="The federation", title_justify="left", title_style="bold")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, "unknown" if value is None else str(value))
    console.print(table)
    console.print(f"Recommended: {found.method}", style="bold")
    arm = dump_yaml({"arms": {f"fedkd-{found.method}": found.arm}})
    console.print(arm if found.arm["start"] == "consolidated" else dump_yaml(found.arm))
    for reason in found.reasons:
        console.print(f"- {reason}")
    known = found.known
    alike = " that look like this" if found.reasons else ""
    console.print(
        f"\nIn {found.agreeing} of {found.support} recorded federations{alike} it came within half "
        f"a point of the best method there. On studies not looked at before "
        f"({known['variants']} variants, {known['federations']} federations) a tree made like this "
        f"one did so in {known['accuracy']:.0%} and cost {known['points_lost']:.1f} points of "
        f"accuracy on average; always naming the same method: "
        f"{known['accuracy_of_always_the_same']:.0%} and "
        f"{known['points_lost_of_always_the_same']:.1f} points."
    )
    if not found.reasons:
        console.print("No question about the federation was found to tell more than that.")
    for remark in found.remarks:
        console.print(remark)


def _target_table(summary: dict[str, Any], index: int, target: float) -> Table:
    seeds = summary["resolved"]["seeds"]
    baselines = summary["resolved"]["baselines"]
    relative = not isinstance(summary["resolved"]["targets"], list)
    title = f"Exchanges to {target:.1%}" + (
        f" of {baselines[0]}'s best" if relative else " accuracy"
    )
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("arm", no_wrap=True)
    table.add_column("start", justify="right")
    table.add_column("best", justify="right")
    table.add_column(f"seeds {', '.join(str(seed) for seed in seeds)}", justify="right")
    table.add_column("sum", justify="right")
    for baseline in baselines:
        table.add_column(f"saved vs {baseline}", justify="right")
        table.add_column("range", justify="right")
        table.add_column("ceiling", justify="right")
    for arm in summary["resolved"]["arms"]:
        table.add_row(*_cells(summary, arm, index, target))
    return table


def _cells(summary: dict[str, Any], arm: str, index: int, target: float) -> list[RenderableType]:
    runs = [run for run in summary["runs"] if run["arm"] == arm]
    if not runs:
        return [arm, *["failed"] * 2]
    start = sum(run["curve"][0]["accuracy"] for run in runs) / len(runs)
    best = sum(run["best_accuracy"] for run in runs) / len(runs)
    each, total, missed = Text(), 0, False
    for run in runs:
        budget = run["exchanges_before_round_1"] + run["max_rounds"]
        spent = run["targets"][index]["exchanges"] if run["targets"] else None
        missed |= spent is None
        total += budget if spent is None else spent
        style = UNREACHED if spent is None else ""
        each.append(" " if each else "")
        each.append(f">{budget}" if spent is None else str(spent), style=style)
    sum_text = Text(f"{'>' if missed else ''}{total}", style=UNREACHED if missed else "")
    cells: list[RenderableType] = [arm, f"{start:.1%}", f"{best:.1%}", each, sum_text]
    for baseline in summary["resolved"]["baselines"]:
        cells += _saving(summary, arm, baseline, target)
    return cells


def _saving(summary: dict[str, Any], arm: str, baseline: str, target: float) -> list[str]:
    for row in summary["comparison"]:
        if (row["arm"], row["baseline"], row["target"]) == (arm, baseline, target):
            if row["exchanges_saved_pct"] is None or row["bound"] == "undefined":
                return ["undefined", "", ""]
            sign = {"exact": "", "at_least": "≥ ", "at_most": "≤ "}[row["bound"]]
            low, high = row["range"] or (None, None)
            spread = "" if low is None else f"{low:.0f} to {high:.0f}"
            ceiling = "" if row["ceiling_pct"] is None else f"{row['ceiling_pct']:.1f} %"
            return [f"{sign}{row['exchanges_saved_pct']:.1f} %", spread, ceiling]
    return ["", "", ""]


def _target_values(summary: dict[str, Any]) -> list[float]:
    targets = summary["resolved"]["targets"]
    values: list[float] = targets if isinstance(targets, list) else targets["of_baseline_best"]
    return values


def _legend(summary: dict[str, Any]) -> str:
    seeds = len(summary["resolved"]["seeds"])
    spread = "a 95 % bootstrap interval" if seeds >= 5 else "the least and the greatest"
    lines = [
        (
            "An exchange is one trip server -> silos -> server with a model, logits or densities: "
            "every round is one, and so is an average or consolidated start."
        ),
        (
            f"saved: over all seeds together; range: {spread} over seeds, in per cent. ceiling: "
            "what reaching the target at the start would save."
        ),
        (
            ">n: not reached within the budget of n exchanges, which is what the sums count for "
            "it; ≥ and ≤ mark the savings that this bounds."
        ),
    ]
    if any(run["cached"] for run in summary["runs"]):
        lines.append("Some runs were taken from the cache (--fresh computes all anew).")
    lines += [
        f"too few silos answered: {run['arm']}, seed {run['seed']}, after round "
        f"{run['curve'][-1]['round']}; it is compared with nothing"
        for run in summary["runs"]
        if run["stopped"] == "quorum"
    ]
    lines += [
        f"failed: {failure['arm']}, seed {failure['seed']}: {failure['reason']}"
        for failure in summary["failures"]
    ]
    return "\n".join(lines)
