"""The claims and questions of the reference paper: measurements, ranges and verdicts.

The verdict is computed from the records by the rule in the claim's text.
"""

# ruff: noqa: E501 -- the page is prose

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from experiments.paper.consolidation_claims import (
    learning_and_forgetting,
    methods,
    mutual,
    student,
    supervised_dp,
    tuned_against_default,
    weighting,
)
from experiments.paper.costs import processor_time
from experiments.paper.exchange_claims import one_exchange
from experiments.paper.figures import Records
from experiments.paper.findings import Finding, render
from experiments.paper.pair_claims import good_teacher, when_tuning_matters
from experiments.paper.plan import CENTRAL, TUNED, plan
from experiments.paper.rounds import cross_device, rounds_saved, silos_that_lose
from experiments.paper.transfer_claims import teachers, transfer_size, transfer_type
from fedkd.util.files import write_text

CLAIMS: tuple[tuple[Callable[[Records], Finding], tuple[str, ...]], ...] = (
    (rounds_saved, tuple(each.name for each in TUNED)),
    (silos_that_lose, tuple(each.name for each in TUNED)),
    (methods, ("labelled-digits",)),
    (tuned_against_default, ("labelled-digits", "start-digits")),
    (when_tuning_matters, ("pairs-digits",)),
    (good_teacher, ("pairs-digits",)),
    (supervised_dp, ("labelled-digits", "start-digits")),
    (mutual, ("start-digits",)),
    (learning_and_forgetting, ("labelled-digits", "start-digits")),
    (weighting, ("start-digits",)),
    (student, ("start-digits",)),
    (transfer_size, ("transfer-digits",)),
    (transfer_type, ("transfer-digits",)),
    (teachers, ("transfer-digits",)),
    (one_exchange, (*CENTRAL, "one-exchange")),
    (cross_device, ("cross-device",)),
    (processor_time, tuple(dict.fromkeys(run.study for run in plan()))),
)
"""The functions that evaluate a claim, with the studies that each needs."""


def write_results(path: Path) -> None:
    """Evaluate every claim whose studies are recorded, and write the page."""
    records = Records()
    missing = {run.study for run in records.missing()}
    parts = [
        "# Results of the studies",
        (
            "Written by `make paper` from the records in `results/`; nothing is edited by hand. "
            "Accuracies are in per cent on test images: mean over five seeds unless stated otherwise, minimum and maximum in brackets. "
            "Claims are those of the reference paper (arXiv 2402.14922) and of this project; each states the "
            "rule by which it is evaluated. If the paper's exact settings are not public, the study files "
            f"contain ours. Records that name a processor were made on {_list(records.processors())}; on another processor an "
            "accuracy may differ by a few images, and by more if training hardly converges."
        ),
        *_outdated(records),
    ]
    for evaluate, studies in CLAIMS:
        if unrecorded := sorted(missing & set(studies)):
            title = evaluate.__name__.replace("_", " ")
            parts.append(
                f"*Not evaluated: {title}; {', '.join(unrecorded)} is not recorded in full.*"
            )
            continue
        parts.append(render(evaluate(records)))
    write_text(path, "\n\n".join(parts) + "\n")


def _outdated(records: Records) -> list[str]:
    """Return a paragraph on records that are not of this version of the studies, if any are."""
    versions = records.outdated()
    if not versions:
        return []
    paragraph = f"**Not of this version: {sum(versions.values())} records, made by fedkd {_list(versions)}.** `make paper` records anew."
    return [paragraph]


def _list(processors: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count} runs)" for name, count in processors.items())
