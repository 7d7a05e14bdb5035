"""A study's summary as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedkd.federation.recommend import Recommendation
from fedkd.registry import METRICS
from fedkd.report.savings import failed, uncharged_arms
from fedkd.report.tuned import trial_cells, trial_heads, tuning_lines
from fedkd.results.folder import Results
from fedkd.results.interval import coverage_of
from fedkd.results.points import metric_values, point_value
from fedkd.results.record import CUT_SHORT
from fedkd.util.yaml_loader import dump_yaml

UNREACHED = "red"


def render(summary: dict[str, Any]) -> RenderableType:
    """Return one table per target, and a legend."""
    tables: list[RenderableType] = []
    for index, target in enumerate(Results(summary, "").targets):
        tables += [_target_table(summary, index, target), ""]
    tables.append(Text(_legend(summary), style="dim"))
    return Group(*tables)


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Print the tables; off a terminal they are plain text of fixed width."""
    console.print(render(summary))


def print_recommendation(
    recommendation: Recommendation, figures: dict[str, Any], console: Console
) -> None:
    """Print the description of a federation, a method, and how often that method was best."""
    table = Table(title="The federation", title_justify="left", title_style="bold")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, "unknown" if value is None else str(value))
    console.print(table)
    depends = bool(recommendation.reasons)
    title = "Best method in similar recorded federations" if depends else "Best method on average"
    console.print(f"{title}: {recommendation.method}", style="bold")
    arm = dump_yaml({"arms": {f"fedkd-{recommendation.method}": recommendation.arm}})
    consolidated = recommendation.arm["start"] == "consolidated"
    console.print(arm if consolidated else dump_yaml(recommendation.arm))
    for reason in recommendation.reasons:
        console.print(f"- {reason}")
    alike = "similar " if depends else ""
    console.print(
        f"\nIn {recommendation.agreeing} of {recommendation.support} {alike}recorded federations "
        "its accuracy was within half a point of the best method's."
    )
    known = recommendation.known
    if depends:
        console.print(
            f"On held-out studies ({known['variants']} variants, {known['federations']} "
            f"federations) such a choice was within half a point in {known['accuracy']:.0%} and "
            f"lost {known['points_lost']:.1f} points of accuracy on average; always the same "
            f"method: {known['accuracy_of_always_the_same']:.0%} and "
            f"{known['points_lost_of_always_the_same']:.1f} points."
        )
    else:
        console.print(
            "This method is printed for every federation: no property in the table was found to "
            "predict a better one."
        )
    for remark in recommendation.remarks:
        console.print(remark)


def _target_table(summary: dict[str, Any], index: int, target: float) -> Table:
    results = Results(summary, "")
    seeds, baselines = results.seeds, results.baselines
    title = f"Exchanges to {target:.1%}" + (
        f" of {baselines[0]}'s best" if results.relative else f" {METRICS[results.metric]}"
    )
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("arm", no_wrap=True)
    for head in trial_heads(summary):
        table.add_column(head, justify="right")
    table.add_column("start", justify="right")
    table.add_column("best", justify="right")
    table.add_column(f"seeds {', '.join(str(seed) for seed in seeds)}", justify="right")
    table.add_column("sum", justify="right")
    for baseline in baselines:
        table.add_column(f"saved vs {baseline}", justify="right")
        table.add_column("range", justify="right")
        table.add_column("ceiling", justify="right")
    for arm in summary["resolved"]["arms"]:
        name, *cells = _cells(summary, arm, index, target)
        name = f"{name} (from a file)" if arm in uncharged_arms(summary) else name
        table.add_row(name, *trial_cells(summary, arm), *cells)
    return table


def _cells(summary: dict[str, Any], arm: str, index: int, target: float) -> list[RenderableType]:
    by_seed = {run["seed"]: run for run in summary["runs"] if run["arm"] == arm}
    runs = list(by_seed.values())
    if not runs:
        return [arm, *["failed"] * 2]
    metric = Results(summary, "").metric
    start = _mean([point_value(run["curve"][0], metric) for run in runs])
    best = _mean([max(metric_values(run, metric), default=None) for run in runs])
    per_seed, total, missed = Text(), 0, False
    for seed in summary["resolved"]["seeds"]:
        run = by_seed.get(seed)
        spent = None if run is None or not run["targets"] else run["targets"][index]["exchanges"]
        per_seed.append(" " if per_seed else "")
        failed_run = any((f["arm"], f["seed"]) == (arm, seed) for f in summary["failures"])
        text = "failed" if failed_run else _exchanges(run, spent)
        per_seed.append(text, style=UNREACHED if spent is None else "")
        missed |= spent is None
        total += _budget(run) if run and spent is None else spent or 0
    complete = len(runs) == len(summary["resolved"]["seeds"])
    complete &= all(run["stopped"] not in CUT_SHORT for run in runs)
    sum_text = Text(
        f"{'>' if missed else ''}{total}" if complete else "", style=UNREACHED if missed else ""
    )
    cells: list[RenderableType] = [arm, start, best, per_seed, sum_text]
    for baseline in summary["resolved"]["baselines"]:
        cells += _saving(summary, arm, baseline, target)
    return cells


def _mean(values: Sequence[float | None]) -> str:
    """Return the mean as text; a dash where a value is not known."""
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.1%}" if len(known) == len(values) else "\u2013"


def _exchanges(run: dict[str, Any] | None, spent: int | None) -> str:
    """Return the exchanges of a seed's run to a target, or why they are not known."""
    if run is None:
        return "\u2013"
    if spent is not None:
        return str(spent)
    return "stopped" if run["stopped"] in CUT_SHORT else f">{_budget(run)}"


def _budget(run: dict[str, Any]) -> int:
    return int(run["exchanges_before_round_1"] + run["max_rounds"])


def _saving(summary: dict[str, Any], arm: str, baseline: str, target: float) -> list[str]:
    for row in summary["comparison"]:
        if (row["arm"], row["baseline"], row["target"]) == (arm, baseline, target):
            if failure := failed(row):
                return [failure, "", ""]
            if row["exchanges_saved_pct"] is None or row["bound"] == "undefined":
                return ["undefined", "", ""]
            sign = {"exact": "", "at_least": "≥ ", "at_most": "≤ "}[row["bound"]]
            low, high = row["range"] or (None, None)
            spread = "" if low is None else f"{low:.0f} to {high:.0f}"
            ceiling = "" if row["ceiling_pct"] is None else f"{row['ceiling_pct']:.1f} %"
            return [f"{sign}{row['exchanges_saved_pct']:.1f} %", spread, ceiling]
    return ["", "", ""]


def _legend(summary: dict[str, Any]) -> str:
    seeds = len(summary["resolved"]["seeds"])
    coverage = coverage_of(seeds)
    spread = "minimum and maximum over seeds"
    if coverage is not None:
        spread = f"a 95 % interval, paired over seeds (in simulation {coverage:g} % are right)"
    lines = [
        (
            "An exchange is one round trip between server and silos that carries a model, logits "
            "or densities: each round is one, and so is an average or consolidated start."
        ),
        (
            f"saved: summed over seeds. range: {spread}, in per cent. ceiling: the "
            "saving if the target is reached at the start."
        ),
        (
            ">n: not reached within the budget of n exchanges, which the sums count; ≥ and ≤ mark "
            "the resulting bounds."
        ),
    ]
    lines += [
        f"{arm} started from a file: exchanges that made it are unknown and not counted"
        for arm in uncharged_arms(summary)
    ]
    lines += tuning_lines(summary)
    if any(run["cached"] for run in summary["runs"]):
        lines.append("Some runs were taken from the cache (--fresh recomputes them).")
    lines += [
        f"too few silos replied: {run['arm']}, seed {run['seed']}, after round "
        f"{run['curve'][-1]['round']}; counts as failed"
        for run in summary["runs"]
        if run["stopped"] == "quorum"
    ]
    lines += [
        f"failed: {failure['arm']}, seed {failure['seed']}: {failure['reason']}"
        for failure in summary["failures"]
    ]
    return "\n".join(lines)
