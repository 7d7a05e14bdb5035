"""Choose the settings of FedKD and of the averaged start on validation data alone.

FedAvg's learning rate was chosen on validation data, too. For every partition and initialisation
the candidates run on seeds on which no claim is evaluated, and are compared on validation images:

1. FedKD's start: student and density together (pooled densities with their settings), then mixup
   unless there are mixed inputs; by the highest accuracy before any round.
2. The rounds of either arm: learning rate, then local loss; by the fewest exchanges to 90, 95 and
   99 % of plain FedAvg's best accuracy. An unreached target counts with the whole budget; ties go
   to the higher mean accuracy over the first five points of the curve. If the start reaches all
   targets on every seed, the first candidate, with the smallest learning rate, is taken.

`make paper` runs it for cells without a recipe; delete a recipe in `recipes/` to choose it again.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.paper.plan import (
    DENSITIES,
    FOLDER,
    INITS,
    PARTITIONS,
    RATES,
    STUDENTS,
    overrides,
    partition,
    recipes,
)
from fedkd.config import RelativeTargets
from fedkd.config.study_file import load_study
from fedkd.engines.base import Task
from fedkd.engines.inline import InlineEngine
from fedkd.errors import FedKDError
from fedkd.federation.federation import Federation
from fedkd.federation.thread_pool import silo_pool
from fedkd.results.record import RunRecord
from fedkd.runner.trial import NullObserver, evaluated_on_validation
from fedkd.util.cache import cache_root
from fedkd.util.files import write_json

SEEDS = {"main-digits": (10, 11, 12), "main-fashion": (10, 11)}
"""More than one, to reduce noise; three for digits, which has few validation images."""

ARMS = ("fedkd", "fedavg-average")
LOSSES = ("logit-adjusted", "cross-entropy")
PARTS = (0.25, 0.5, 1.0)
"""Candidate learning rates after a trained start, as shares of plain FedAvg's tuned rate."""

_Settings = dict[str, Any]


@dataclass(frozen=True)
class _Trials:
    """Runs arms of one cell on its seeds.

    Attributes:
        path: the study file.
        fixed: overrides that all runs of the cell share.
        federations: one per seed, evaluated on validation images.
        pool: threads on which silos train.
    """

    path: Path
    fixed: tuple[str, ...]
    federations: Sequence[Federation]
    pool: ThreadPoolExecutor

    def run(
        self, arm: str, settings: Mapping[str, Any], targets: Sequence[tuple[float, ...]]
    ) -> list[RunRecord]:
        """Return the record of every seed, run until its targets are reached."""
        study = load_study(self.path, [*self.fixed, *overrides(arm, settings)])
        records = []
        with tempfile.TemporaryDirectory() as scratch, InlineEngine(self.pool) as engine:
            for federation, seed_targets in zip(self.federations, targets, strict=True):
                own = Federation(study, federation.seed, federation.split, federation.cache)
                folder = Path(scratch) / str(federation.seed)
                engine.run(Task(own, arm, seed_targets, folder), NullObserver())
                records.append(RunRecord.read(folder))
        return records


def choose(
    study_name: str, name: str, known: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Run the candidates of one partition; return the recipes and all scores by initialisation.

    Args:
        study_name: the study.
        name: the partition.
        known: existing recipes, by initialisation; they are not chosen again.
    """
    rate = RATES[study_name][name]
    path = FOLDER / f"{study_name}.yaml"
    seeds = SEEDS[study_name]
    common = (partition(name), f"rounds.lr={rate}", f"seeds={json.dumps(seeds)}")
    study = load_study(path, common)
    if not isinstance(study.targets, RelativeTargets):
        raise FedKDError(f"{path}: the recipe needs targets: of_baseline_best")
    chosen = {}
    with silo_pool(study) as pool:
        cells = [_cell(path, (*common, f"pretraining.init={init}"), pool) for init in INITS]
        # A random start does not depend on pre-training: both initialisations share the baseline.
        base = _Trials(path, (*common, "rounds.stop=budget"), cells[0].federations, pool).run(
            study.baselines[0], {}, [()] * len(seeds)
        )
        best = [max(point.accuracy for point in record.curve) for record in base]
        targets = [tuple(f * top for f in study.targets.of_baseline_best) for top in best]
        with_targets = [
            replace(r, targets=seed_targets) for r, seed_targets in zip(base, targets, strict=True)
        ]
        for init, trials in zip(INITS, cells, strict=True):
            chosen[init] = {"baseline": _score(with_targets), **known.get(init, {})}
            for arm in ARMS:
                if arm not in chosen[init]:
                    start = _start(trials) if arm == "fedkd" else ({}, [])
                    chosen[init][arm] = _rounds(trials, arm, start, rate, targets)
    return chosen


def _cell(path: Path, fixed: tuple[str, ...], pool: ThreadPoolExecutor) -> _Trials:
    study = load_study(path, fixed)
    federations = [Federation.load(study, seed, cache_root()) for seed in study.seeds]
    for federation in federations:
        federation.pretrain(pool, fresh=False, on_silo=_do_nothing)
    return _Trials(path, fixed, [evaluated_on_validation(f) for f in federations], pool)


def _start(trials: _Trials) -> tuple[_Settings, list[dict[str, Any]]]:
    """Return the settings with the best start, and all candidates."""
    tried = [
        _try_start(trials, {"consolidation.student": who, **density})
        for who in STUDENTS
        for density in DENSITIES.values()
    ]
    best = _best_start(tried)
    if "consolidation.mixed_inputs" not in best:
        tried.append(_try_start(trials, {**best, "consolidation.mixup": True}))
    return _best_start(tried), tried


def _try_start(trials: _Trials, settings: _Settings) -> dict[str, Any]:
    at_once = [(0.0,)] * len(trials.federations)
    records = trials.run("fedkd", settings, at_once)
    return {"settings": settings, "start": [round(r.curve[0].accuracy, 4) for r in records]}


def _best_start(tried: Sequence[dict[str, Any]]) -> _Settings:
    best: _Settings = max(tried, key=lambda entry: sum(entry["start"]))["settings"]
    return best


def _rounds(
    trials: _Trials,
    arm: str,
    start: tuple[_Settings, list[dict[str, Any]]],
    rate: float,
    targets: Sequence[tuple[float, ...]],
) -> dict[str, Any]:
    """Return the best settings of the rounds after the start, and all candidates."""
    settings, starts = start

    def trial(loss: str, part: float) -> dict[str, Any]:
        own = {**settings, "rounds.local_loss": loss, "rounds.lr": round(rate * part, 6)}
        return {"settings": own, **_score(trials.run(arm, own, targets))}

    tried = [trial(LOSSES[0], PARTS[0])]
    if tried[0]["exchanges"] > sum(map(len, targets)):
        tried += [trial(LOSSES[0], part) for part in PARTS[1:]]
        best = _fewest(tried)["settings"]["rounds.lr"]
        tried += [trial(loss, best / rate) for loss in LOSSES[1:]]
    return {"chosen": _fewest(tried)["settings"], "starts": starts, "tried": tried}


def _fewest(tried: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return min(tried, key=lambda entry: (entry["exchanges"], -entry["early_accuracy"]))


def _score(records: Sequence[RunRecord]) -> dict[str, Any]:
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


def _do_nothing(*_: object) -> None:
    """Do nothing after the pre-training of a silo."""


def choose_missing(study_name: str) -> None:
    """Choose recipes for all cells without one; write ``recipes/<study>.json``."""
    path = FOLDER / "recipes" / f"{study_name}.json"
    all_recipes = recipes(study_name)
    for name in PARTITIONS:
        known = {init: all_recipes.get(f"{name}.{init}", {}) for init in INITS}
        if all(arm in known[init] for init in INITS for arm in ARMS):
            continue
        for init, cell in choose(study_name, name, known).items():
            all_recipes[f"{name}.{init}"] = cell
            print(f"{study_name}, {name}, {init}: {cell['fedkd']['chosen']}", file=sys.stderr)  # noqa: T201 -- a script
        write_json(path, all_recipes)
