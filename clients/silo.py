"""A silo: private images, a pre-trained model, and what it does when the server asks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedkd.config import Consolidation, Rounds
from fedkd.data.images import Images
from fedkd.distillation.consolidate import distil
from fedkd.distillation.density.basis import NOTHING_KNOWN, Basis
from fedkd.distillation.density.estimators import LEAST_SILO_IMAGES, log_densities
from fedkd.distillation.density.moments import Moments, moments_of
from fedkd.distillation.targets import DistillationSetup
from fedkd.distillation.teachers import Teachers
from fedkd.errors import FedKDError
from fedkd.federation.federation import Federation, Pretrained
from fedkd.models.build import Shape
from fedkd.models.pool import ModelPool
from fedkd.models.state import State, copy_state
from fedkd.training.compute import Compute
from fedkd.training.evaluate import Metrics, evaluate, predict
from fedkd.training.local import LocalTask, train_locally
from fedkd.util.seeding import torch_generator


@dataclass(frozen=True)
class Silo:
    """One participant. Subclass it for a silo that trains in its own way.

    Attributes:
        name: unique in the federation.
        data: private images; they never leave the silo.
        shape: what models are built for.
        arch: architecture of the silo's own model.
        global_arch: architecture of the model that the rounds train.
        own_model: returns the silo's pre-trained model.
        seed: the study's seed, of which every random choice is derived.
        compute: device and precision.
        model_pool: models to be used again; silos of one process may share it.
        least_of_class: classes of fewer images are kept out of the moments that it tells.
        test: private images that no model of the silo learns from, or None if it has none.
        transfer: returns the transfer images uint8 ``[N, C, H, W]`` that the silo has already, or
            None.
    """

    name: str
    data: Images
    shape: Shape
    arch: str
    global_arch: str
    own_model: Callable[[], Pretrained]
    seed: int
    compute: Compute
    model_pool: ModelPool = field(default_factory=ModelPool)
    least_of_class: int = LEAST_SILO_IMAGES
    test: Images | None = None
    transfer: Callable[[], Tensor | None] = lambda: None

    @classmethod
    def of(cls, federation: Federation, name: str, arm: str | None = None) -> Silo:
        """Return a silo of a simulated federation, as it takes part in ``arm`` if one is named."""
        return cls(
            name=name,
            data=federation.data_of(name),
            shape=federation.shape,
            arch=federation.study.arch_of(name),
            global_arch=federation.study.global_arch(arm) if arm else federation.study.model.arch,
            own_model=lambda: federation.pretrained(name),
            seed=federation.seed,
            compute=federation.compute,
            model_pool=federation.model_pool,
        )

    @property
    def is_own(self) -> bool:
        """Whether it is of a class of the user's own, whose exceptions are its failed replies."""
        return type(self) is not Silo

    @property
    def class_counts(self) -> list[int]:
        """Number of images of each class."""
        return torch.bincount(self.data.labels, minlength=self.shape.num_classes).tolist()

    @property
    def judged(self) -> Images:
        """The images on which it measures models: its test images, else all it has."""
        return self.data if self.test is None else self.test

    def train(self, state: State, round_number: int, settings: Rounds) -> tuple[State, float]:
        """Train the global model on the silo's data for one round.

        Returns:
            The trained state and the mean local loss of the last local epoch.
        """
        rounds = settings.in_round(round_number)
        with self._model(self.global_arch, state) as model:
            loss = train_locally(
                LocalTask(model, self.data, self.shape.num_classes, rounds, self.compute),
                generator=torch_generator(self.seed, "local-training", self.name, round_number),
            )
            return copy_state(model), loss

    def evaluate(self, state: State) -> Metrics:
        """Measure the global model on the silo's own images."""
        with self._model(self.global_arch, state) as model:
            return evaluate(model, self.judged, compute=self.compute)

    def predict(self, own: State, images: Tensor) -> Tensor:
        """Return the own model's logits ``[N, C]`` for uint8 images ``[N, C, H, W]``."""
        with self._model(self.arch, own) as model:
            return predict(model, images, compute=self.compute)

    def _model(self, arch: str, state: State) -> AbstractContextManager[nn.Module]:
        return self.model_pool.borrow(arch, self.shape, state, self.compute.device)

    def familiarity(
        self, images: Tensor, basis: Basis, *, per_class: bool, kind: str, neighbours: int
    ) -> Tensor | None:
        """Return log-densities of the images under the silo's data, fp32 ``[N]`` or ``[N, C]``.

        None for a silo too small to fit a density.
        """
        joint = log_densities(
            self.data,
            images,
            basis,
            kind=kind,
            neighbours=neighbours,
            num_classes=self.shape.num_classes,
        )
        if joint is None:
            return None
        density = joint if per_class else joint.logsumexp(1)
        return density.clamp_min(NOTHING_KNOWN).float()

    def moments(self, basis: Basis) -> Moments | None:
        """Return the moments of the silo's images in a basis, or None if it has too few to tell."""
        return moments_of(
            self.data, basis, num_classes=self.shape.num_classes, least=self.least_of_class
        )

    def distil(
        self, teachers: Teachers, student: int | None, settings: Consolidation
    ) -> tuple[State, float]:
        """Let the silo's own model learn from others on the silo's own images and labels.

        Args:
            teachers: those that the server chose.
            student: which of them is the silo's own model, or None.
            settings: of the consolidation.

        Returns:
            The student's state and the mean loss of the last epoch.

        Raises:
            FedKDError: distillation diverged, or the silo's own model did before.
        """
        own = self.own_model()
        if own.state is None:
            raise FedKDError(own.problem)
        setup = DistillationSetup(
            transfer=self.data,
            labelled=True,
            validation=self.data.take(torch.tensor([], dtype=torch.int64)),
            arch=self.arch,
            shape=self.shape,
            compute=self.compute,
            seed=self.seed,
        )
        learnt = distil(own.state, teachers, student, settings, setup)
        return learnt.state, learnt.loss
