"""The verdict of a study: one sentence with its interval, and the remarks that limit it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fedkd.report.chance import chance_remarks
from fedkd.results.comparison import BOOTSTRAP_SEEDS
from fedkd.results.folder import Results, percent

SIGNS = {"exact": "", "at_least": "at least ", "at_most": "at most "}
SHORT_SIGNS = {"exact": "", "at_least": "\u2265\u00a0", "at_most": "\u2264\u00a0"}
LOSSES = {"exact": "", "at_least": "at most ", "at_most": "at least "}
"""The bound of a saving, expressed for the loss."""
UNIT = "\u00a0%"
Row = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """The conclusion of a study.

    Attributes:
        sentence: the conclusion.
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

    The verdict is on the highest target with a defined saving. If no arm consolidates, all arms
    but the baselines are candidates.
    """
    row = _headline_row(results)
    if row is None:
        return Verdict(_no_verdict(results), "open", _remarks(results, None))
    sentence, tone = _sentence(results, row)
    return Verdict(sentence, tone, _remarks(results, row), _tiles(results, row), row)


def is_defined(row: Row) -> bool:
    """Whether the saving is defined; it is not if both sides missed the target."""
    return row["bound"] != "undefined" and row["exchanges_saved_pct"] is not None


def saved(row: Row, figure: str = "exchanges", *, short: bool = False) -> str:
    """Format a saving with its bound: ``at least 58.1 %``, or short ``\u2265 58.1 %``."""
    value = row[f"{figure}_saved_pct"]
    if value is None or row["bound"] == "undefined":
        return "undefined"
    return (SHORT_SIGNS if short else SIGNS)[row["bound"]] + percent(value / 100)


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
    """Format the exchanges of a side; ``more than`` its budget if a run missed the target."""
    missed = row["reached"][side] < row["num_seeds"]
    more = ">" if short else "more than "
    return f"{more if missed else ''}{row['exchanges'][side]}"


def _candidates(results: Results) -> list[str]:
    arms = results.summary["resolved"]["arms"]
    own = [a for a in arms if arms[a]["start"] == "consolidated" and not is_control(a)]
    return own or [a for a in arms if a not in results.baselines and not is_control(a)]


def _headline_row(results: Results) -> Row | None:
    candidates = _candidates(results)
    for target in sorted(results.targets, reverse=True):
        rows = [
            row
            for arm in candidates
            if (row := _against_strongest(results, arm, target)) is not None and is_defined(row)
        ]
        if rows:
            return max(rows, key=lambda row: row["exchanges_saved_pct"])
    return None


def _against_strongest(results: Results, arm: str, target: float) -> Row | None:
    """Return the comparison with the baseline that needed the fewest exchanges per seed."""
    comparison: list[Row] = results.summary["comparison"]
    rows = [row for row in comparison if row["arm"] == arm and row["target"] == target]
    if not rows:
        return None
    return min(
        rows,
        key=lambda row: (
            row["exchanges"]["baseline"] / row["num_seeds"],
            -row["reached"]["baseline"],
        ),
    )


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
    kind = "95 % interval" if row["num_seeds"] >= BOOTSTRAP_SEEDS else "by seed"
    return f" ({kind} {interval(row)}{best})"


def _no_verdict(results: Results) -> str:
    if not results.summary["runs"]:
        return "No verdict: no run ended with a result."
    if not results.baselines:
        return "No verdict on savings: the study names no baseline."
    if not results.summary["comparison"]:
        return "No verdict: no arm and baseline both finished on the same seed."
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
    starts = {
        arm: [run["curve"][0]["accuracy"] for run in results.runs(arm)]
        for arm in (row["arm"], row["baseline"])
    }
    first, other = (sum(values) / len(values) for values in starts.values())
    tiles.append(
        ("Accuracy at the start", percent(first), f"{row['baseline']}: {percent(other)} (means)")
    )
    return tiles


def _short(row: Row, figure: str) -> str:
    return "\u2013" if row[f"{figure}_saved_pct"] is None else saved(row, figure, short=True)


def _remarks(results: Results, headline: Row | None) -> list[str]:
    remarks = []
    if headline is not None:
        remarks += _about_headline(results, headline)
        remarks += _worse_arms(results, headline)
    remarks += chance_remarks(results)
    remarks += [f"{sentence}." for sentence in results.summary.get("warnings", [])]
    remarks += _about_runs(results)
    return remarks


def _about_headline(results: Results, headline: Row) -> list[str]:
    arm, target = headline["arm"], headline["target"]
    remarks = []
    skipped = [percent(t) for t in sorted(results.targets) if t > target]
    if skipped:
        remarks.append(f"No result for {_list(skipped)}: too many runs did not reach it.")
    for other in results.arms:
        row = _against_strongest(results, other, target) if is_control(other) else None
        if row is None or not is_defined(row):
            continue
        if row["exchanges_saved_pct"] >= headline["exchanges_saved_pct"]:
            remarks.append(
                f"The control {other}, without teachers' models, saves at least as much, "
                f"{saved(row)}: the saving of {arm} is not due to the teachers' models."
            )
        else:
            remarks.append(f"The control {other}, without teachers' models, saves {saved(row)}.")
    seconds = headline["seconds_saved_pct"]
    if seconds is not None and seconds < 0 < headline["exchanges_saved_pct"]:
        remarks.append(
            f"It takes {LOSSES[headline['bound']]}{percent(-seconds / 100)} more seconds: "
            "simulated silos reply immediately, while distillation takes time. Fewer exchanges "
            "save time if each one waits for a network."
        )
    candidates = _candidates(results)
    if len(candidates) > 1:
        remarks.append(
            f"{arm} is the best of {len(candidates)} arms, selected on these results; the interval "
            "does not account for that selection."
        )
    for other_target in sorted(results.targets):
        row = _against_strongest(results, arm, other_target)
        if other_target < target and row is not None:
            spread = f" ({interval(row)})" if interval(row) else ""
            remarks.append(
                f"To {results.name_target(other_target)}, {arm} saves {saved(row)}{spread} "
                f"against {row['baseline']}."
            )
    if 1 < headline["num_seeds"] < BOOTSTRAP_SEEDS:
        remarks.append(
            f"With {headline['num_seeds']} seeds the range is minimum to maximum; a confidence "
            f"interval needs at least {BOOTSTRAP_SEEDS} seeds."
        )
    return remarks


def _worse_arms(results: Results, headline: Row) -> list[str]:
    target, baseline = headline["target"], headline["baseline"]
    rows = [
        row
        for row in results.summary["comparison"]
        if row["target"] == target
        and row["baseline"] == baseline
        and row["arm"] not in results.baselines[: results.baselines.index(baseline)]
    ]
    worse = [
        f"{row['arm']} ({LOSSES[row['bound']]}{percent(-row['exchanges_saved_pct'] / 100)} more)"
        for row in rows
        if is_defined(row) and row["exchanges_saved_pct"] < 0
    ]
    unknown = [row["arm"] for row in rows if row["bound"] == "undefined"]
    goal = percent(target)
    remarks = [f"More exchanges than {baseline} to {goal}: {_list(worse)}."] if worse else []
    if unknown:
        remarks.append(
            f"Not comparable with {baseline} to {goal}, because both missed it on some seed: "
            f"{_list(unknown)}."
        )
    return remarks


def _about_runs(results: Results) -> list[str]:
    runs, failures = results.summary["runs"], results.summary["failures"]
    remarks = []
    missing = len(results.arms) * len(results.seeds) - len(runs) - len(failures)
    interrupted = sum(run["stopped"] == "interrupted" for run in runs)
    if missing or interrupted:
        remarks.append(
            f"The study was interrupted; unfinished runs: {missing + interrupted}. Resume it with "
            "fedkd compare --resume FOLDER."
        )
    if stopped_early := sum(run["stopped"] == "quorum" for run in runs):
        remarks.append(
            f"Runs that stopped because too few silos replied: {stopped_early}. They are excluded "
            "from comparisons; fedkd compare --resume continues them once the silos are back."
        )
    if failures:
        remarks.append(f"Runs that failed: {len(failures)}, listed under Runs.")
    if refused := sum(len(run["quarantined"]) for run in runs):
        remarks.append(f"Replies of silos refused or missing: {refused}, listed under Refused.")
    if with_fallback := sorted({run["arm"] for run in runs if run["notes"].get("fallback")}):
        remarks.append(f"A fallback weighting was used in {_list(with_fallback)}.")
    warnings = {(run["arm"], run["notes"]["warning"]) for run in runs if "warning" in run["notes"]}
    remarks += [f"{arm}, on some seed: {warning}." for arm, warning in sorted(warnings)]
    if excluded := sorted({run["arm"] for run in runs if run["notes"].get("doubted")}):
        remarks.append(
            f"Contradicted teachers were excluded in {_list(excluded)}; summary.json lists them."
        )
    if any(run["accuracy_source"] == "silos" for run in runs):
        remarks.append("Accuracies are those that the silos reported on their own data.")
    return remarks


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
