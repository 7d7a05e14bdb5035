"""The teachers of one simulated seed, made once for many consolidations, without messages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from fedkd.config import Consolidation
from fedkd.data.images import Images, content_hash
from fedkd.distillation.consolidate import Consolidated, consolidate, drop_without_densities
from fedkd.distillation.density.basis import Basis, fit_basis
from fedkd.distillation.density.estimators import round_as_sent
from fedkd.distillation.density.moments import Moments
from fedkd.distillation.predictions import Predictions
from fedkd.distillation.targets import DistillationSetup, make_ensemble
from fedkd.distillation.teachers import Teacher, Teachers
from fedkd.distillation.weighting.ensemble import Ensemble
from fedkd.distillation.weighting.plausible import exclude_implausible, uses_models
from fedkd.errors import FedKDError, UserError
from fedkd.federation.federation import Federation
from fedkd.federation.local_silo import LocalSilo
from fedkd.training.compute import intra_op_threads


class SimulatedTeachers:
    """The teachers of one seed, as the server of a simulated federation receives them.

    A student equals the one that ``FedKD`` makes with the same study, seed and settings, bit for
    bit under the same number of intra-op threads. Every teacher predicts a set of examples once for
    all students. Several threads may distil students at the same time.

    Raises:
        UserError: the server has no transfer set.
        FedKDError: no silo has a usable model.
    """

    def __init__(self, federation: Federation, arm: str) -> None:
        settings = federation.study.arms[arm].consolidation
        if settings is None:
            raise ValueError(f"arm {arm} does not consolidate")
        if federation.split.transfer is None:
            raise UserError(
                "data.transfer.source: the examples are on the student's silo; the server cannot "
                "evaluate settings on them"
            )
        self.federation = federation
        self.own = settings
        self.transfer: Images = federation.split.transfer
        self.arch = federation.study.global_arch(arm)
        self._predictions = Predictions(federation.cache, federation.study.model.files)
        self._lock = threading.RLock()
        self._bases: dict[tuple[str, int, int, bool], Basis | None] = {}
        self._moments: dict[tuple[str, int, int], list[Moments | None]] = {}
        self._densities: dict[tuple[str, int, int, str, int], list[Tensor | None]] = {}
        self._silos = {
            name: LocalSilo.simulated(federation, name) for name in federation.study.silo_names
        }
        shared = [self._make_teacher(silo) for silo in self._silos.values()]
        self._members = tuple(teacher for teacher in shared if teacher is not None)
        if not self._members:
            raise FedKDError(f"arms.{arm}: no silo's pre-trained model can be used")
        if uses_models(settings):
            kept, _ = exclude_implausible(
                self.teachers(), transfer=self.transfer, validation=federation.split.validation
            )
            self._members = kept.members

    def consolidate(
        self,
        settings: Consolidation,
        *,
        rows: Tensor | None = None,
        on_student: Callable[[nn.Module, int, int], None] | None = None,
    ) -> Consolidated:
        """Distil a student.

        ``rows`` ``[S]`` are the part of the transfer set to distil on; by default all.

        Raises:
            FedKDError: distillation diverged, or there is no target to learn from.
        """
        teachers, setup = self._prepare(settings, rows)
        return consolidate(teachers, settings, replace(setup, on_student=on_student))

    def ensemble(self, settings: Consolidation) -> Ensemble:
        """Combine the teachers' predictions on the whole transfer set."""
        teachers, setup = self._prepare(settings, None)
        return make_ensemble(drop_without_densities(teachers, settings), settings, setup)

    def teachers(self) -> Teachers:
        """Return all teachers, without densities."""
        return self._teachers(self._members)

    def _teachers(self, members: Sequence[Teacher]) -> Teachers:
        federation = self.federation
        return Teachers(
            members,
            federation.shape,
            federation.compute,
            self._predictions,
            recalibrate_on=federation.recalibrate_on,
        )

    def has_basis(self) -> bool:
        """Whether the transfer set is large enough for densities."""
        return self._basis(self.own) is not None

    def _prepare(
        self, settings: Consolidation, rows: Tensor | None
    ) -> tuple[Teachers, DistillationSetup]:
        with self._lock:
            return self._select(settings, rows)

    def _select(
        self, settings: Consolidation, rows: Tensor | None
    ) -> tuple[Teachers, DistillationSetup]:
        basis = self._basis(settings) if settings.uses_densities else None
        if basis is None and settings.teachers == "densities":
            raise FedKDError(
                f"a transfer set of {len(self.transfer)} examples is too small to compute densities"
            )
        members = self._members if basis is None else self._with_densities(settings, basis)
        transfer = self.transfer
        if rows is not None:
            transfer = transfer.take(rows)
            self._store_part(transfer, rows)
            members = [_of_rows(member, rows) for member in members]
        federation = self.federation
        teachers = self._teachers(members)
        setup = DistillationSetup(
            transfer=transfer,
            labelled=federation.study.data.transfer.labelled,
            validation=federation.split.validation,
            arch=self.arch,
            shape=federation.shape,
            compute=federation.compute,
            seed=federation.seed,
            basis=basis,
        )
        return teachers, setup

    def _store_part(self, part: Images, rows: Tensor) -> None:
        """Store predictions on a part of the transfer set, taken from those on the whole."""
        all_teachers = self.teachers()
        part_hash = content_hash(part.images)
        for member, logits in zip(
            self._members, all_teachers.predict(self.transfer.images), strict=True
        ):
            self._predictions.get(part_hash, member.silo, partial(logits.__getitem__, rows))

    def _make_teacher(self, silo: LocalSilo) -> Teacher | None:
        """Return what a silo shares for ``mode``; None if its model cannot be used."""
        state = silo.own_model().state
        if state is None:
            return None
        if self.own.mode == "weights":
            return replace(silo.as_teacher, state=state)
        with intra_op_threads(silo.compute.threads):
            return replace(silo.as_teacher, logits=silo.predict(state, self.transfer.images))

    def _basis(self, settings: Consolidation) -> Basis | None:
        familiarity = settings.familiarity
        key = (
            familiarity.basis,
            familiarity.filters,
            familiarity.effective_dims,
            settings.uses_moments,
        )
        if key not in self._bases:
            federation = self.federation
            self._bases[key] = fit_basis(
                self.transfer.images, settings, federation.shape, federation.compute
            )
        return self._bases[key]

    def _with_densities(self, settings: Consolidation, basis: Basis) -> Sequence[Teacher]:
        """Return the teachers with densities in fp32, as silos send them, by a silo's threads."""
        if settings.uses_moments:
            return self._with_moments(settings, basis)
        own = settings.familiarity
        key = (own.basis, own.filters, own.effective_dims, own.density, own.neighbours)
        per_class = settings.joint_densities
        with intra_op_threads(self.federation.compute.threads):
            if key not in self._densities:
                self._densities[key] = [
                    self._silos[member.silo].joint_density(
                        self.transfer.images, basis, kind=own.density, neighbours=own.neighbours
                    )
                    for member in self._members
                ]
            return [
                member
                if joint is None
                else replace(member, log_density=round_as_sent(joint, per_class=per_class).double())
                for member, joint in zip(self._members, self._densities[key], strict=True)
            ]

    def _with_moments(self, settings: Consolidation, basis: Basis) -> Sequence[Teacher]:
        own = settings.familiarity
        key = (own.basis, own.filters, own.effective_dims)
        if key not in self._moments:
            with intra_op_threads(self.federation.compute.threads):
                self._moments[key] = [
                    self._silos[member.silo].moments(basis) for member in self._members
                ]
        pairs = zip(self._members, self._moments[key], strict=True)
        return [replace(member, moments=moments) for member, moments in pairs]


def _of_rows(teacher: Teacher, rows: Tensor) -> Teacher:
    """Return a teacher's predictions and densities on a part of the transfer set."""
    return replace(
        teacher,
        logits=None if teacher.logits is None else teacher.logits[rows],
        log_density=None if teacher.log_density is None else teacher.log_density[rows],
    )
