"""Run a study and record the figures that the claims need."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from functools import lru_cache
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
from fedkd.federation.split import SPLIT_RULE
from fedkd.report.progress import StudyProgress
from fedkd.runner.run import run_study
from fedkd.util.cache import cache_root
from fedkd.util.files import write_json


def fingerprint(run: Run) -> str:
    """Return a hash of the study file, without comments, of its overrides and of the split rule.

    A record with another fingerprint is out of date. Seed 0 is split alike by both rules.
    """
    study = _read(run.path)
    rule = [] if study["seeds"] == [0] else [{"split rule": SPLIT_RULE}]
    text = json.dumps([study, *run.overrides, *rule], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache
def _read(study: Path) -> Any:
    """Read a study file once, for all runs of its variants."""
    return yaml.safe_load(study.read_text(encoding="utf-8"))


def is_recorded(run: Run) -> bool:
    """Whether there is an up-to-date record of this run."""
    return run.record.is_file() and json.loads(run.record.read_text())["study"] == fingerprint(run)


def record(run: Run) -> float:
    """Run one variant on every seed, write its record, and return its seconds of processor time.

    The time is that of the whole process, so every run needs a process of its own. It is not
    recorded where arms came from the cache.
    """
    # Progress bars of parallel runs would overwrite each other; warnings still appear.
    console = Console(stderr=True, force_terminal=False)
    figures = pairs.measure(run, console) if run.study == pairs.STUDY else _run_study(run, console)
    seconds = round(time.process_time())
    timed = {} if figures.pop("cached", False) else {"processor_seconds": seconds}
    write_json(run.record, {"study": fingerprint(run), **timed, **figures})
    return seconds


def attempt(run: Run, outcome: Connection) -> None:
    """Record a run; send its seconds of processor time, or the reason of its failure."""
    try:
        outcome.send(record(run))
    except FedKDError as error:
        outcome.send(f"failed: {error}")


def _run_study(run: Run, console: Console) -> dict[str, Any]:
    study = load_study(run.path, run.overrides)
    with (
        tempfile.TemporaryDirectory() as scratch,
        StudyProgress(console, len(study.arms) * len(study.seeds)) as progress,
    ):
        outcome = run_study(study, out=Path(scratch), fresh=False, progress=progress)
    if outcome.interrupted:
        raise KeyboardInterrupt  # an incomplete study is not recorded
    summary = outcome.summary
    return {
        "versions": summary["versions"],
        "processor": summary["machine"]["processor"],
        "targets": study.target_values,
        "federations": [
            {"seed": seed, **describe(Federation.load(study, seed, cache_root()))}
            for seed in study.seeds
        ],
        "tuned": {name: arm.tuned.model_dump() for name, arm in study.arms.items() if arm.tuned},
        "cached": any(entry["cached"] for entry in summary["runs"]),
        "failures": summary["failures"],
        "comparison": summary["comparison"],
        "runs": [_small(entry) for entry in summary["runs"]],
    }


def load(run: Run) -> dict[str, Any]:
    """Read a record."""
    figures: dict[str, Any] = json.loads(run.record.read_text())
    return figures


def _small(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of one run that the claims use."""
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
