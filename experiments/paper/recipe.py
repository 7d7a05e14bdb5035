"""Choose how FedKD and the average start train on, on validation data alone, as FedAvg's rate was.

For every partition and initialisation each candidate runs on seeds that no claim is judged on, its
rounds measured on the validation images. The fewest exchanges to 90, 95 and 99 % of plain FedAvg's
best accuracy there win, an unreached target counted with the whole budget; ties go to the higher
mean accuracy over the curve's first five points. Where a start needs no round, that leaves the
rounds open: then the gentlest, listed first, is taken, as it disturbs what was learnt least.

`make paper` calls it where a cell has no recipe; delete its entry in `recipes/` to choose again.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.engines.base import Task
from experiments.engines.inline import InlineEngine, silo_pool
from experiments.paper.plan import FOLDER, INITS, PARTITIONS, RATES, overrides, partition
from experiments.sweep import Silent, judged_on_validation
from fedkd.cache import cache_root
from fedkd.errors import FedKDError
from fedkd.federation import Federation
from fedkd.files import write_json
from fedkd.results import RunRecord
from fedkd.study import RelativeTargets, Study
from fedkd.study_file import load_study

SEEDS = {"main-digits": (10, 11), "main-fashion": (10,)}
"""Digits leave few validation images, so that one seed would decide by chance."""

ARMS = ("fedkd", "fedavg-average")
DENSITIES = ("gaussian", "knn")
LOSSES = ("logit-adjusted", "cross-entropy")
PARTS = (0.25, 1.0)
"""Shares of plain FedAvg's tuned learning rate at which a model that knows something trains on."""


def candidates(arm: str, rate: float) -> list[dict[str, Any]]:
    """Return what may be chosen for an arm, the gentlest first."""
    rounds = [
        {"rounds.local_loss": loss, "rounds.lr": round(rate * part, 6)}
        for loss, part in itertools.product(LOSSES, PARTS)
    ]
    if arm != "fedkd":
        return rounds
    key = "consolidation.familiarity.density"
    return [{key: kind, **settings} for kind, settings in itertools.product(DENSITIES, rounds)]


def choose(study_name: str, name: str, init: str) -> dict[str, Any]:
    """Run all candidates of one cell; return the best and what each needed."""
    rate = RATES[study_name][name]
    common = (partition(name), f"pretraining.init={init}", f"rounds.lr={rate}")
    path = FOLDER / f"{study_name}.yaml"
    seeds = SEEDS[study_name]
    fixed = (*common, f"seeds={json.dumps(seeds)}")
    study = load_study(path, [*fixed, "rounds.stop=budget"])
    if not isinstance(study.targets, RelativeTargets):
        raise FedKDError(f"{path}: the recipe needs targets: of_baseline_best")
    federations = [
        judged_on_validation(Federation.load(study, seed, cache_root())) for seed in seeds
    ]
    with silo_pool(study) as pool:
        for federation in federations:
            federation.pretrain(pool, fresh=False, on_silo=_ignore)
        base = _runs(study, federations, study.baselines[0], [()] * len(seeds), pool)
        best = [max(point.accuracy for point in record.curve) for record in base]
        targets = [tuple(f * top for f in study.targets.of_baseline_best) for top in best]
        chosen: dict[str, Any] = {"baseline": _score(base, targets)}
        for arm in ARMS:
            tried = []
            for settings in candidates(arm, rate):
                trial = load_study(path, [*fixed, *overrides(arm, settings)])
                records = _runs(trial, federations, arm, targets, pool)
                tried.append({"settings": settings, **_score(records)})
            tried.sort(key=lambda entry: (entry["exchanges"], -entry["early_accuracy"]))
            chosen[arm] = {"chosen": tried[0]["settings"], "tried": tried}
    return chosen


def _runs(
    study: Study,
    federations: Sequence[Federation],
    arm: str,
    targets: Sequence[tuple[float, ...]],
    pool: ThreadPoolExecutor,
) -> list[RunRecord]:
    records = []
    with tempfile.TemporaryDirectory() as scratch, InlineEngine(pool) as engine:
        for federation, aims in zip(federations, targets, strict=True):
            own = Federation(study, federation.seed, federation.cut, federation.cache)
            folder = Path(scratch) / str(federation.seed)
            engine.run(Task(own, arm, aims, folder), Silent())
            records.append(RunRecord.read(folder))
    return records


def _score(
    records: Sequence[RunRecord], targets: Sequence[tuple[float, ...]] | None = None
) -> dict[str, Any]:
    if targets:
        records = [replace(r, targets=aims) for r, aims in zip(records, targets, strict=True)]
    spent = [[record.cost(aim)["exchanges"] for aim in record.targets] for record in records]
    early = [point.accuracy for record in records for point in record.curve[:5]]
    return {
        "exchanges": sum(
            record.budget if cost is None else cost
            for record, costs in zip(records, spent, strict=True)
            for cost in costs
        ),
        "spent": spent,
        "early_accuracy": round(sum(early) / len(early), 4),
        "start": [round(record.curve[0].accuracy, 4) for record in records],
    }


def _ignore(*_: object) -> None:
    """Say nothing of a pre-trained silo."""


def choose_missing(study_name: str) -> None:
    """Choose for every cell of a study that has no recipe yet; write ``recipes/<study>.json``."""
    path = FOLDER / "recipes" / f"{study_name}.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    for name, init in itertools.product(PARTITIONS, INITS):
        if f"{name}.{init}" in found:
            continue
        cell = choose(study_name, name, init)
        found[f"{name}.{init}"] = cell
        print(f"{study_name}, {name}, {init}: {cell['fedkd']['chosen']}", file=sys.stderr)  # noqa: T201 -- a script
        write_json(path, found)
