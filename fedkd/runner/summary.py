"""``summary.json``: a study's runs, their comparison and the machine they ran on."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedkd.config import Study
from fedkd.federation.federation import Federation
from fedkd.federation.metric_check import constant_metrics
from fedkd.results.comparison import compare_arms
from fedkd.results.record import CUT_SHORT, RunRecord
from fedkd.results.schema import SCHEMA
from fedkd.util.cache import installed, processor
from fedkd.util.parallel import available_cores
from fedkd.version import VERSION


@dataclass(frozen=True)
class Failure:
    """A run that ended without a result, and why."""

    arm: str
    seed: int
    reason: str


def summarise(
    study: Study,
    federations: Sequence[Federation],
    records: Mapping[tuple[str, int], RunRecord],
    failures: Sequence[Failure],
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what ``summary.json`` holds."""
    order = [(arm, seed) for arm in study.arms for seed in study.seeds]
    ended = [records[key] for key in order if key in records]
    complete = [record for record in ended if record.stopped not in CUT_SHORT]
    failed = {(failure.arm, failure.seed) for failure in failures}
    failed |= {(record.arm, record.seed) for record in ended if record.stopped == "quorum"}
    constant = [
        (each.seed, constant_metrics(each.split.test.labels, each.split.num_classes))
        for each in federations
    ]
    return {
        "schema": SCHEMA,
        "study": study.name,
        "resolved": study.to_dict(),
        "versions": _versions(),
        "machine": {
            "platform": platform.platform(),
            "processor": processor(),
            "cores": available_cores(),
        },
        "runs": [run_entry(record) for record in ended],
        "comparison": compare_arms(
            complete, baselines=study.baselines, targets=study.target_values, failed=failed
        ),
        "failures": [vars(failure) for failure in failures],
        "warnings": list(warnings),
        "constant_accuracy": [
            {"seed": seed, "accuracy": values["accuracy"], "metrics": values}
            for seed, values in constant
        ],
        "classes": list(federations[0].split.classes),
        "silos": [row for federation in federations for row in federation.holdings()],
    }


def run_entry(record: RunRecord) -> dict[str, Any]:
    """Return a run as ``summary.json`` holds it."""
    accuracies = [point.accuracy for point in record.curve]
    return {
        "arm": record.arm,
        "seed": record.seed,
        "engine": record.engine,
        "cached": record.cached,
        "accuracy_source": record.accuracy_source,
        "stopped": record.stopped,
        "exchanges_before_round_1": record.exchanges_before_round_1,
        "max_rounds": record.max_rounds,
        "curve": [vars(point) for point in record.curve],
        "targets": [{"target": t, **record.cost(t)} for t in record.targets],
        "best_accuracy": max(accuracies),
        "final_accuracy": accuracies[-1],
        "quarantined": [vars(entry) for entry in record.quarantined],
        "notes": record.notes,
        "instruments": record.instruments,
        "silos_get": list(record.silos_get),
    }


def _versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "flwr", "flwr-datasets", "ray", "numpy", "scikit-learn")
    python = ".".join(str(part) for part in sys.version_info[:3])
    return {"fedkd": VERSION, "python": python, **installed(*packages)}
