"""A row of the comparison in words: what an arm saves, for certain or as a bound."""

from __future__ import annotations

from typing import Any

from fedkd.results.folder import Results, percent

SIGNS = {"exact": "", "at_least": "at least ", "at_most": "at most "}
SHORT_SIGNS = {"exact": "", "at_least": "\u2265\u00a0", "at_most": "\u2264\u00a0"}
LOSSES = {"exact": "", "at_least": "at most ", "at_most": "at least "}
"""The bound of a saving, expressed for the loss."""
SPREADS = {
    "extremes": "by seed",
    "interval": "95\u00a0% interval",
    "bootstrap": "bootstrap interval, which covers less than 95\u00a0%,",
}
"""Kinds of ranges over seeds in words; a bootstrap in results of fedkd 0.1.0 alone."""
UNIT = "\u00a0%"
Row = dict[str, Any]


def is_defined(row: Row) -> bool:
    """Whether the saving is defined: no run failed, and not both sides missed the target."""
    return row["bound"] != "undefined" and row["exchanges_saved_pct"] is not None


def saved(row: Row, figure: str = "exchanges", *, short: bool = False) -> str:
    """Format a saving with its bound: ``at least 58.1 %``, or short ``\u2265 58.1 %``.

    If runs failed, how many did.
    """
    if failure := failed(row):
        return failure
    value = row[f"{figure}_saved_pct"]
    if value is None or row["bound"] == "undefined":
        return "undefined"
    return (SHORT_SIGNS if short else SIGNS)[row["bound"]] + percent(value / 100)


def failed(row: Row) -> str:
    """Return how many runs of either side failed; an empty string if none did."""
    counts = row["failed"]
    if not any(counts.values()):
        return ""
    side = "arm" if counts["arm"] else "baseline"
    of_baseline = "" if side == "arm" else f" of {row['baseline']}"
    return f"{counts[side]} run{'s' if counts[side] > 1 else ''}{of_baseline} failed"


def interval(row: Row) -> str:
    """Format the range over seeds; an empty string if there is none."""
    if not row["range"]:
        return ""
    low, high = (percent(value / 100, 0) for value in row["range"])
    return f"{low.removesuffix(UNIT)} to {high}"


def is_control(arm: str) -> bool:
    """Whether an arm is a control without the teachers' models."""
    return arm.startswith("control-")


def count(row: Row, side: str, *, short: bool = False) -> str:
    """Format the exchanges of a side.

    ``more than`` its budget if a run missed the target, ``at least`` if one started from a file.
    """
    sign = ""
    if row["reached"][side] < row["num_seeds"]:
        sign = ">" if short else "more than "
    elif row.get("uncharged", {}).get(side):
        sign = SHORT_SIGNS["at_least"] if short else SIGNS["at_least"]
    return f"{sign}{row['exchanges'][side]}"


def uncharged_arms(summary: dict[str, Any]) -> list[str]:
    """Return the arms with a run that started from a file, whose making is not counted."""
    runs = [run for run in summary["runs"] if isinstance(run["notes"].get("checkpoint"), dict)]
    return list(dict.fromkeys(r["arm"] for r in runs if r["notes"]["checkpoint"].get("uncharged")))


def reached_all(row: Row) -> bool:
    """Whether the arm reached the target on every seed, so that its saving is a certain one."""
    return bool(row["bound"] != "at_most")


def candidates(results: Results) -> list[str]:
    """Return the arms that the verdict ranks: those that consolidate, else all but baselines."""
    arms = results.summary["resolved"]["arms"]
    own = [a for a in arms if arms[a]["start"] == "consolidated" and not is_control(a)]
    return own or [a for a in arms if a not in results.baselines and not is_control(a)]


def against_strongest(results: Results, arm: str, target: float) -> Row | None:
    """Return the comparison with the baseline that needed the fewest exchanges per seed.

    One with a failed run is compared only if there is no other.
    """
    comparison: list[Row] = results.summary["comparison"]
    rows = [row for row in comparison if row["arm"] == arm and row["target"] == target]
    if not rows:
        return None
    return min(
        rows,
        key=lambda row: (
            row["failed"]["baseline"] > 0,
            row["exchanges"]["baseline"] / row["num_seeds"],
            -row["reached"]["baseline"],
        ),
    )


def failed_runs(results: Results) -> list[str]:
    """Return a phrase for every arm of which runs failed or stopped for want of silos."""
    summary = results.summary
    failures = [each["arm"] for each in summary["failures"]]
    failures += [run["arm"] for run in summary["runs"] if run["stopped"] == "quorum"]
    return [
        f"{failures.count(arm)} of {len(results.seeds)} runs of {arm} failed"
        for arm in results.arms
        if arm in failures
    ]


def enumerate_names(names: list[str]) -> str:
    """Return names as a phrase: ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
