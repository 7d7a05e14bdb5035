"""Every claim and question of the seed work: what was measured, its range, and the verdict.

The verdict is computed from the records by the rule that stands in the claim's text.
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
from experiments.paper.plan import CENTRAL, SAME_LOSS, plan
from experiments.paper.rounds import cross_device, rounds_saved, silos_that_lose
from experiments.paper.starts import starts_tried
from experiments.paper.transfer_claims import teachers, transfer_size, transfer_type
from fedkd.util.files import write_text

CLAIMS: tuple[tuple[Callable[[Records], Finding], tuple[str, ...]], ...] = (
    (rounds_saved, (*SAME_LOSS, *SAME_LOSS.values())),
    (starts_tried, ("main-digits", "main-fashion")),
    (silos_that_lose, ("main-digits", "main-fashion")),
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
"""Every judge, and the studies that it needs."""


def write_results(path: Path) -> None:
    """Judge every claim whose studies are recorded and write the page."""
    records = Records()
    missing = {run.study for run in records.missing()}
    parts = [
        "# What the studies found",
        (
            "Written by `make paper` from the records in `results/`; nothing here is typed by hand. "
            "Accuracies are per cent on test images, mean over three seeds, where no other number is said, and in brackets the least and "
            "the greatest. Claims are those of arXiv 2402.14922 and of this project; each says the "
            "rule by which it is judged. Where the seed work's exact settings are not public, ours stand "
            f"in the study files. Records that name a processor were made on {_list(records.processors())}; on another processor an "
            "accuracy may differ by an image or a few, and by more where training hardly converges."
        ),
    ]
    for judge, studies in CLAIMS:
        if lacking := sorted(missing & set(studies)):
            title = judge.__name__.replace("_", " ")
            parts.append(f"*Not judged: {title}; {', '.join(lacking)} is not recorded in full.*")
            continue
        parts.append(render(judge(records)))
    write_text(path, "\n\n".join(parts) + "\n")


def _list(processors: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count} runs)" for name, count in processors.items())
