"""What teachers say of transfer images and of blends of them, made into a lesson."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedkd.config import Consolidation
from fedkd.data.images import Images
from fedkd.distillation.augmentation import MixedInputs, blend, move
from fedkd.distillation.density.basis import Basis
from fedkd.distillation.density.silo_densities import Densities, find_densities
from fedkd.distillation.methods.base import DistillationData
from fedkd.distillation.teachers import Teachers
from fedkd.distillation.weighting.ensemble import Ensemble, choose_subset, combine
from fedkd.distillation.weighting.weightings import Evidence
from fedkd.models.build import Shape
from fedkd.training.compute import Compute
from fedkd.util.seeding import numpy_generator, torch_generator

MOVED = 8
"""So many times each transfer image is moved where blends are refined upon."""


@dataclass(frozen=True)
class DistillationSetup:
    """Where consolidation takes place, and what it may use.

    Attributes:
        transfer: images to distil on.
        labelled: whether their labels may be used.
        validation: labelled images on which choices are made; may be empty.
        arch: architecture of the student.
        shape: what models are built for.
        compute: device and precision.
        seed: of the study's repetition.
        basis: in which the teachers' densities are told, or None.
        on_epoch: told of every epoch: its number from 1, and how many there are.
        on_student: shown the student after every epoch, with the same two numbers; it may look
            at the model but not change its weights.
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
    """Combine what the teachers say of the transfer set, or of blends of its images.

    Raises:
        FedKDError: densities should teach and no silo has any.
    """
    images = setup.transfer.images
    told = None
    if setup.basis is not None and settings.uses_densities:
        told = find_densities(teachers, settings, setup.basis, images, mixed_inputs)
    if settings.teachers == "densities":
        logits = _by_densities(told, settings)
    else:
        logits = teachers.predict(images if mixed_inputs is None else mixed_inputs.images)
    evidence = Evidence(
        logits=logits,
        num_examples=torch.tensor([t.num_examples for t in teachers.members]),
        accuracy=teachers.accuracy(setup.validation)
        if settings.uses_accuracy and teachers.can_be_judged(setup.validation)
        else None,
        class_counts=teachers.class_counts(),
        log_density=None if told is None else told.marginal(),
        log_background=None if told is None else told.background,
    )
    ensemble = combine(evidence, settings)
    if settings.teachers != "both" or told is None or not told.known:
        return ensemble
    densities = replace(
        evidence,
        logits=_by_densities(told, settings),
        num_examples=evidence.num_examples[told.known],
        log_density=told.marginal()[told.known],
        class_counts=None,
    )
    opinion = combine(densities, settings).target
    return replace(ensemble, target=(ensemble.target + opinion) / 2)


def _by_densities(told: Densities | None, settings: Consolidation) -> Tensor:
    """Return joint log-densities ``[M, N, K]`` to stand where teachers' logits would."""
    if told is None:
        raise ValueError("densities should teach, but there is no basis for any")
    return told.joint() / settings.familiarity.class_scale


def make_data(
    teachers: Teachers,
    settings: Consolidation,
    setup: DistillationSetup,
    ensemble: Ensemble,
    student: int | None,
) -> DistillationData:
    """Return the transfer set, or the part that is asked for, with its blends, as a lesson.

    Args:
        teachers: all of them teach.
        settings: of the consolidation.
        setup: where the student learns.
        ensemble: what the teachers say of the whole transfer set.
        student: which of them the student is a copy of, or None.
    """
    images = setup.transfer.images
    by_densities = settings.teachers == "densities"
    rows = torch.arange(len(images))
    if settings.subset is not None:
        rows = choose_subset(ensemble.target, settings.subset, setup.seed)
    data = DistillationData(
        images=images,
        labels=setup.transfer.labels if setup.labelled else None,
        target=ensemble.target,
        logits=ensemble.logits,
        weights=ensemble.weights,
        models=teachers.models() if teachers.have_models and not by_densities else (),
        student=student,
        order=_order(teachers, settings, setup),
    ).take(rows)
    if not settings.mixed_inputs:
        return data

    def with_(drawn: MixedInputs) -> DistillationData:
        of_all = replace(drawn, first=rows[drawn.first], second=rows[drawn.second])
        return data.with_mixed_inputs(drawn, make_ensemble(teachers, settings, setup, of_all))

    blended = with_(
        blend(data.images, settings.mixed_inputs, torch_generator(setup.seed, "blends"))
    )
    if not settings.finetune_epochs:
        return blended
    moved = move(data.images, MOVED, torch_generator(setup.seed, "moved"))
    return replace(blended, unmixed=with_(moved))


def make_control_data(setup: DistillationSetup) -> DistillationData:
    """Return the control: what the server's validation labels teach without any teacher."""
    nothing = torch.zeros(0, len(setup.validation), setup.shape.num_classes)
    return DistillationData(
        images=setup.validation.images,
        labels=setup.validation.labels,
        target=nothing.sum(0),
        logits=nothing,
        weights=nothing.sum(2),
    )


def _order(
    teachers: Teachers, settings: Consolidation, setup: DistillationSetup
) -> tuple[int, ...]:
    """Return in which turn the teachers speak where they speak one after another."""
    everyone = range(len(teachers))
    if settings.sequence == "parallel" or settings.order == "silos":
        return tuple(everyone)
    if settings.order == "random":
        permuted = numpy_generator(setup.seed, "teacher-order").permutation(len(teachers))
        return tuple(int(index) for index in permuted)
    accuracy = teachers.accuracy(setup.validation)
    sign = 1 if settings.order == "weakest-first" else -1
    return tuple(sorted(everyone, key=lambda m: (sign * float(accuracy[m]), m)))
