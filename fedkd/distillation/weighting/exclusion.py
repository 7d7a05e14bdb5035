"""Whom not to hear: teachers that others, or labelled images of the server, contradict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedkd.config import Consolidation
from fedkd.distillation.density.basis import AT_ONCE
from fedkd.distillation.density.discriminant import linear_layer
from fedkd.distillation.density.moments import Moments, each_left_out, merge_moments
from fedkd.distillation.targets import DistillationSetup, make_ensemble
from fedkd.distillation.teachers import Teachers
from fedkd.distillation.weighting.trust import BELIEVED, MOST_EXCLUDED
from fedkd.errors import FedKDError

LEVEL = 0.05
"""So often, at most, the images contradict any silo of an honest federation by chance."""


def exclude_contradicted(
    teachers: Teachers, settings: Consolidation, setup: DistillationSetup
) -> tuple[Teachers, dict[str, Any]]:
    """Leave out teachers as ``trust`` has it, one after another, the least believed first.

    As long as a liar is heard, those that it contradicts seem doubtful too.

    Returns:
        Those that are heard, and notes: the trust in each of the others, or why there are none.
    """
    if settings.trust == "agreement":
        return _by_agreement(teachers, settings, setup)
    if settings.trust == "validation":
        return _by_validation(teachers, setup)
    return teachers, {}


def _by_agreement(
    teachers: Teachers, settings: Consolidation, setup: DistillationSetup
) -> tuple[Teachers, dict[str, Any]]:
    """Exclude teachers that are contradicted by those with high density on the same images.

    Where excluding :data:`~fedkd.distillation.weighting.trust.MOST_EXCLUDED` of them does not make
    the rest agree, they disagree for another reason, such as too little training, and all are kept.
    """
    most = max(1, int(MOST_EXCLUDED * len(teachers))) if len(teachers) > 2 else 0
    kept, excluded = teachers, dict[str, float]()
    while True:
        trust = make_ensemble(kept, settings, setup).trust
        if trust is None or float(trust.min()) >= BELIEVED:
            return kept, _notes(excluded)
        if len(excluded) == most:
            sentence = "the teachers contradict each other too much for trust to tell who is wrong"
            return teachers, {"warning": sentence}
        least = int(trust.argmin())
        excluded[kept.members[least].silo] = round(float(trust[least]), 6)
        kept = kept.only([m for m in range(len(kept)) if m != least])


def _by_validation(teachers: Teachers, setup: DistillationSetup) -> tuple[Teachers, dict[str, Any]]:
    """Leave out whose moments make the discriminant of all silos take labelled images for others.

    Of the images that it tells right either with a silo's moments or without them, how many
    without? A silo is trusted as far as chance would have as many, by the sign test, and left out
    below ``LEVEL`` shared among all, so that who does no harm is heard whatever it says. Fewer
    than half are left out.

    Raises:
        FedKDError: there are no labelled images.
    """
    if setup.basis is None:
        return teachers, {}
    if not len(setup.validation):
        raise FedKDError("trust: validation judges silos by labelled images, and there are none")
    labels = setup.validation.labels
    batches = torch.split(setup.validation.images, AT_ONCE)
    points = torch.cat([setup.basis.project(images) for images in batches])
    kept, excluded = teachers, dict[str, float]()
    while len(excluded) < (len(teachers) - 1) // 2:
        told = [(t.silo, t.moments) for t in kept.members if t.moments is not None]
        if len(told) < 2:
            break
        trust = _trust_by_labels([moments for _, moments in told], points, labels)
        least = min(range(len(told)), key=trust.__getitem__)
        if trust[least] >= LEVEL / len(told):
            break
        silo, _ = told[least]
        excluded[silo] = round(trust[least], 6)
        kept = kept.only([m for m, t in enumerate(kept.members) if t.silo != silo])
    return kept, _notes(excluded)


def _trust_by_labels(told: Sequence[Moments], points: Tensor, labels: Tensor) -> list[float]:
    """Return each of at least two silos' p of the sign test."""
    merged = merge_moments(told)
    if merged is None:
        raise ValueError("nobody told any moments")
    with_all = _is_right(merged, points, labels)
    trust = []
    for rest in each_left_out(told):
        without = _is_right(rest, points, labels)
        trust.append(sign_test(without & ~with_all, with_all & ~without))
    return trust


def _is_right(merged: Moments, points: Tensor, labels: Tensor) -> Tensor:
    """Return which points ``[N, d]`` the discriminant takes for their class, bool ``[N]``."""
    weight, bias = linear_layer(merged)
    return (points @ weight.T + bias).argmax(1) == labels


def sign_test(for_: Tensor, against: Tensor) -> float:
    """Return how likely a fair coin gives as many of all images ``for_``, or more.

    The exact test of McNemar (1947), one-sided.

    Args:
        for_: bool ``[N]``.
        against: of other images, bool ``[N]``.
    """
    from scipy.stats import binomtest

    heads, tosses = int(for_.sum()), int(for_.sum() + against.sum())
    return float(binomtest(heads, tosses, alternative="greater").pvalue) if tosses else 1.0


def _notes(excluded: dict[str, float]) -> dict[str, Any]:
    return {"doubted": excluded} if excluded else {}
