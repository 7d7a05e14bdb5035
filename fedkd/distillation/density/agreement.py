"""Whether a basis that was sent is the one that a silo makes of the same examples.

Two processors round differently, and components with nearly the same eigenvalue then come out
rotated among themselves. So bases are compared by the points that they make of the examples:
whitened points of one space differ by a rotation alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedkd.distillation.density.basis import BackboneBasis, Basis, PatchBasis, PixelBasis
from fedkd.distillation.density.moments import Moments

TOLERANCE = 1e-4
"""Largest difference of an array of two equal bases, relative to its largest entry."""
ROTATION_TOLERANCE = 1e-3
"""Largest difference of a rotation from an orthogonal matrix, and of points from rotated ones,
relative to their norm."""


def find_rotation(own: Basis, sent: Basis, images: Tensor) -> Tensor | None:
    """Return R, float64 ``[d, d]``, such that points in the sent basis are R times those in ours.

    It is exactly the identity for arrays that are the same but for rounding.

    Args:
        own: made of the examples here.
        sent: by a server; its arrays may have any type, shape and value.
        images: uint8 ``[N, C, H, W]``.

    Returns:
        None if the sent basis is another one: not of the same kind and shape, or no rotation.
    """
    if not _same_shapes(own, sent):
        return None
    pairs = list(zip(_arrays(own), _arrays(sent), strict=True))
    identity = torch.eye(len(own.components), dtype=torch.float64)
    # NaN compares as false.
    if all(bool((a - b).abs().max() <= TOLERANCE * a.abs().max()) for a, b in pairs):
        return identity
    ours, theirs = own.project(images), sent.project(images)
    rotation = theirs.T @ ours / (len(ours) - 1)
    if not bool((rotation @ rotation.T - identity).abs().max() <= ROTATION_TOLERANCE):
        return None
    rest = torch.linalg.matrix_norm(theirs - ours @ rotation.T)
    agree = bool(rest <= ROTATION_TOLERANCE * torch.linalg.matrix_norm(ours))
    return rotation if agree else None


def rotate_moments(moments: Moments, rotation: Tensor) -> Moments:
    """Return the moments of points ``R x`` from those of points ``x``.

    It takes no examples, so that moments say no more in another basis than in the first.
    """
    if torch.equal(rotation, torch.eye(len(rotation), dtype=rotation.dtype)):
        return moments
    second = rotation @ moments.second.double() @ rotation.T
    means = moments.means.double() @ rotation.T
    return replace(moments, means=means.float(), second=second.float())


def _same_shapes(own: Basis, sent: Basis) -> bool:
    if isinstance(own, PixelBasis):
        if not isinstance(sent, PixelBasis) or sent.side != own.side:
            return False
    elif type(own) is not type(sent) or not isinstance(own, PatchBasis | BackboneBasis):
        return False
    return all(
        mine.shape == theirs.shape and mine.dtype == theirs.dtype
        for mine, theirs in zip(_arrays(own), _arrays(sent), strict=True)
    )


def _arrays(basis: Basis) -> list[Tensor]:
    own: list[Tensor] = []
    if isinstance(basis, PatchBasis):
        own = [basis.filters.kernels, basis.filters.offset]
    elif isinstance(basis, BackboneBasis):
        own = [torch.tensor(basis.limit, dtype=torch.float64)]
    return [basis.mean, basis.components, *own]
