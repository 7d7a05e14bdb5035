"""The basis in which silos compute densities, as arrays: written by the server, read by a silo."""

from __future__ import annotations

import torch
from flwr.app import Array, ArrayRecord, RecordDict

from fedkd.distillation.density.basis import (
    BackboneBasis,
    Basis,
    FeatureBasis,
    InputBasis,
    PatchBasis,
    PixelBasis,
)
from fedkd.distillation.density.filters import FilterBank
from fedkd.messages import keys
from fedkd.messages.arrays import decode, decode_state
from fedkd.models.build import Shape, build_fixed_part, build_model
from fedkd.training.compute import Compute

_NOT_IMAGES = -1
"""Side of a basis of inputs, which are not pooled and never become images."""


def read_basis(content: RecordDict, *, global_arch: str, shape: Shape, compute: Compute) -> Basis:
    """Read the basis that the server sent: of pixels, inputs, filters, a backbone or a model.

    Args:
        content: of ``query.teacher``.
        global_arch: the only architecture that a basis model may have, the study's own.
        shape: what that model is built for.
        compute: device and precision.

    Raises:
        ValueError: the basis model is of another architecture.
    """
    record = content.array_records[keys.BASIS]
    mean = torch.from_numpy(decode(record[keys.BASIS_MEAN]))
    components = torch.from_numpy(decode(record[keys.BASIS_COMPONENTS]))
    side = int(decode(record[keys.BASIS_SIDE]))
    if side == _NOT_IMAGES:
        return InputBasis(mean, components, float(decode(record[keys.BASIS_LIMIT])))
    if side:
        return PixelBasis(mean, components, side)
    if keys.BASIS_FILTERS in record:
        kernels, offset = (
            torch.from_numpy(decode(record[key])) for key in (keys.BASIS_FILTERS, keys.BASIS_OFFSET)
        )
        return PatchBasis(mean, components, FilterBank(kernels, offset))
    if keys.BASIS_LIMIT in record:
        return _read_backbone(
            mean, components, float(decode(record[keys.BASIS_LIMIT])), shape, compute
        )
    # An architecture may be a user's own code: a silo builds what its study names and nothing else.
    arch = content.config_records[keys.CONFIG].get(keys.ARCHITECTURE)
    if arch != global_arch:
        raise ValueError(f"the basis is of {arch!r}, but the study's model is {global_arch!r}")
    model = build_model(global_arch, shape, seed=0)
    model.load_state_dict(decode_state(content.array_records[keys.BASIS_MODEL]))
    return FeatureBasis(mean, components, model.to(compute.device), compute)


def _read_backbone(
    mean: torch.Tensor, components: torch.Tensor, limit: float, shape: Shape, compute: Compute
) -> BackboneBasis:
    fixed = build_fixed_part(shape)
    if fixed is None:
        raise ValueError("the basis is of a backbone, but the study names no pre-trained weights")
    return BackboneBasis(mean, components, limit, fixed, compute)


def write_basis(basis: Basis) -> ArrayRecord:
    """Write a basis; a side of 0 says that filters or a network see the images, not pooled.

    A side of -1 says that the inputs are not images.

    The network of a backbone is not sent: every silo has it.
    """
    side = basis.side if isinstance(basis, PixelBasis) else 0
    side = _NOT_IMAGES if isinstance(basis, InputBasis) else side
    arrays = {
        keys.BASIS_MEAN: basis.mean,
        keys.BASIS_COMPONENTS: basis.components,
        keys.BASIS_SIDE: torch.tensor(side),
    }
    if isinstance(basis, PatchBasis):
        arrays[keys.BASIS_FILTERS] = basis.filters.kernels
        arrays[keys.BASIS_OFFSET] = basis.filters.offset
    if isinstance(basis, BackboneBasis | InputBasis):
        arrays[keys.BASIS_LIMIT] = torch.tensor(basis.limit, dtype=torch.float64)
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in arrays.items()})
