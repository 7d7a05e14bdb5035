"""FedKD: consolidate the silos' pre-trained models by distillation, then the very same rounds."""

from __future__ import annotations

import math

import torch
from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from fedkd.checkpoint import State, copy_state
from fedkd.data.images import Images
from fedkd.distillation.distil import Ensemble, combine, distil
from fedkd.distillation.familiarity import Basis, background_log_density, make_basis
from fedkd.distillation.weightings import Evidence
from fedkd.errors import FedKDError
from fedkd.seeding import torch_generator
from fedkd.study import Consolidation
from fedkd.training import is_finite
from strategies.fedavg import SiloFedAvg
from strategies.teachers import Teachers, collect_teachers


class FedKD(SiloFedAvg):
    """One exchange collects teachers and a student learns from them; then FedAvg rounds.

    Alballa et al. 2402.14922. Subclass and override ``teach`` for another way to combine
    teachers, ``student`` for another start of the student.
    """

    def begin(self, grid: Grid, initial_arrays: ArrayRecord) -> State:  # noqa: ARG002 -- the student may need none
        """Consolidate the silos' models into the global model."""
        settings, transfer = self._settings(), self._transfer()
        basis = None
        if settings.uses_densities:
            basis = make_basis(transfer.images, dims=settings.familiarity.dims)
            if basis is None:
                self.notes["fallback"] = "equal: the transfer set is too small for a basis"
        if basis is None and settings.teachers == "densities":
            raise FedKDError(
                f"arms.{self.setting.arm_name}: a transfer set of {len(transfer)} images is too "
                "small for densities to teach; 20 distinct ones are needed"
            )
        members = list(self.roster.values())
        teachers = collect_teachers(
            grid, members, self.setting, self.ledger, self.run_id, settings, basis
        )
        self.exchanges_before_round_1 = 1
        ensemble = self.teach(teachers, transfer, basis)
        self._note(teachers, ensemble)
        state = self._distil(self.student(teachers), transfer, ensemble)
        if not is_finite(state):
            raise FedKDError(
                f"arms.{self.setting.arm_name}: distillation diverged; lower consolidation.lr "
                f"(now {settings.lr:g})"
            )
        return state

    def teach(self, teachers: Teachers, transfer: Images, basis: Basis | None) -> Ensemble:
        """Combine what the teachers say of the transfer set."""
        settings = self._settings()
        samples = len(transfer)
        densities = _densities(teachers, samples) if basis is not None else None
        if settings.teachers == "densities":
            logits, densities = _densities_as_teachers(teachers, samples)
        else:
            logits = torch.stack(
                [t.predictions(transfer.images, self.setting) for t in teachers.members]
            )
        background = None
        if basis is not None:
            background = background_log_density(basis.project(transfer.images))
        evidence = Evidence(
            logits=logits,
            num_examples=torch.tensor([t.num_examples for t in teachers.members]),
            log_density=densities,
            log_background=background,
        )
        return combine(evidence, settings)

    def student(self, teachers: Teachers) -> State:
        """Return the state in which the student begins to learn."""
        choice = self._settings().student
        if choice == "average":
            return teachers.average()
        if choice == "best":
            return teachers.best(self.setting)
        return copy_state(self.setting.model("fresh-student"))

    def _distil(self, start: State, transfer: Images, ensemble: Ensemble) -> State:
        settings = self._settings()
        model = self.setting.model("student")
        model.load_state_dict(start)
        epochs = iter(range(1, settings.epochs + 1))
        loss = distil(
            model,
            transfer,
            ensemble.target,
            settings,
            labelled=self.setting.study.data.transfer.labelled,
            generator=torch_generator(self.setting.seed, "distillation"),
            compute=self.setting.compute,
            on_epoch=lambda: self.observer.on_distillation(next(epochs), settings.epochs),
        )
        self.notes["distillation_loss"] = round(loss, 6) if math.isfinite(loss) else None
        return copy_state(model)

    def _note(self, teachers: Teachers, ensemble: Ensemble) -> None:
        means = ensemble.weights.mean(1).tolist()
        names = [teacher.silo for teacher in teachers.members]
        self.notes["mean_weights"] = {n: round(w, 6) for n, w in zip(names, means, strict=True)}
        if ensemble.foreign is not None:
            self.notes["foreign_share"] = round(ensemble.foreign, 6)

    def _settings(self) -> Consolidation:
        settings = self.setting.arm.consolidation
        if settings is None:
            raise ValueError(f"arm {self.setting.arm_name} does not consolidate")
        return settings

    def _transfer(self) -> Images:
        if self.setting.transfer is None:
            raise FedKDError("the server holds no transfer set to distil on")
        return self.setting.transfer


def _densities(teachers: Teachers, samples: int) -> torch.Tensor:
    """Stack log p_m(x_n), ``[M, N]``; NaN where a silo has none."""
    unknown = torch.full((samples,), float("nan"), dtype=torch.float64)
    found = [t.log_density for t in teachers.members]
    return torch.stack([unknown if d is None else _marginal(d) for d in found])


def _densities_as_teachers(teachers: Teachers, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The control: joint log-densities ``[M, N, C]`` stand where teachers' logits would."""
    joint = [t.log_density for t in teachers.members if t.log_density is not None]
    if len(joint) < len(teachers.members):
        missing = [t.silo for t in teachers.members if t.log_density is None]
        raise FedKDError(
            f"{', '.join(missing)} is too small to fit a density, which alone would teach here"
        )
    return torch.stack(joint), _densities(teachers, samples)


def _marginal(density: torch.Tensor) -> torch.Tensor:
    return density if density.dim() == 1 else density.logsumexp(1)
