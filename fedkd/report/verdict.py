"""The verdict of a study: one sentence with its interval, and the remarks that limit it."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedkd.registry import METRICS
from fedkd.report.remarks import remarks_on
from fedkd.report.savings import (
    LOSSES,
    SPREADS,
    Row,
    against_strongest,
    candidates,
    count,
    enumerate_names,
    failed_runs,
    interval,
    is_defined,
    reached_all,
    saved,
)
from fedkd.report.tables import share
from fedkd.results.folder import Results, percent
from fedkd.results.points import point_value


@dataclass(frozen=True)
class Verdict:
    """The conclusion of a study.

    Attributes:
        tone: ``good``, ``bad`` or ``open``.
        remarks: limits of the conclusion, most important first.
        tiles: headline figures: label, value, explanation.
        row: the comparison that the sentence is about, if any.
    """

    sentence: str
    tone: str
    remarks: list[str] = field(default_factory=list)
    tiles: list[tuple[str, str, str]] = field(default_factory=list)
    row: Row | None = None


def judge(results: Results) -> Verdict:
    """Return the verdict on the best consolidated arm against the strongest baseline.

    The verdict is on the highest target with a defined saving. Arms are ranked by what they save
    for certain: one that missed the target on some seed, and so saves at most a figure, comes after
    all that reached it. An arm with a failed run is not ranked. If no arm consolidates, all arms
    but the baselines are candidates.
    """
    row = _headline_row(results)
    if row is None:
        return Verdict(_no_verdict(results), "open", remarks_on(results, None))
    sentence, tone = _sentence(results, row)
    return Verdict(sentence, tone, remarks_on(results, row), _tiles(results, row), row)


def _headline_row(results: Results) -> Row | None:
    ranked = candidates(results)
    for target in sorted(results.targets, reverse=True):
        rows = [
            row
            for arm in ranked
            if (row := against_strongest(results, arm, target)) is not None and is_defined(row)
        ]
        if rows:
            return max(rows, key=lambda row: (reached_all(row), row["exchanges_saved_pct"]))
    return None


def _sentence(results: Results, row: Row) -> tuple[str, str]:
    arm, baseline, value = row["arm"], row["baseline"], row["exchanges_saved_pct"]
    goal = results.name_target(row["target"])
    seeds = f"{row['num_seeds']} seed{'s' if row['num_seeds'] > 1 else ''}"
    counts = f"{count(row, 'arm')} instead of {count(row, 'baseline')} over {seeds}"
    spread = _spread(row)
    low, high = row["range"] or (value, value)
    if value <= 0 and row["bound"] != "at_least" and not low <= 0 <= high:
        more = LOSSES[row["bound"]] + percent(-value / 100)
        text = f"No arm saves exchanges: to {goal} the best, {arm}, costs {more} more than"
        return f"{text} {baseline}, {counts}{spread}.", "bad"
    if low > 0 and row["bound"] == "at_most":
        text = f"{arm} saves {saved(row)} of the exchanges that {baseline} needs to {goal}; on some"
        return f"{text} seed it missed it: {counts}{spread}.", "open"
    if low > 0:
        text = f"{arm} saves {saved(row)} of the exchanges that {baseline} needs to {goal}:"
        return f"{text} {counts}{spread}.", "good"
    text = f"No clear saving: to {goal} {arm} saves {saved(row)} of the exchanges of {baseline},"
    return f"{text} {counts}{spread}.", "open"


def _spread(row: Row) -> str:
    ceiling = row["ceiling_pct"]
    best = f"; reaching it at the start would save {percent(ceiling / 100)}" if ceiling else ""
    if row["num_seeds"] < 2 or not row["range"]:
        return f" (one seed, so no range{best})"
    return f" ({SPREADS[row['range_kind']]} {interval(row)}{best})"


def _no_verdict(results: Results) -> str:
    if not results.summary["runs"]:
        return "No verdict: no run ended with a result."
    if not results.baselines:
        return "No verdict on savings: the study names no baseline."
    if not results.summary["comparison"]:
        return "No verdict: no arm and baseline both finished on the same seed."
    if failures := failed_runs(results):
        return f"No verdict: {enumerate_names(failures)}."
    goal = results.name_target(min(results.targets))
    return f"No verdict: even to {goal}, arms and baselines both missed the target on some seed."


def _tiles(results: Results, row: Row) -> list[tuple[str, str, str]]:
    against = f"against {row['baseline']}, to {percent(row['target'])}"
    tiles = [("Exchanges saved", _short(row, "exchanges"), against)]
    tiles.append(("Bytes saved", _short(row, "bytes"), against))
    if row["seconds_saved_pct"] is None:
        tiles.append(("Seconds saved", "\u2013", "not measured for cached runs"))
    else:
        tiles.append(("Seconds saved", _short(row, "seconds"), against))
    first, other = (_mean_start(results, arm) for arm in (row["arm"], row["baseline"]))
    name = METRICS[results.metric]
    start = f"{name[0].upper()}{name[1:]} at the start"
    tiles.append((start, first, f"{row['baseline']}: {other} (means)"))
    return tiles


def _mean_start(results: Results, arm: str) -> str:
    """Return an arm's mean metric before round 1, over the seeds on which it is known."""
    starts = [point_value(run["curve"][0], results.metric) for run in results.runs(arm)]
    known = [value for value in starts if value is not None]
    return share(sum(known) / len(known) if known else None)


def _short(row: Row, figure: str) -> str:
    return "\u2013" if row[f"{figure}_saved_pct"] is None else saved(row, figure, short=True)
