"""One seed of a trial of a start: its students, and their scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from fedkd.config import Consolidation
from fedkd.federation.federation import Federation
from fedkd.federation.simulated_teachers import SimulatedTeachers
from fedkd.models.build import rebuild
from fedkd.tuning.objective import Judge, Objective, label_free_weightings, make_objective
from fedkd.tuning.space import Space


@dataclass(frozen=True)
class Scores:
    """Of one student: the objective, and validation accuracy where the objective is another."""

    score: float
    accuracy: float | None


@dataclass(frozen=True)
class SeedObjective:
    """One seed of a trial: its teachers, and how students are scored.

    Attributes:
        teachers: with the transfer set.
        check: accuracy on validation data, where the objective is another and there are such data.
    """

    teachers: SimulatedTeachers
    objective: Objective
    check: Objective | None = None

    @classmethod
    def of(cls, federation: Federation, arm: str, judge: Judge) -> SeedObjective:
        """Prepare a seed."""
        teachers = SimulatedTeachers(federation, arm)
        compared = judge != "validation" and federation.study.data.validation > 0
        check = make_objective(teachers, "validation") if compared else None
        return cls(teachers, make_objective(teachers, judge), check)

    @property
    def seed(self) -> int:
        """The seed."""
        return self.teachers.federation.seed

    def score(self, student: nn.Module) -> float:
        """Return the objective of a student."""
        return self.objective.score(student, self.teachers.federation.compute)

    def make_student(
        self, settings: Consolidation, on_student: Callable[[nn.Module, int, int], None]
    ) -> Scores:
        """Distil a student and score it.

        ``on_student`` is called with the student, the epoch and the number of epochs.

        Raises:
            FedKDError: distillation diverged.
        """
        federation = self.teachers.federation
        learnt = self.teachers.consolidate(
            settings, rows=self.objective.rows, on_student=on_student
        )
        device = federation.compute.device
        student = rebuild(self.teachers.arch, federation.shape, learnt.state, device)
        check = self.check
        return Scores(
            self.score(student), None if check is None else check.score(student, federation.compute)
        )


def make_space(teachers: SimulatedTeachers, judge: Judge) -> Space:
    """Return what may be varied for the arm whose teachers these are."""
    weightings = label_free_weightings(teachers)
    own = teachers.own
    if judge == "validation" and own.mode == "weights" and not own.rests_on_densities:
        weightings.append("accuracy")
    labelled = teachers.federation.study.data.transfer.labelled
    return Space(teachers.own, labelled=labelled, weightings=weightings)
