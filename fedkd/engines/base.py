"""The engine interface: run one arm of one seed and write its record to a folder."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fedkd.federation.federation import Federation
from fedkd.messages import keys
from fedkd.results.observer import Observer


@dataclass(frozen=True)
class Task:
    """One arm and seed to run.

    Attributes:
        federation: data and models of the seed.
        arm: the arm's name.
        targets: accuracies, in the order of the study's targets.
        folder: where the record is written.
    """

    federation: Federation
    arm: str
    targets: tuple[float, ...]
    folder: Path

    def run_config(self) -> dict[str, str | int]:
        """Return Flower's run config: scalars only; the study travels as one string."""
        study = self.federation.study
        return {
            keys.CONFIG_STUDY: json.dumps(study.to_dict()),
            keys.CONFIG_ARM: self.arm,
            keys.CONFIG_SEED: self.federation.seed,
            keys.CONFIG_TARGETS: json.dumps(list(self.targets)),
            keys.CONFIG_RUN_DIR: str(self.folder.absolute()),
            keys.CONFIG_CACHE_DIR: str(self.federation.cache.absolute()),
        }


class Engine(AbstractContextManager[Any], Protocol):
    """Runs tasks; entered once per study, so that it can keep processes or threads.

    Attributes:
        remote: whether arms run on other hosts. Silos then keep their models there, and nothing
            cached on this host can replace a run.
    """

    remote: bool

    def run(self, task: Task, observer: Observer) -> None:
        """Run ``task`` to its end and report every round to ``observer``.

        Raises:
            FedKDError: the run failed for a known reason.
        """
