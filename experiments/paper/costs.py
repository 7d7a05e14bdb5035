"""The computing time of the studies."""

from __future__ import annotations

from experiments.paper.figures import Records
from experiments.paper.findings import Finding
from experiments.paper.plan import CENTRAL, Run, plan

CORES = 2
"""Number of cores for which the studies are sized."""
AGAINST_CENTRAL = (*CENTRAL, "one-exchange")
"""Studies on 50,000 images; the others have at most a tenth of that."""


def processor_time(records: Records) -> Finding:
    """Return the processor time of every study."""
    seconds: dict[str, list[float]] = {}
    runs = plan()
    for run in runs:
        seconds.setdefault(run.study, []).extend(_seconds(records, run))
    timed = sum(map(len, seconds.values()))
    minutes = {study: sum(each) / 60 for study, each in seconds.items()}
    total, against_central = sum(minutes.values()), sum(minutes[study] for study in AGAINST_CENTRAL)
    return Finding(
        "Computing time of the studies",
        "Minutes of processor time from an empty cache, without the search of settings; a study of "
        "which arms came from the cache is not timed. Runs that share silos or a baseline compute "
        "them once, in the first of these runs. No claim.",
        ("study", "runs", "timed", "minutes", "longest run"),
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
        f"{total:.0f} minutes on one core for {timed} of {len(runs)} runs; {total / CORES:.0f} on "
        f"{CORES} busy cores, {against_central / CORES:.0f} of them for the comparison of one "
        "exchange with centralized training.",
    )


def _seconds(records: Records, run: Run) -> list[float]:
    """Return the run's seconds; an empty list if its record has no time."""
    record = records.record(run.study, run.variant)
    return [record["processor_seconds"]] if "processor_seconds" in record else []
