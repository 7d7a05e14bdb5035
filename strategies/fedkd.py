"""FedKD: consolidate the silos' pre-trained models by distillation, then the very same rounds."""

from __future__ import annotations

from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from fedkd.checkpoint import State
from fedkd.data.images import Images
from fedkd.distillation.consolidation import Consolidated, School, consolidate
from fedkd.distillation.familiarity import Basis, make_basis
from fedkd.distillation.teachers import Teachers
from fedkd.errors import FedKDError
from fedkd.study import Consolidation
from strategies.fedavg import SiloFedAvg
from strategies.teachers import collect_teachers


class FedKD(SiloFedAvg):
    """One exchange collects teachers and a student learns from them; then FedAvg rounds.

    Alballa et al. 2402.14922. Subclass and override ``consolidate`` for another way from teachers
    to a student.
    """

    def begin(self, grid: Grid, initial_arrays: ArrayRecord) -> State:  # noqa: ARG002 -- the student may need none
        """Consolidate the silos' models into the global model."""
        basis = self._basis()
        self.teachers = collect_teachers(
            grid,
            list(self.roster.values()),
            self.setting,
            self.ledger,
            self.run_id,
            self._settings(),
            basis,
        )
        self.exchanges_before_round_1 = 1
        self.consolidated = self.consolidate(self.teachers, basis)
        self.notes |= self.consolidated.notes
        return self.consolidated.state

    def consolidate(self, teachers: Teachers, basis: Basis | None) -> Consolidated:
        """Make one student of the teachers, on the server's transfer set."""
        setting = self.setting
        school = School(
            transfer=self._transfer(),
            labelled=setting.study.data.transfer.labelled,
            validation=setting.validation,
            arch=setting.arch,
            shape=setting.shape,
            compute=setting.compute,
            seed=setting.seed,
            basis=basis,
            on_epoch=self.observer.on_distillation,
        )
        try:
            return consolidate(teachers, self._settings(), school)
        except FedKDError as error:
            raise type(error)(f"arms.{setting.arm_name}: {error}") from error

    def _basis(self) -> Basis | None:
        """Fit the basis in which silos tell densities, if the arm asks for any."""
        settings, transfer = self._settings(), self._transfer()
        if not settings.uses_densities:
            return None
        basis = make_basis(transfer.images, dims=settings.familiarity.dims)
        if basis is None:
            self.notes["fallback"] = "equal: the transfer set is too small for a basis"
            if settings.teachers == "densities":
                raise FedKDError(
                    f"arms.{self.setting.arm_name}: a transfer set of {len(transfer)} images is "
                    "too small for densities to teach; 20 distinct ones are needed"
                )
        return basis

    def _settings(self) -> Consolidation:
        settings = self.setting.arm.consolidation
        if settings is None:
            raise ValueError(f"arm {self.setting.arm_name} does not consolidate")
        return settings

    def _transfer(self) -> Images:
        if self.setting.transfer is None:
            raise FedKDError("the server holds no transfer set to distil on")
        return self.setting.transfer
