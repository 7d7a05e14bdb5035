"""Which arms of a study were tuned by ``fedkd tune``, with how many trials and on which seeds."""

from __future__ import annotations

from typing import Any


def trial_cells(summary: dict[str, Any], arm: str) -> list[str]:
    """Return an arm's cell of the column ``trials``; no cell if no arm was tuned."""
    tuned = _tuned(summary)
    return [str(tuned[arm]["trials"]) if arm in tuned else "0"] if tuned else []


def trial_heads(summary: dict[str, Any]) -> list[str]:
    """Return the head of the column of :func:`trial_cells`; none if no arm was tuned."""
    return ["trials"] if _tuned(summary) else []


def tuning_lines(summary: dict[str, Any]) -> list[str]:
    """Return one sentence for each way in which arms were tuned, and what limits a comparison."""
    tuned = _tuned(summary)
    by_search: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for arm, search in tuned.items():
        by_search.setdefault((search["trials"], tuple(search["seeds"])), []).append(arm)
    lines = [
        f"Tuned on validation data with {trials} trials, seeds {', '.join(map(str, seeds))}: "
        f"{', '.join(arms)}."
        for (trials, seeds), arms in by_search.items()
    ]
    baselines = summary["resolved"].get("baselines", [])
    others = [arm for arm in tuned if arm not in baselines]
    untuned = [arm for arm in baselines if arm not in tuned]
    if others and untuned:
        lines.append(
            f"Warning: the baseline {', '.join(untuned)} was not tuned, unlike "
            f"{', '.join(others)}; a saving may come from tuning alone."
        )
    lines += [
        f"{arm}: the best value of {', '.join(search['at_edge'])} lies at the edge of the range "
        "that was searched."
        for arm, search in tuned.items()
        if search.get("at_edge")
    ]
    return lines


def _tuned(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    arms = summary["resolved"].get("arms", {})
    return {name: arm["tuned"] for name, arm in arms.items() if arm.get("tuned")}
