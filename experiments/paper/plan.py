"""The studies and their variants."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parent
EXPERIMENTS = FOLDER.parent

PARTITIONS = {
    "iid": "{scheme: iid, silos: 10}",
    "quantity": "{scheme: quantity, silos: 10, alpha: 0.5}",
    "dirichlet": "{scheme: label-dirichlet, silos: 10, alpha: 0.1}",
    "shards": "{scheme: label-shards, silos: 10, classes_per_silo: 2}",
    "dominant": "{scheme: label-dominant, silos: 10, share: 0.9}",
}
CENTRAL = {
    "central": ("pretraining.lr", ("0.01", "0.02", "0.05")),
    "central-filterbank": ("rounds.lr", ("0.005", "0.01", "0.02")),
}
"""Key and learning rates of centralized training; the best rate is between two others."""


@dataclass(frozen=True)
class Federation:
    """A federation whose arms are all tuned before they are compared.

    Attributes:
        data: a key of ``SOURCES``.
        partition: a key of ``PARTITIONS``.
    """

    data: str
    partition: str

    @property
    def name(self) -> str:
        """Name of the tuned study."""
        return f"{self.data}-{self.partition}"

    @property
    def overrides(self) -> tuple[str, ...]:
        """Values of ``--set`` that make it of its source."""
        return (f"name={self.name}", partition(self.partition))

    @property
    def tuned(self) -> Path:
        """Path of the tuned study."""
        return EXPERIMENTS / "tuned" / f"{self.name}.yaml"


SOURCES = {"digits": EXPERIMENTS / "digits.yaml", "fashion": EXPERIMENTS / "fashion-mnist.yaml"}
TUNED = (
    *(Federation("digits", name) for name in PARTITIONS),
    Federation("fashion", "dirichlet"),
)


@dataclass(frozen=True)
class Run:
    """One study in one variant.

    Attributes:
        study: the stem of its file.
        variant: identifies the run, one word per factor.
        overrides: values of ``--set``.
        folder: where the study file lies.
    """

    study: str
    variant: tuple[str, ...]
    overrides: tuple[str, ...] = field(default=())
    folder: Path = FOLDER

    @property
    def path(self) -> Path:
        """The study file."""
        return self.folder / f"{self.study}.yaml"

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
    runs += [Run(each.name, ("tuned",), folder=each.tuned.parent) for each in TUNED]
    runs.append(Run("cross-device", ("hundred",)))
    runs += [
        Run(study, ("lr", rate), (f"{key}={rate}",))
        for study, (key, rates) in CENTRAL.items()
        for rate in rates
    ]
    runs += [Run("one-exchange", (name,), (partition(name),)) for name in PARTITIONS]
    return runs
