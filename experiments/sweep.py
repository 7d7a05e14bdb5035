"""Tune the learning rate of the rounds for plain FedAvg, on validation data.

Savings must not come from an untuned baseline. This sweep runs one arm at every learning rate and
seed, and evaluates every round on the validation images instead of the test images. Rates are
ranked by the exchanges to the study's targets, summed over seeds and targets; an unreached target
counts with the whole budget. Ties go to the higher mean of the best accuracies.

    python -m experiments.sweep experiments/quickstart.yaml
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedkd.config import RelativeTargets, Study
from fedkd.config.study_file import load_study
from fedkd.engines.base import Task
from fedkd.engines.inline import InlineEngine
from fedkd.errors import FedKDError
from fedkd.federation.federation import Federation
from fedkd.federation.thread_pool import silo_pool
from fedkd.results.record import Point, RunRecord
from fedkd.util.cache import cache_root, check_cache_root
from fedkd.util.files import write_json

RATES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


class NullObserver:
    """An observer that does nothing."""

    def on_point(self, point: Point) -> None:
        """Do nothing."""

    def on_distillation(self, epoch: int, epochs: int) -> None:
        """Do nothing."""


def sweep(study_path: Path, rates: list[float], arm: str, overrides: list[str]) -> dict[str, Any]:
    """Run ``arm`` at every rate and return the ranking, best first."""
    study = load_study(study_path, overrides)
    if isinstance(study.targets, RelativeTargets):
        raise FedKDError(f"{study_path}: a sweep needs absolute targets; give --set targets=[...]")
    if study.data.validation == 0:
        raise FedKDError(f"{study_path}: a sweep needs validation images, but data.validation is 0")
    check_cache_root()
    cache = cache_root()
    federations = [
        evaluated_on_validation(Federation.load(study, seed, cache)) for seed in study.seeds
    ]
    entries = []
    for rate in rates:
        trial = load_study(study_path, [*overrides, f"arms.{arm}.rounds.lr={rate}"])
        entries.append(_entry(rate, _runs(trial, federations, arm), list(study.target_values)))
        print(f"lr {rate:g}: {entries[-1]['exchanges_sum']} exchanges", file=sys.stderr)  # noqa: T201 -- a script
    entries.sort(key=lambda entry: (entry["exchanges_sum"], -entry["best_accuracy_mean"]))
    return {
        "study": study.name,
        "arm": arm,
        "measured_on": "validation",
        "seeds": study.seeds,
        "targets": study.target_values,
        "max_rounds": study.rounds_of(arm).max,
        "momentum": study.rounds_of(arm).momentum,
        "best_lr": entries[0]["lr"],
        "sweep": entries,
    }


def evaluated_on_validation(federation: Federation) -> Federation:
    """Return the federation with its validation images as test images."""
    split = replace(federation.split, test=federation.split.validation)
    return Federation(federation.study, federation.seed, split, federation.cache)


def _runs(study: Study, federations: list[Federation], arm: str) -> list[RunRecord]:
    records = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        silo_pool(study) as pool,
        InlineEngine(pool) as engine,
    ):
        for federation in federations:
            own = Federation(study, federation.seed, federation.split, federation.cache)
            folder = Path(scratch) / str(federation.seed)
            engine.run(Task(own, arm, tuple(study.target_values), folder), NullObserver())
            records.append(RunRecord.read(folder))
    return records


def _entry(rate: float, records: list[RunRecord], targets: list[float]) -> dict[str, Any]:
    exchanges = {
        f"{target:g}": [record.cost(target)["exchanges"] for record in records]
        for target in targets
    }
    total = sum(
        record.budget if spent is None else spent
        for spents in exchanges.values()
        for record, spent in zip(records, spents, strict=True)
    )
    best = [max(point.accuracy for point in record.curve) for record in records]
    return {
        "lr": rate,
        "exchanges_sum": total,
        "exchanges": exchanges,
        "stopped": [record.stopped for record in records],
        "best_accuracy_mean": round(sum(best) / len(best), 6),
    }


def main() -> None:
    """Sweep one study and write ``<sweeps>/<study>.json`` beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--arm", default="fedavg")
    parser.add_argument("--lr", default=",".join(f"{rate:g}" for rate in RATES))
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    parser.add_argument("--out", type=Path, default=Path("experiments/sweeps"))
    arguments = parser.parse_args()
    rates = [float(part) for part in arguments.lr.split(",")]
    try:
        result = sweep(arguments.study, rates, arguments.arm, arguments.set)
    except FedKDError as error:
        sys.exit(f"sweep: {error}")
    path = arguments.out / f"{result['study']}-{arguments.arm}.json"
    write_json(path, result)
    print(f"best lr {result['best_lr']:g}, written to {path}")  # noqa: T201 -- a script


if __name__ == "__main__":
    main()
