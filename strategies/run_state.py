"""How a run begins, and all that the rest of it depends on beside its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fedkd.distillation.teachers import Teachers
from fedkd.models.spool import StateFile, is_large
from fedkd.models.state import State
from fedkd.results.record import Point, Quarantined, SiloGets, Stopped
from fedkd.util.names import natural_key
from strategies.exchange import Traffic
from strategies.roster import Member


@dataclass(frozen=True)
class Start:
    """The global model before round 1, and what it cost.

    Attributes:
        state: its weights.
        exchanges: trips server -> silos -> server with models, logits or densities.
        notes: figures for the record; a ``warning`` is shown to the user.
        teachers: the silos' models or predictions, where they were collected.
        student: the weights from which a student was distilled; None without distillation.
    """

    state: State
    exchanges: int
    notes: Mapping[str, Any] = field(default_factory=dict)
    teachers: Teachers | None = None
    student: State | None = None


@dataclass(frozen=True)
class Baseline:
    """Classes predicted for the server's test examples, with which a run's end is compared.

    Attributes:
        start: by the global model before round 1, int32 ``[N]``.
        teachers: by every teacher whose model the server has, by name of its silo, int32 ``[N]``.
        student: by the student before distillation; None without a student.
    """

    start: Tensor
    teachers: Mapping[str, Tensor]
    student: Tensor | None


@dataclass
class RunState:
    """A run after one of its rounds. It is what a save point holds.

    Nothing random is in it: every choice is drawn from its seed, purpose, silo and round
    (:mod:`fedkd.util.seeding`).

    Attributes:
        folder: for the global model while it waits on disk; None keeps it in memory.
        curve: every point, from round 0 on; empty before the start.
        update: the ``state_dict`` of the server's update.
        batch_norm: BatchNorm tensors of each silo, where silos have them of their own.
        members: the silos that introduced themselves, in natural order of their names.
        quarantined: every reply that was refused.
        notes: figures for the record.
        exchanges_before_round_1: what the start cost.
        baseline: what the end is compared with; None where the server has no test examples.
        stopped: why the run ended. It is not saved, as the next two.
        spent: traffic before the silos introduced themselves, which the start is charged with.
        silos_get: what each silo gets, where silos are deployed.
    """

    folder: Path | None = None
    curve: list[Point] = field(default_factory=list)
    update: State = field(default_factory=dict)
    batch_norm: dict[str, State] = field(default_factory=dict)
    members: tuple[Member, ...] = ()
    quarantined: list[Quarantined] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    exchanges_before_round_1: int = 0
    baseline: Baseline | None = None
    stopped: Stopped = "budget"
    spent: Traffic = field(default_factory=Traffic)
    silos_get: tuple[SiloGets, ...] = ()
    _model: State | StateFile = field(default_factory=dict, init=False)

    @property
    def model(self) -> State:
        """The global model. A large one is mapped from its file anew, every time."""
        return self._model.read() if isinstance(self._model, StateFile) else self._model

    @model.setter
    def model(self, state: State) -> None:
        self._model = state
        if self.folder is not None and is_large(state):
            self._model = StateFile(self.folder, state)

    def note_silos(self, traffic: Traffic, *, deployed: bool) -> None:
        """Note whose models the last point used, 0 being the start, and if silos were late."""
        number = self.curve[-1].round
        lists = {"silo_rounds": traffic.used if deployed else set(), "late_models": traffic.late}
        for key, silos in lists.items():
            for silo in sorted(silos, key=natural_key):
                self.notes.setdefault(key, {}).setdefault(silo, []).append(number)
        if traffic.ended_early:
            self.notes.setdefault("ended_early", []).append(number)
