"""Reading what the server sends beside a global model: a basis, or teachers."""

from __future__ import annotations

from typing import Any

import torch
from flwr.app import ConfigRecord, RecordDict

from clients.silo import Silo
from fedkd.config import Study
from fedkd.distillation.density.basis import Basis, FeatureBasis, PatchBasis, PixelBasis
from fedkd.distillation.density.filters import FilterBank
from fedkd.distillation.teachers import Teacher, Teachers
from fedkd.messages import keys as wire
from fedkd.models.build import build_model


def read_basis(silo: Silo, content: RecordDict) -> Basis:
    """Read the basis that the server sent: of pixels, or of what filters or a model see."""
    record = content.array_records[wire.BASIS]
    mean = torch.from_numpy(record[wire.BASIS_MEAN].numpy())
    components = torch.from_numpy(record[wire.BASIS_COMPONENTS].numpy())
    side = int(record[wire.BASIS_SIDE].numpy())
    if side:
        return PixelBasis(mean, components, side)
    if wire.BASIS_FILTERS in record:
        kernels, offset = (
            torch.from_numpy(record[key].numpy()) for key in (wire.BASIS_FILTERS, wire.BASIS_OFFSET)
        )
        return PatchBasis(mean, components, FilterBank(kernels, offset))
    # Architectures may be a user's own code: a silo runs what its study names, no server's choice.
    arch = content.config_records[wire.CONFIG].get(wire.ARCHITECTURE)
    if arch != silo.global_arch:
        raise ValueError(f"the basis is of {arch!r}, but the study's model is {silo.global_arch!r}")
    model = build_model(silo.global_arch, silo.shape, seed=0)
    model.load_state_dict(content.array_records[wire.BASIS_MODEL].to_torch_state_dict())
    return FeatureBasis(mean, components, model.to(silo.compute.device), silo.compute)


def read_teachers(silo: Silo, study: Study, content: RecordDict) -> tuple[Teachers, int | None]:
    """Read the models that are to teach the silo's own, and which of them is that very model.

    That one was not sent: the silo holds it.

    Raises:
        ValueError: what was sent does not fit together, or names an architecture that the study
            does not.
    """
    config = content.config_records[wire.CONFIG]
    archs, sizes = _list(config, wire.ARCHITECTURES), _list(config, wire.NUM_EXAMPLES)
    accuracies = _list(config, wire.ACCURACIES) or [None] * len(archs)
    counts, classes = _list(config, wire.CLASS_COUNTS), silo.shape.num_classes
    index = config[wire.STUDENT]
    student = index if isinstance(index, int) and index != wire.NO_TEACHER else None
    members = []
    for m, (arch, size, accuracy) in enumerate(zip(archs, sizes, accuracies, strict=True)):
        if arch not in study.architectures:
            raise ValueError(f"a teacher is of the architecture {arch!r}, which the study has not")
        if m == student:
            state = silo.own_model().state
        else:
            state = content.array_records[wire.teacher_record(m)].to_torch_state_dict()
        of_class = tuple(int(n) for n in counts[m * classes : (m + 1) * classes])
        members.append(
            Teacher(
                wire.teacher_record(m),
                str(arch),
                int(size),
                dict(state) if state else None,
                class_counts=of_class,
                accuracy=None if accuracy is None else float(accuracy),
            )
        )
    return Teachers(members, silo.shape, silo.compute), student


def _list(config: ConfigRecord, key: str) -> list[Any]:
    value = config.get(key, [])
    if not isinstance(value, list):
        raise TypeError(f"{key} is {value!r} where a list is expected")
    return value
