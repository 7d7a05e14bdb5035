"""What the studies cost to run."""

from __future__ import annotations

from experiments.paper.figures import Records
from experiments.paper.findings import Finding
from experiments.paper.plan import plan


def processor_time(records: Records) -> Finding:
    """How long every study occupied a core."""
    minutes: dict[str, list[float]] = {}
    for run in plan():
        seconds = records.record(run.study, run.variant)["processor_seconds"]
        minutes.setdefault(run.study, []).append(seconds / 60)
    total = sum(map(sum, minutes.values()))
    return Finding(
        "What the studies cost",
        "Minutes of processor time, the choice of recipes apart, from an empty cache; runs that "
        "share silos pre-train them once, so that the first of them pays. No claim.",
        ("study", "runs", "minutes", "the longest run"),
        [
            (study, str(len(each)), f"{sum(each):.1f}", f"{max(each):.1f}")
            for study, each in minutes.items()
        ],
        f"{total:.0f} minutes of one core in all.",
    )
