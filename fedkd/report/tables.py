"""The numbers behind the plots, as rows of plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedkd.report.curves import MEGABYTE, Curve, band
from fedkd.report.verdict import Row, count, interval, is_known, saved
from fedkd.results.folder import Results, percent

MAX_ROWS = 200
CURVE_ROWS = 40
NONE = "\u2013"


@dataclass(frozen=True)
class Table:
    """Headings and rows, all text; ``note`` says what was left out."""

    head: list[str]
    rows: list[list[str]]
    note: str = ""
    prose: bool = False
    """Whether cells hold sentences, which may break into lines."""
    warn: set[int] = field(default_factory=set)
    """Indices of rows that tell of a loss."""


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
            known = is_known(row)
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
    """Return what every run spent to reach a target, by its index in the study."""
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
                str(cost["exchanges"]) if cost and reached else f"not within {budget}",
                f"{cost['bytes'] / MEGABYTE:.2f}" if cost and reached else NONE,
                f"{cost['seconds']:.2f}" if cost and reached else NONE,
                percent(run["curve"][0]["accuracy"]),
                percent(run["best_accuracy"]),
                run["stopped"] + (", from the cache" if run["cached"] else ""),
            ]
        )
    return Table(head, rows, warn=warn)


def curve_table(curves: Mapping[str, Sequence[Curve]], axis: str) -> Table:
    """Return mean, least and greatest accuracy of every arm along a cost."""
    arms = [arm for arm, each in curves.items() if each]
    bands = {arm: found for arm in arms if (found := band(curves[arm], axis)) is not None}
    every = sorted({cost for found in bands.values() for cost in found.costs})
    if len(every) > CURVE_ROWS:
        step = (len(every) - 1) / (CURVE_ROWS - 1)
        every = [every[round(step * row)] for row in range(CURVE_ROWS)]
    rows = []
    for cost in every:
        cells = [f"{cost:.4g}"]
        for arm in arms:
            # A cell says what was known at this cost; nothing where a seed has ended already.
            found = bands.get(arm)
            at = None
            if found is not None and found.costs[0] <= cost <= found.costs[-1]:
                at = max(i for i, known in enumerate(found.costs) if known <= cost)
            if found is None or at is None:
                cells.append(NONE)
            else:
                low, mean, high = (percent(v[at]) for v in (found.low, found.mean, found.high))
                cells.append(mean if low == high else f"{mean} ({low} to {high})")
        rows.append(cells)
    return Table([axis, *arms], rows, note="Mean over seeds, least and greatest in brackets.")


def refused_table(results: Results) -> Table:
    """Return the silos' replies that were not used, and why; first who is not asked any more."""
    rows = [
        [
            *(run["arm"], str(run["seed"]), str(silo), str(last)),
            "quarantined: it failed too often and was not asked after this round",
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
    """Return what determined the study, as dotted keys, and the versions and machine."""
    resolved = {k: v for k, v in results.summary["resolved"].items() if k != "arms"}
    rows = [["study", key, value] for key, value in _flat(resolved)]
    for what in ("versions", "machine"):
        rows += [[what, key, value] for key, value in _flat(results.summary[what])]
    return Table(["of", "what", "value"], rows, prose=True)


def studies_table(all_results: Sequence[Results], verdicts: Sequence[str]) -> Table:
    """Return one row for each study, where several are shown together."""
    rows = []
    for results, sentence in zip(all_results, verdicts, strict=True):
        resolved = results.summary["resolved"]
        parts = resolved.get("partition", {})
        rows.append(
            [
                results.label,
                str(resolved.get("data", {}).get("source", NONE)),
                f"{parts.get('scheme', NONE)}, {parts.get('silos', NONE)} silos",
                str(len(results.seeds)),
                sentence,
            ]
        )
    return Table(["study", "data", "partition", "seeds", "verdict"], rows, prose=True)


def arms_table(all_results: Sequence[Results]) -> Table:
    """Return what each arm saves to each study's highest target against its first baseline."""
    arms = list(dict.fromkeys(arm for results in all_results for arm in results.arms))
    rows = []
    for results in all_results:
        target = max(results.targets)
        against = results.baselines[0] if results.baselines else NONE
        found = {row["arm"]: row for row in saving_rows(results, target, against)}
        cells = [saved(found[arm], short=True) if arm in found else NONE for arm in arms]
        rows.append([results.label, percent(target), against, *cells])
    return Table(["study", "target", "against", *arms], rows)


def clip(head: list[str], rows: list[list[str]]) -> Table:
    """Return a table of the first rows, and a note on how many were left out."""
    more = len(rows) - MAX_ROWS
    note = f"The first {MAX_ROWS} rows; {more} more are in summary.json." if more > 0 else ""
    return Table(head, rows[:MAX_ROWS], note=note)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", str(value)))
    return found
