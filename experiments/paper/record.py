"""Run a study and keep the figures that the claims need, small enough for the repository."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from experiments.paper import pairs
from experiments.paper.plan import Run
from fedkd.config.study_file import load_study
from fedkd.errors import FedKDError
from fedkd.federation.describe import describe
from fedkd.federation.federation import Federation
from fedkd.report.progress import StudyProgress
from fedkd.runner.run import run_study
from fedkd.util.cache import cache_root
from fedkd.util.files import write_json


def fingerprint(run: Run) -> str:
    """Identify the study file, but for its comments, and its overrides.

    A record of another study is out of date.
    """
    study = yaml.safe_load(run.path.read_text(encoding="utf-8"))
    text = json.dumps([study, *run.overrides], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_recorded(run: Run) -> bool:
    """Whether the figures of this very study are there."""
    return run.record.is_file() and json.loads(run.record.read_text())["study"] == fingerprint(run)


def record(run: Run) -> float:
    """Run one variant on every seed, write its record, and return its seconds of processor time.

    The time is that of this whole process since it began, so give every run a process.
    """
    # Bars of runs side by side would draw over one another; warnings still appear.
    console = Console(stderr=True, force_terminal=False)
    found = pairs.measure(run, console) if run.study == pairs.STUDY else _compare(run, console)
    seconds = round(time.process_time())
    write_json(run.record, {"study": fingerprint(run), "processor_seconds": seconds, **found})
    return seconds


def attempt(run: Run, outcome: Connection) -> None:
    """Record a run; send its seconds of processor time, or why it failed."""
    try:
        outcome.send(record(run))
    except FedKDError as error:
        outcome.send(f"failed: {error}")


def _compare(run: Run, console: Console) -> dict[str, Any]:
    study = load_study(run.path, run.overrides)
    with (
        tempfile.TemporaryDirectory() as scratch,
        StudyProgress(console, len(study.arms) * len(study.seeds)) as progress,
    ):
        outcome = run_study(study, out=Path(scratch), fresh=False, progress=progress)
    if outcome.interrupted:
        raise KeyboardInterrupt  # a part of a study is no record of it
    summary = outcome.summary
    return {
        "versions": summary["versions"],
        "processor": summary["machine"]["processor"],
        "targets": study.target_values,
        "federations": [
            {"seed": seed, **describe(Federation.load(study, seed, cache_root()))}
            for seed in study.seeds
        ],
        "failures": summary["failures"],
        "comparison": summary["comparison"],
        "runs": [_small(entry) for entry in summary["runs"]],
    }


def load(run: Run) -> dict[str, Any]:
    """Read a record."""
    found: dict[str, Any] = json.loads(run.record.read_text())
    return found


def _small(entry: dict[str, Any]) -> dict[str, Any]:
    """Keep what a claim may rest on of one run."""
    instruments, notes = entry["instruments"], entry["notes"]
    return {
        "arm": entry["arm"],
        "seed": entry["seed"],
        "stopped": entry["stopped"],
        "before": entry["exchanges_before_round_1"],
        "max_rounds": entry["max_rounds"],
        "accuracy": [round(point["accuracy"], 4) for point in entry["curve"]],
        "exchanges": [target["exchanges"] for target in entry["targets"]],
        "targets": [round(target["target"], 4) for target in entry["targets"]],
        "validation": notes.get("validation_accuracy"),
        "foreign": notes.get("foreign_share"),
        "student": {key: instruments["student"][key] for key in ("gain", "forgetting", "delta")}
        if "student" in instruments
        else None,
        "silos": [[silo["before"], silo["after"]] for silo in instruments.get("silos", [])],
    }
