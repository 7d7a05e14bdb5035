"""Targets of distillation: pooled predictions on transfer examples and mixed inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedkd.config import Consolidation
from fedkd.data.images import Images
from fedkd.distillation.augmentation import MixedInputs, mix_images, shift_images
from fedkd.distillation.density.basis import Basis
from fedkd.distillation.density.silo_densities import Densities, compute_densities
from fedkd.distillation.methods.base import DistillationData
from fedkd.distillation.teachers import Teachers
from fedkd.distillation.weighting.ensemble import Ensemble, choose_subset, combine
from fedkd.distillation.weighting.weightings import Evidence
from fedkd.models.build import Shape
from fedkd.training.compute import Compute
from fedkd.util.seeding import numpy_generator, torch_generator

NUM_SHIFTS = 8
"""Number of shifted copies of each transfer example for ``finetune_epochs``."""


@dataclass(frozen=True)
class DistillationSetup:
    """The data and environment of a consolidation.

    Attributes:
        transfer: examples to distil on.
        labelled: whether their labels may be used.
        validation: labelled examples for choices; may be empty.
        basis: of the teachers' densities, or None.
        on_epoch: called after every epoch with its number, from 1, and the number of epochs.
        on_student: called after every epoch with the student and the same two numbers; it must not
            change the weights.
    """

    transfer: Images
    labelled: bool
    validation: Images
    arch: str
    shape: Shape
    compute: Compute
    seed: int
    basis: Basis | None = None
    on_epoch: Callable[[int, int], None] | None = None
    on_student: Callable[[nn.Module, int, int], None] | None = None


def make_ensemble(
    teachers: Teachers,
    settings: Consolidation,
    setup: DistillationSetup,
    mixed_inputs: MixedInputs | None = None,
) -> Ensemble:
    """Pool the teachers' predictions on the transfer set, or on mixed inputs made from it.

    Raises:
        FedKDError: the targets need densities, and no silo has any.
    """
    images = setup.transfer.images
    densities = None
    if setup.basis is not None and settings.uses_densities:
        densities = compute_densities(teachers, settings, setup.basis, images, mixed_inputs)
    if settings.teachers == "densities":
        logits = _joint_densities(densities, settings)
    else:
        logits = teachers.predict(images if mixed_inputs is None else mixed_inputs.images)
    evidence = Evidence(
        logits=logits,
        num_examples=torch.tensor([t.num_examples for t in teachers.members]),
        accuracy=teachers.accuracy(setup.validation)
        if settings.uses_accuracy and teachers.has_accuracy(setup.validation)
        else None,
        class_counts=teachers.class_counts(),
        log_density=None if densities is None else densities.marginal(),
        log_background=None if densities is None else densities.background,
    )
    ensemble = combine(evidence, settings)
    if settings.teachers != "both" or densities is None or not densities.silos:
        return ensemble
    density_evidence = replace(
        evidence,
        logits=_joint_densities(densities, settings),
        num_examples=evidence.num_examples[densities.silos],
        log_density=densities.marginal()[densities.silos],
        class_counts=None,
    )
    density_target = combine(density_evidence, settings).target
    return replace(ensemble, target=(ensemble.target + density_target) / 2)


def _joint_densities(densities: Densities | None, settings: Consolidation) -> Tensor:
    """Return scaled joint log-densities ``[M, N, K]``, which replace the teachers' logits."""
    if densities is None:
        raise ValueError("the targets need densities, but there is no basis")
    return densities.joint() / settings.familiarity.class_scale


def make_data(
    teachers: Teachers,
    settings: Consolidation,
    setup: DistillationSetup,
    ensemble: Ensemble,
    student: int | None,
) -> DistillationData:
    """Return the distillation data: the transfer set or its subset, with mixed inputs.

    ``student`` is the index of the teacher that the student is a copy of, or None.
    """
    images = setup.transfer.images
    densities_only = settings.teachers == "densities"
    rows = torch.arange(len(images))
    if settings.subset is not None:
        rows = choose_subset(ensemble.target, settings.subset, setup.seed)
    data = DistillationData(
        images=images,
        labels=setup.transfer.labels if setup.labelled else None,
        target=ensemble.target,
        logits=ensemble.logits,
        weights=ensemble.weights,
        models=teachers.models() if teachers.have_models and not densities_only else (),
        student=student,
        order=_order(teachers, settings, setup),
    ).take(rows)
    if not settings.mixed_inputs:
        return data

    def add_mixed_inputs(mixed_inputs: MixedInputs) -> DistillationData:
        on_transfer_set = replace(
            mixed_inputs, first=rows[mixed_inputs.first], second=rows[mixed_inputs.second]
        )
        return data.with_mixed_inputs(
            mixed_inputs, make_ensemble(teachers, settings, setup, on_transfer_set)
        )

    mixed = add_mixed_inputs(
        mix_images(data.images, settings.mixed_inputs, torch_generator(setup.seed, "blends"))
    )
    if not settings.finetune_epochs:
        return mixed
    shifted = shift_images(data.images, NUM_SHIFTS, torch_generator(setup.seed, "moved"))
    return replace(mixed, unmixed=add_mixed_inputs(shifted))


def make_control_data(setup: DistillationSetup) -> DistillationData:
    """Return the data of the control: the server's validation labels, without teachers."""
    no_logits = torch.zeros(0, len(setup.validation), setup.shape.num_classes)
    return DistillationData(
        images=setup.validation.images,
        labels=setup.validation.labels,
        target=no_logits.sum(0),
        logits=no_logits,
        weights=no_logits.sum(2),
    )


def _order(
    teachers: Teachers, settings: Consolidation, setup: DistillationSetup
) -> tuple[int, ...]:
    """Return the teacher order for ``sequence: sequential``."""
    indices = range(len(teachers))
    if settings.sequence == "parallel" or settings.order == "silos":
        return tuple(indices)
    if settings.order == "random":
        permuted = numpy_generator(setup.seed, "teacher-order").permutation(len(teachers))
        return tuple(int(index) for index in permuted)
    accuracy = teachers.accuracy(setup.validation)
    sign = 1 if settings.order == "weakest-first" else -1
    return tuple(sorted(indices, key=lambda m: (sign * float(accuracy[m]), m)))
