"""What a silo computes from its examples and its model, and shares; without messages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedkd.data.images import Images
from fedkd.distillation.density.basis import Basis
from fedkd.distillation.density.estimators import LEAST_SILO_IMAGES, log_densities, round_as_sent
from fedkd.distillation.density.moments import Moments, moments_of
from fedkd.distillation.teachers import Teacher
from fedkd.federation.federation import Federation, Pretrained
from fedkd.models.build import Shape
from fedkd.models.pool import ModelPool
from fedkd.models.state import State
from fedkd.training.compute import Compute
from fedkd.training.evaluate import predict


@dataclass(frozen=True, kw_only=True)
class LocalSilo:
    """A silo's examples and pre-trained model.

    Attributes:
        name: unique in the federation.
        data: private examples; they never leave the silo.
        own_model: returns the silo's pre-trained model.
        model_pool: models to reuse; silos of one process may share it.
        least_of_class: classes of fewer examples are left out of the moments.
        clipped: whether the influence of every example on densities and moments is bounded.
    """

    name: str
    data: Images
    shape: Shape
    arch: str
    own_model: Callable[[], Pretrained]
    compute: Compute
    model_pool: ModelPool = field(default_factory=ModelPool)
    least_of_class: int = LEAST_SILO_IMAGES
    clipped: bool = False

    @classmethod
    def simulated(cls, federation: Federation, name: str) -> LocalSilo:
        """Return a silo of a simulated federation."""
        return LocalSilo(
            name=name,
            data=federation.data_of(name),
            shape=federation.shape,
            arch=federation.study.arch_of(name),
            own_model=lambda: federation.pretrained(name),
            compute=federation.compute_of(name),
            model_pool=federation.model_pool,
        )

    @property
    def class_counts(self) -> list[int]:
        """Number of examples of each class."""
        return torch.bincount(self.data.labels, minlength=self.shape.num_classes).tolist()

    @property
    def as_teacher(self) -> Teacher:
        """The silo as a teacher that shares neither model nor predictions."""
        return Teacher(self.name, self.arch, len(self.data), class_counts=tuple(self.class_counts))

    def predict(self, own: State, images: Tensor) -> Tensor:
        """Return the own model's logits ``[N, C]`` for examples ``[N, ...]``."""
        with self.borrow_model(self.arch, own) as model:
            return predict(model, images, compute=self.compute)

    def borrow_model(self, arch: str, state: State) -> AbstractContextManager[nn.Module]:
        """Return a model with these weights, on the silo's device, for the length of a block."""
        return self.model_pool.borrow(arch, self.shape, state, self.compute.device)

    def joint_density(
        self, images: Tensor, basis: Basis, *, kind: str, neighbours: int
    ) -> Tensor | None:
        """Return joint log-densities of examples and classes under the silo's data, ``[N, C]``.

        None for a silo that is too small for a density.
        """
        return log_densities(
            self.data,
            images,
            basis,
            kind=kind,
            neighbours=neighbours,
            num_classes=self.shape.num_classes,
            clipped=self.clipped,
        )

    def log_density(
        self, images: Tensor, basis: Basis, *, per_class: bool, kind: str, neighbours: int
    ) -> Tensor | None:
        """Return log-densities of examples as the silo sends them, fp32 ``[N]`` or ``[N, C]``."""
        joint = self.joint_density(images, basis, kind=kind, neighbours=neighbours)
        return None if joint is None else round_as_sent(joint, per_class=per_class)

    def moments(self, basis: Basis) -> Moments | None:
        """Return the moments of the silo's examples in a basis, or None if there are too few."""
        return moments_of(
            self.data,
            basis,
            num_classes=self.shape.num_classes,
            least=self.least_of_class,
            clipped=self.clipped,
        )
