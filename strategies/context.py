"""What the server has for a run: its settings and the server's own data."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from fedkd.config import Arm, Rounds, Study
from fedkd.data.columns import Column
from fedkd.data.images import Images
from fedkd.federation.federation import Federation
from fedkd.models.build import Shape, build_model
from fedkd.training.compute import Compute
from fedkd.util.seeding import derive_seed


class _Options(dict[str, Any]):
    """A dictionary that notes which of its keys are read."""

    def __init__(self, values: dict[str, Any], read: set[str]) -> None:
        super().__init__(values)
        self._read = read

    def __getitem__(self, key: str) -> Any:
        self._read.add(key)
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[str]:
        self._read.update(super().keys())
        return super().__iter__()

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, or ``default``."""
        self._read.add(key)
        return super().get(key, default)

    def pop(self, key: str, *default: Any) -> Any:
        """Remove a key, and return its value."""
        self._read.add(key)
        return super().pop(key, *default)

    def keys(self) -> Any:
        """Return the keys; all count as read, as with ``**options``."""
        self._read.update(super().keys())
        return super().keys()

    def items(self) -> Any:
        """Return keys and values; all count as read."""
        self._read.update(super().keys())
        return super().items()


@dataclass(frozen=True)
class RunContext:
    """One arm and seed, and the data that the server itself holds.

    Attributes:
        study: the study.
        arm_name: which of its arms.
        seed: which of its seeds.
        shape: what models are built for.
        compute: device and precision.
        test: labelled examples that measure every round, or None where the server has none.
        validation: labelled examples on which choices are made; may be empty.
        transfer: examples to distil on, or None.
        targets: accuracies at which the run may stop.
        classes: names of the classes, or empty where the server does not know them.
        cache: where predictions that no run is charged for are kept, or None.
        columns: of the server's table, where silos are deployed and it has one.
        encoder: what becomes of a table's columns, as every question tells deployed silos; empty
            where that is not known yet, and for all else.
    """

    study: Study
    arm_name: str
    seed: int
    shape: Shape
    compute: Compute
    test: Images | None
    validation: Images
    transfer: Images | None
    targets: tuple[float, ...]
    classes: tuple[str, ...] = ()
    cache: Path | None = None
    columns: tuple[Column, ...] = ()
    encoder: str = ""
    _read: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, federation: Federation, arm_name: str, targets: tuple[float, ...]) -> RunContext:
        """Return the server's part of a federation."""
        return cls(
            study=federation.study,
            arm_name=arm_name,
            seed=federation.seed,
            shape=federation.shape,
            compute=federation.compute,
            test=federation.split.test if len(federation.split.test) else None,
            validation=federation.split.validation,
            transfer=federation.split.transfer,
            targets=targets,
            classes=federation.split.classes,
            cache=federation.cache,
            columns=federation.split.columns,
            encoder=federation.split.encoder.to_json() if federation.split.encoder else "",
        )

    @property
    def recalibrate_on(self) -> Images | None:
        """Examples for BatchNorm statistics of averages, None where these are averaged too."""
        return self.transfer if self.study.model.batch_norm == "recalibrate" else None

    @property
    def arm(self) -> Arm:
        """The arm's settings."""
        return self.study.arms[self.arm_name]

    @property
    def rounds(self) -> Rounds:
        """The arm's round settings."""
        return self.study.rounds_of(self.arm_name)

    @property
    def simulated(self) -> bool:
        """Whether silos are simulated in other processes than the server's."""
        return self.study.engine.name == "ray" and not self.study.is_deployed

    @property
    def options(self) -> dict[str, Any]:
        """A copy of the arm's ``options``, which a start or strategy of the user's own reads."""
        return _Options(copy.deepcopy(dict(self.arm.options)), self._read)

    @property
    def unread_options(self) -> list[str]:
        """Options that nothing has read yet; a misspelt one is never read."""
        return [name for name in self.arm.options if name not in self._read]

    @property
    def arch(self) -> str:
        """The architecture of the global model."""
        return self.study.global_arch(self.arm_name)

    def model(self, purpose: str, arch: str | None = None) -> nn.Module:
        """Build a model on the device, initialised from the study's seed and ``purpose``."""
        seed = derive_seed(self.seed, purpose)
        return build_model(arch or self.arch, self.shape, seed=seed).to(self.compute.device)
