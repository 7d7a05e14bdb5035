"""The studies and their variants."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

PARTITIONS = {
    "iid": "{scheme: iid, silos: 10}",
    "quantity": "{scheme: quantity, silos: 10, alpha: 0.5}",
    "dirichlet": "{scheme: label-dirichlet, silos: 10, alpha: 0.1}",
    "shards": "{scheme: label-shards, silos: 10, classes_per_silo: 2}",
    "dominant": "{scheme: label-dominant, silos: 10, share: 0.9}",
}
RATES = {
    "main-digits": {"iid": 0.3, "quantity": 0.2, "dirichlet": 0.2, "shards": 0.2, "dominant": 0.3},
    "main-fashion": {
        "iid": 0.1,
        "quantity": 0.05,
        "dirichlet": 0.05,
        "shards": 0.1,
        "dominant": 0.05,
    },
}
"""Learning rates tuned for plain FedAvg on validation data; see experiments/sweeps."""

STUDIES = tuple(RATES)
"""Studies with a recipe."""
SAME_LOSS = {"main-digits": "loss-digits", "main-fashion": "loss-fashion"}
"""Studies of plain FedAvg with FedKD's local loss, on the same federations. A random start does not
depend on the initialisation of the silos' models."""
STUDENTS = ("average", "best", "fresh")
DENSITIES: dict[str, dict[str, Any]] = {
    "gaussian": {"consolidation.familiarity.density": "gaussian"},
    "knn": {"consolidation.familiarity.density": "knn"},
    "pooled": {
        "consolidation.familiarity.density": "pooled",
        "consolidation.familiarity.basis": "patches",
        "consolidation.teachers": "both",
        "consolidation.mixed_inputs": 8,
        "consolidation.epochs": 10,
        "consolidation.schedule": "cosine",
    },
}
"""Candidate densities of a recipe, with their settings."""
CENTRAL = {
    "central": ("pretraining.lr", ("0.01", "0.02", "0.05")),
    "central-filterbank": ("rounds.lr", ("0.005", "0.01", "0.02")),
}
"""Key and learning rates of centralized training; the best rate is between two others."""
INITS = ("shared", "per-silo")


@dataclass(frozen=True)
class Run:
    """One study in one variant.

    Attributes:
        study: the stem of its file.
        variant: identifies the run, one word per factor.
        overrides: values of ``--set``.
    """

    study: str
    variant: tuple[str, ...]
    overrides: tuple[str, ...] = field(default=())

    @property
    def path(self) -> Path:
        """The study file."""
        return FOLDER / f"{self.study}.yaml"

    @property
    def record(self) -> Path:
        """Path of the record."""
        return FOLDER / "results" / f"{'.'.join((self.study, *self.variant))}.json"


def partition(name: str) -> str:
    """Return the override that sets a partition."""
    return f"partition={PARTITIONS[name]}"


def pair_partition(name: str) -> str:
    """Return the override that sets a partition among six silos, to limit the number of pairs."""
    return partition(name).replace("silos: 10", "silos: 6")


def overrides(arm: str, settings: Mapping[str, Any]) -> list[str]:
    """Return the overrides that give an arm its settings."""
    return [f"arms.{arm}.{key}={value}" for key, value in settings.items()]


def recipes(study: str) -> dict[str, Any]:
    """Return the recipes: settings tried and chosen, by ``partition.initialisation``."""
    path = FOLDER / "recipes" / f"{study}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def recipe(study: str, name: str, init: str) -> list[str]:
    """Return the overrides chosen on validation data; none before ``recipe.py`` has run.

    FedKD's controls have its settings of consolidation and rounds, with a fresh student;
    ``fedavg-same-rounds`` has its settings of rounds, with a random start.
    """
    cell = recipes(study).get(f"{name}.{init}", {})
    if "fedkd" not in cell or "fedavg-average" not in cell:
        return []
    settings = cell["fedkd"]["chosen"]
    rounds = {key: value for key, value in settings.items() if key.startswith("rounds.")}
    teachers = "consolidation.teachers"
    densities_only = {key: settings[key] for key in settings if key != "consolidation.student"}
    if teachers in settings:
        densities_only[teachers] = "densities"
    return [
        *overrides("fedkd", settings),
        *overrides("control-densities", densities_only),
        *overrides("control-validation", rounds),
        *overrides("fedavg-same-rounds", rounds),
        *overrides("fedavg-average", cell["fedavg-average"]["chosen"]),
    ]


def plan() -> list[Run]:
    """Return all runs, cheap ones first."""
    runs = [Run("start-digits", (name,), (partition(name),)) for name in PARTITIONS]
    runs += [Run("labelled-digits", (name,), (partition(name),)) for name in PARTITIONS]
    runs += [Run("pairs-digits", (name,), (pair_partition(name),)) for name in PARTITIONS]
    runs += [
        Run("transfer-digits", ("size", str(size)), (f"data.transfer.size={size}",))
        for size in (30, 100, 300, 600)
    ]
    runs += [
        Run("transfer-digits", ("source", name), (f"data.transfer.source={name}",))
        for name in ("fashion-mnist", "noise")
    ]
    runs += [
        Run("transfer-digits", ("teachers", str(silos)), (f"partition.silos={silos}",))
        for silos in (2, 5, 10, 20)
    ]
    runs += [
        Run(
            study,
            (name, init),
            (
                partition(name),
                f"pretraining.init={init}",
                f"rounds.lr={rates[name]}",
                *recipe(study, name, init),
            ),
        )
        for study, rates in RATES.items()
        for init in INITS
        for name in PARTITIONS
    ]
    runs += [
        Run(SAME_LOSS[study], (name,), (partition(name), f"rounds.lr={rates[name]}"))
        for study, rates in RATES.items()
        for name in PARTITIONS
    ]
    runs.append(Run("cross-device", ("hundred",)))
    runs += [
        Run(study, ("lr", rate), (f"{key}={rate}",))
        for study, (key, rates) in CENTRAL.items()
        for rate in rates
    ]
    runs += [Run("one-exchange", (name,), (partition(name),)) for name in PARTITIONS]
    return runs
