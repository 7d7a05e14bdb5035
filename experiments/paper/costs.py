"""What the studies cost to run."""

from __future__ import annotations

from experiments.paper.figures import Records
from experiments.paper.findings import Finding
from experiments.paper.plan import CENTRAL, Run, plan

CORES = 2
"""The studies are sized for so many."""
AGAINST_CENTRAL = (*CENTRAL, "one-exchange")
"""On fifty thousand images, the others on a tenth or less of that."""


def processor_time(records: Records) -> Finding:
    """How long every study occupied a core."""
    seconds: dict[str, list[float]] = {}
    runs = plan()
    for run in runs:
        seconds.setdefault(run.study, []).extend(_seconds(records, run))
    timed = sum(map(len, seconds.values()))
    minutes = {study: sum(each) / 60 for study, each in seconds.items()}
    total, beside = sum(minutes.values()), sum(minutes[study] for study in AGAINST_CENTRAL)
    return Finding(
        "What the studies cost",
        "Minutes of processor time, the choice of recipes apart, from an empty cache. Runs that "
        "share silos or a baseline compute them once, so that the first of them pays. No claim.",
        ("study", "runs", "of them timed", "minutes", "the longest run"),
        [
            (
                study,
                str(sum(run.study == study for run in runs)),
                str(len(each)),
                f"{minutes[study]:.1f}" if each else "-",
                f"{max(each) / 60:.1f}" if each else "-",
            )
            for study, each in seconds.items()
        ],
        f"{total:.0f} minutes of one core for {timed} of {len(runs)} runs; {total / CORES:.0f} on "
        f"{CORES} cores that never wait, {beside / CORES:.0f} of them for comparing one exchange "
        "with central training.",
    )


def _seconds(records: Records, run: Run) -> list[float]:
    """Return what a run took; nothing if it was recorded before runs were timed."""
    record = records.record(run.study, run.variant)
    return [record["processor_seconds"]] if "processor_seconds" in record else []
