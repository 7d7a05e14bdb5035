"""The values behind the plots, as rows of plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedkd.report.curves import MEGABYTE, Curve, band
from fedkd.report.savings import Row, count, interval, is_defined, saved
from fedkd.results.folder import Results, percent
from fedkd.results.points import metric_values, point_value
from fedkd.results.record import CUT_SHORT

MAX_ROWS = 200
CURVE_ROWS = 40
NONE = "\u2013"


@dataclass(frozen=True)
class Table:
    """Headings and rows, all text; ``note`` states what is omitted."""

    head: list[str]
    rows: list[list[str]]
    note: str = ""
    prose: bool = False
    """Whether cells contain sentences, which may wrap."""
    warn: set[int] = field(default_factory=set)
    """Indices of rows to highlight."""


def saving_rows(results: Results, target: float, baseline: str) -> list[Row]:
    """Return the comparisons with one baseline at one target, in the study's order of arms."""
    order = {arm: index for index, arm in enumerate(results.arms)}
    rows = [
        row
        for row in results.summary["comparison"]
        if (row["target"], row["baseline"]) == (target, baseline)
    ]
    return sorted(rows, key=lambda row: order[row["arm"]])


def savings_table(results: Results, target: float) -> Table:
    """Return exchanges, bytes and seconds saved to a target, against every baseline."""
    head = ["arm", "against", "exchanges", "saved", "range", "ceiling", "bytes", "seconds"]
    rows: list[list[str]] = []
    warn = set()
    for baseline in results.baselines:
        for row in saving_rows(results, target, baseline):
            known = is_defined(row)
            if known and row["exchanges_saved_pct"] < 0:
                warn.add(len(rows))
            ceiling = row["ceiling_pct"]
            rows.append(
                [
                    row["arm"],
                    baseline,
                    " instead of ".join(
                        count(row, side, short=True) for side in ("arm", "baseline")
                    ),
                    saved(row, short=True),
                    (interval(row) or NONE) if known else NONE,
                    NONE if ceiling is None else percent(ceiling / 100),
                    saved(row, "bytes", short=True) if known else NONE,
                    saved(row, "seconds", short=True)
                    if known and row["seconds_saved_pct"] is not None
                    else NONE,
                ]
            )
    return Table(head, rows, warn=warn)


def cost_table(results: Results, index: int) -> Table:
    """Return every run's cost to a target, which is given by its index in the study."""
    head = ["arm", "seed", "exchanges", "megabytes", "seconds", "start", "best", "ended by"]
    rows: list[list[str]] = []
    warn = set()
    for run in results.summary["runs"]:
        cost = run["targets"][index] if run["targets"] else None
        reached = cost is not None and cost["round"] is not None
        if not reached:
            warn.add(len(rows))
        budget = run["exchanges_before_round_1"] + run["max_rounds"]
        rows.append(
            [
                run["arm"],
                str(run["seed"]),
                str(cost["exchanges"]) if cost and reached else _unreached(run, budget),
                f"{cost['bytes'] / MEGABYTE:.2f}" if cost and reached else NONE,
                f"{cost['seconds']:.2f}" if cost and reached else NONE,
                share(point_value(run["curve"][0], results.metric)),
                share(max(metric_values(run, results.metric), default=None)),
                run["stopped"] + (", from the cache" if run["cached"] else ""),
            ]
        )
    return Table(head, rows, warn=warn)


def _unreached(run: Mapping[str, Any], budget: int) -> str:
    """Return within how many exchanges a run did not reach a target: those that it made."""
    if run["stopped"] in CUT_SHORT:
        return f"not within {run['curve'][-1]['round'] + run['exchanges_before_round_1']}"
    return f"not within {budget}"


def curve_table(curves: Mapping[str, Sequence[Curve]], axis: str) -> Table:
    """Return mean, minimum and maximum of every arm's curves against a cost."""
    arms = [arm for arm, each in curves.items() if each]
    bands = {arm: arm_band for arm in arms if (arm_band := band(curves[arm], axis)) is not None}
    costs = sorted({cost for arm_band in bands.values() for cost in arm_band.costs})
    if len(costs) > CURVE_ROWS:
        step = (len(costs) - 1) / (CURVE_ROWS - 1)
        costs = [costs[round(step * row)] for row in range(CURVE_ROWS)]
    rows = []
    for cost in costs:
        cells = [f"{cost:.4g}"]
        for arm in arms:
            # The value at the last round up to this cost; none after a seed has ended.
            arm_band = bands.get(arm)
            index = None
            if arm_band is not None and arm_band.costs[0] <= cost <= arm_band.costs[-1]:
                index = max(i for i, reached in enumerate(arm_band.costs) if reached <= cost)
            if arm_band is None or index is None:
                cells.append(NONE)
            else:
                low, mean, high = (
                    percent(v[index]) for v in (arm_band.low, arm_band.mean, arm_band.high)
                )
                cells.append(mean if low == high else f"{mean} ({low} to {high})")
        rows.append(cells)
    return Table([axis, *arms], rows, note="Mean over seeds, minimum and maximum in brackets.")


def refused_table(results: Results) -> Table:
    """Return the silos' replies that were not used, with the reasons; quarantined silos first."""
    rows = [
        [
            *(run["arm"], str(run["seed"]), str(silo), str(last)),
            "quarantined: too many failures; not asked after this round",
        ]
        for run in results.summary["runs"]
        for silo, last in (run["notes"].get("quarantined_after") or {}).items()
    ]
    warn = set(range(len(rows)))
    rows += [
        [run["arm"], str(run["seed"]), str(e["silo"]), str(e["round"]), str(e["reason"])]
        for run in results.summary["runs"]
        for e in run["quarantined"]
    ]
    more = len(rows) - MAX_ROWS
    note = f"{more} more are in summary.json." if more > 0 else ""
    head = ["arm", "seed", "silo", "round", "reason"]
    return Table(head, rows[:MAX_ROWS], note, prose=True, warn=warn)


def failures_table(results: Results) -> Table:
    """Return the runs that failed."""
    rows = [[f["arm"], str(f["seed"]), f["reason"]] for f in results.summary["failures"]]
    return Table(["arm", "seed", "reason"], rows, prose=True, warn=set(range(len(rows))))


def settings_table(results: Results) -> Table:
    """Return the study's settings as dotted keys, and the versions and machine."""
    resolved = {k: v for k, v in results.summary["resolved"].items() if k != "arms"}
    rows = [["study", key, value] for key, value in _flat(resolved)]
    for what in ("versions", "machine"):
        rows += [[what, key, value] for key, value in _flat(results.summary[what])]
    return Table(["of", "what", "value"], rows, prose=True)


def studies_table(all_results: Sequence[Results], verdicts: Sequence[str]) -> Table:
    """Return one row per study, for a page on several studies."""
    rows = []
    for results, sentence in zip(all_results, verdicts, strict=True):
        resolved = results.summary["resolved"]
        parts = resolved.get("partition", {})
        rows.append(
            [
                results.label,
                str(resolved.get("data", {}).get("source", NONE)),
                f"{parts.get('scheme', NONE)}, {results.num_silos or NONE} silos",
                str(len(results.seeds)),
                sentence,
            ]
        )
    return Table(["study", "data", "partition", "seeds", "verdict"], rows, prose=True)


def arms_table(all_results: Sequence[Results]) -> Table:
    """Return each arm's saving at each study's highest target against its first baseline."""
    arms = list(dict.fromkeys(arm for results in all_results for arm in results.arms))
    rows = []
    for results in all_results:
        target = max(results.targets)
        against = results.baselines[0] if results.baselines else NONE
        by_arm = {row["arm"]: row for row in saving_rows(results, target, against)}
        cells = [saved(by_arm[arm], short=True) if arm in by_arm else NONE for arm in arms]
        rows.append([results.label, percent(target), against, *cells])
    return Table(["study", "target", "against", *arms], rows)


def clip(head: list[str], rows: list[list[str]]) -> Table:
    """Return a table of the first rows, with a note on how many are omitted."""
    more = len(rows) - MAX_ROWS
    note = f"The first {MAX_ROWS} rows; {more} more are in summary.json." if more > 0 else ""
    return Table(head, rows[:MAX_ROWS], note=note)


def share(value: float | None) -> str:
    """Return a share as text; a dash for one that is not known."""
    return NONE if value is None else percent(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows
