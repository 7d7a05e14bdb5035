"""The main experiment of the reference paper: distillation between all pairs of silos."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.paper.plan import Run
from fedkd.config.study_file import load_study
from fedkd.federation.thread_pool import silo_pool
from fedkd.pairs.command import measure_pairs
from fedkd.report.progress import PairsProgress

STUDY = "pairs-digits"
COLUMNS = (
    "seed",
    "teacher",
    "student",
    "method",
    "before",
    "gap",
    "gain",
    "forgetting",
    "delta",
    "complementary",
    "label_distance",
)
"""Columns of the table of ``fedkd pairs`` that the claims need."""


def measure(run: Run, console: Console) -> dict[str, Any]:
    """Measure all pairs of a variant and return the columns that the claims need."""
    study = load_study(run.path, run.overrides)
    with (
        tempfile.TemporaryDirectory() as scratch,
        silo_pool(study) as pool,
        PairsProgress(console) as progress,
    ):
        measured = measure_pairs(study, out=Path(scratch), pool=pool, progress=progress)
    if measured.interrupted:
        raise KeyboardInterrupt  # an incomplete table is not recorded
    rows = [[row[key] for key in COLUMNS] for row in measured.results["rows"]]
    return {"columns": COLUMNS, "rows": rows}
