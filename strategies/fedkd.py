"""FedKD: consolidate the silos' pre-trained models by distillation, then the very same rounds."""

from __future__ import annotations

from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from fedkd.config import Consolidation
from fedkd.data.images import Images
from fedkd.distillation.consolidate import Consolidated, consolidate
from fedkd.distillation.density.basis import Basis, make_basis, make_feature_basis
from fedkd.distillation.selection import choose
from fedkd.distillation.targets import DistillationSetup
from fedkd.distillation.teachers import Teachers
from fedkd.errors import FedKDError
from fedkd.models.state import State
from fedkd.registry import LEAST_TRANSFER_IMAGES
from strategies.collect import collect_densities, collect_teachers
from strategies.distil_at_silo import distil_at_silo
from strategies.fedavg import SiloFedAvg


class FedKD(SiloFedAvg):
    """One exchange collects teachers and a student learns from them; then FedAvg rounds.

    A second exchange is needed where densities are told in features of the averaged model, or
    where the student learns on its own silo. Alballa et al. 2402.14922. Subclass and override
    ``consolidate`` for another way from teachers to a student.
    """

    def begin(self, grid: Grid, initial_arrays: ArrayRecord) -> State:  # noqa: ARG002 -- the student may need none
        """Consolidate the silos' models into the global model."""
        settings, context = self._settings(), self.context
        members = list(self.roster.values())
        basis = self._basis()
        self.teachers = collect_teachers(
            grid, members, context, self.ledger, self.run_id, settings, basis
        )
        self.exchanges_before_round_1 = 1
        if settings.uses_features and (basis := self._feature_basis(self.teachers)) is not None:
            self.teachers = collect_densities(
                grid, members, self.teachers, context, self.ledger, self.run_id, settings, basis
            )
            self.exchanges_before_round_1 = 2
        if context.study.data.transfer.at_silo:
            self.consolidated = self._consolidate_at_silo(grid, self.teachers)
            self.exchanges_before_round_1 = 2
        else:
            self.consolidated = self.consolidate(self.teachers, basis)
        self.notes |= self.consolidated.notes
        return self.consolidated.state

    def consolidate(self, teachers: Teachers, basis: Basis | None) -> Consolidated:
        """Make one student of the teachers, on the server's transfer set."""
        context = self.context
        setup = DistillationSetup(
            transfer=self._transfer(),
            labelled=context.study.data.transfer.labelled,
            validation=context.validation,
            arch=context.arch,
            shape=context.shape,
            compute=context.compute,
            seed=context.seed,
            basis=basis,
            on_epoch=self.observer.on_distillation,
        )
        try:
            return consolidate(teachers, self._settings(), setup)
        except FedKDError as error:
            raise type(error)(f"arms.{context.arm_name}: {error}") from error

    def _consolidate_at_silo(self, grid: Grid, teachers: Teachers) -> Consolidated:
        """Choose by the server's validation data, and let the student's silo distil."""
        context = self.context
        choice = choose(
            teachers,
            self._settings(),
            validation=context.validation,
            arch=context.arch,
            seed=context.seed,
        )
        if choice.silo is None:
            raise ValueError("a student that is no silo's model cannot learn on a silo")
        state, loss = distil_at_silo(
            grid, self.roster[choice.silo], choice, context, self.ledger, self.run_id
        )
        notes = choice.notes | {"distillation_loss": round(loss, 6)}
        return Consolidated(state, choice.start, choice.teachers, notes, loss)

    def _basis(self) -> Basis | None:
        """Fit the basis in which silos tell densities with their models, if the arm asks for it."""
        settings = self._settings()
        if not settings.uses_densities or settings.uses_features:
            return None
        images = self._transfer().images
        asked = settings.familiarity
        return self._usable(
            make_basis(
                images,
                dims=asked.effective_dims,
                kind=asked.basis,
                filters=asked.filters,
                fine=settings.uses_moments,
            )
        )

    def _feature_basis(self, teachers: Teachers) -> Basis | None:
        """Fit the basis to what the average of the silos' models sees of the transfer set."""
        context, images = self.context, self._transfer().images
        if len(images) < LEAST_TRANSFER_IMAGES:
            return self._usable(None)
        try:
            average = teachers.average(context.arch)
            model = context.model("basis")
            model.load_state_dict(average)
            basis = make_feature_basis(
                images,
                model,
                dims=self._settings().familiarity.effective_dims,
                compute=context.compute,
            )
        except FedKDError as error:
            raise type(error)(f"arms.{context.arm_name}: {error}") from error
        return self._usable(basis)

    def _usable(self, basis: Basis | None) -> Basis | None:
        """Return the basis, and say what follows if there is none."""
        if basis is None:
            self.notes["fallback"] = "equal: the transfer set is too small for a basis" + (
                ", so nobody is doubted" if self._settings().trust != "equal" else ""
            )
            if self._settings().teachers == "densities":
                raise FedKDError(
                    f"arms.{self.context.arm_name}: a transfer set of {len(self._transfer())} "
                    "images is too small for densities to teach; 20 distinct ones are needed"
                )
        return basis

    def _settings(self) -> Consolidation:
        settings = self.context.arm.consolidation
        if settings is None:
            raise ValueError(f"arm {self.context.arm_name} does not consolidate")
        return settings

    def _transfer(self) -> Images:
        if self.context.transfer is None:
            raise FedKDError("the server holds no transfer set to distil on")
        return self.context.transfer
