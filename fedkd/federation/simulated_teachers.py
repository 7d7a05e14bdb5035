"""One seed's teachers, collected once for many consolidations, without any message."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from fedkd.config import Consolidation
from fedkd.data.images import Images, content_hash
from fedkd.distillation.consolidate import Consolidated, consolidate, those_that_teach
from fedkd.distillation.density.basis import Basis, make_basis
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
    """The teachers of one seed as the server of a simulated federation collects them.

    A student is the one that ``FedKD`` makes of the same study, seed and settings, bit for bit
    under the same number of intra-op threads. Every teacher predicts an image set once, however
    many students it has. Several threads may make students at once.

    Args:
        federation: data and models of the seed.
        arm: name of an arm that consolidates.

    Raises:
        UserError: the transfer set is on no server.
        FedKDError: no silo has a model that can be used.
    """

    def __init__(self, federation: Federation, arm: str) -> None:
        settings = federation.study.arms[arm].consolidation
        if settings is None:
            raise ValueError(f"arm {arm} does not consolidate")
        if federation.split.transfer is None:
            raise UserError(
                "data.transfer.source: the images lie on the student's silo, where no server can "
                "try settings on them"
            )
        self.federation = federation
        self.own = settings
        self.transfer: Images = federation.split.transfer
        self.arch = federation.study.global_arch(arm)
        self._known = Predictions(federation.cache, federation.study.model.files)
        self._lock = threading.RLock()
        self._bases: dict[tuple[str, int, int, bool], Basis | None] = {}
        self._moments: dict[tuple[str, int, int], list[Moments | None]] = {}
        self._densities: dict[tuple[str, int, int, str, int], list[Tensor | None]] = {}
        self._silos = {
            name: LocalSilo.simulated(federation, name) for name in federation.study.silo_names
        }
        shared = [self._share(silo) for silo in self._silos.values()]
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
        """Make a student.

        Args:
            settings: of the consolidation; ``mode`` must be the arm's own.
            rows: the part of the transfer set to distil on, as indices ``[S]``; by default all.
            on_student: shown the student after every epoch; see :class:`DistillationSetup`.

        Raises:
            FedKDError: distillation diverged, or there is nothing to learn from.
        """
        teachers, setup = self._open(settings, rows)
        return consolidate(teachers, settings, replace(setup, on_student=on_student))

    def ensemble(self, settings: Consolidation) -> Ensemble:
        """Combine what the teachers say of the whole transfer set."""
        teachers, setup = self._open(settings, None)
        return make_ensemble(those_that_teach(teachers, settings), settings, setup)

    def teachers(self) -> Teachers:
        """Return all teachers, as a consolidation without densities meets them."""
        federation = self.federation
        return Teachers(self._members, federation.shape, federation.compute, self._known)

    def has_basis(self) -> bool:
        """Whether the transfer set is large enough for densities."""
        return self._basis(self.own) is not None

    def _open(
        self, settings: Consolidation, rows: Tensor | None
    ) -> tuple[Teachers, DistillationSetup]:
        with self._lock:
            return self._gather(settings, rows)

    def _gather(
        self, settings: Consolidation, rows: Tensor | None
    ) -> tuple[Teachers, DistillationSetup]:
        basis = self._basis(settings) if settings.uses_densities else None
        if basis is None and settings.teachers == "densities":
            raise FedKDError(
                f"a transfer set of {len(self.transfer)} images is too small for densities to teach"
            )
        members = self._members if basis is None else self._with_densities(settings, basis)
        transfer = self.transfer
        if rows is not None:
            transfer = transfer.take(rows)
            self._remember(transfer, rows)
            members = [_of_rows(member, rows) for member in members]
        federation = self.federation
        teachers = Teachers(members, federation.shape, federation.compute, self._known)
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

    def _remember(self, part: Images, rows: Tensor) -> None:
        """Note predictions on a part of the transfer set: they are those on the whole."""
        everyone = Teachers(
            self._members, self.federation.shape, self.federation.compute, self._known
        )
        found = content_hash(part.images)
        for member, logits in zip(
            self._members, everyone.predict(self.transfer.images), strict=True
        ):
            self._known.get(found, member.silo, partial(logits.__getitem__, rows))

    def _share(self, silo: LocalSilo) -> Teacher | None:
        """Return what a silo shares for ``mode``; None where its model cannot be used."""
        state = silo.own_model().state
        if state is None:
            return None
        if self.own.mode == "weights":
            return replace(silo.as_teacher, state=state)
        with intra_op_threads(1):
            return replace(silo.as_teacher, logits=silo.predict(state, self.transfer.images))

    def _basis(self, settings: Consolidation) -> Basis | None:
        asked = settings.familiarity
        key = (asked.basis, asked.filters, asked.effective_dims, settings.uses_moments)
        if key not in self._bases:
            kind, filters, dims, fine = key
            self._bases[key] = make_basis(
                self.transfer.images, dims=dims, kind=kind, filters=filters, fine=fine
            )
        return self._bases[key]

    def _with_densities(self, settings: Consolidation, basis: Basis) -> Sequence[Teacher]:
        """Return the teachers with densities as their silos send them: in fp32, by one thread."""
        if settings.uses_moments:
            return self._with_moments(settings, basis)
        own = settings.familiarity
        key = (own.basis, own.filters, own.effective_dims, own.density, own.neighbours)
        per_class = settings.joint_densities
        with intra_op_threads(1):
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
            with intra_op_threads(1):
                self._moments[key] = [
                    self._silos[member.silo].moments(basis) for member in self._members
                ]
        pairs = zip(self._members, self._moments[key], strict=True)
        return [replace(member, moments=moments) for member, moments in pairs]


def _of_rows(teacher: Teacher, rows: Tensor) -> Teacher:
    """Return a teacher that knows a part of the transfer set only."""
    return replace(
        teacher,
        logits=None if teacher.logits is None else teacher.logits[rows],
        log_density=None if teacher.log_density is None else teacher.log_density[rows],
    )
