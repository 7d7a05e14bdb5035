"""Exclude teachers that other teachers, or the server's labelled examples, contradict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedkd.config import Consolidation
from fedkd.distillation.density.basis import PROJECTION_BATCH
from fedkd.distillation.density.discriminant import linear_layer
from fedkd.distillation.density.moments import Moments, leave_one_out, merge_moments
from fedkd.distillation.targets import DistillationSetup, make_ensemble
from fedkd.distillation.teachers import Teachers
from fedkd.distillation.weighting.trust import MAX_EXCLUDED, MIN_TRUST
from fedkd.errors import FedKDError

LEVEL = 0.05
"""Probability, at most, that chance excludes any silo of an honest federation."""


def exclude_contradicted(
    teachers: Teachers, settings: Consolidation, setup: DistillationSetup
) -> tuple[Teachers, dict[str, Any]]:
    """Exclude teachers one at a time by ``settings.trust``, the least trusted first.

    Trust is computed again after each exclusion: while a bad teacher is kept, it lowers the trust
    of the teachers that it contradicts.

    Returns:
        The kept teachers, and notes: the trust of each excluded one, or why none is excluded.
    """
    if settings.trust == "agreement":
        return _by_agreement(teachers, settings, setup)
    if settings.trust == "validation":
        return _by_validation(teachers, setup)
    return teachers, {}


def _by_agreement(
    teachers: Teachers, settings: Consolidation, setup: DistillationSetup
) -> tuple[Teachers, dict[str, Any]]:
    """Exclude teachers that are contradicted by those with high density on the same examples.

    If the rest still disagree after excluding
    :data:`~fedkd.distillation.weighting.trust.MAX_EXCLUDED` of them, the reason is another one,
    such as too little training, and all are kept.
    """
    most = max(1, int(MAX_EXCLUDED * len(teachers))) if len(teachers) > 2 else 0
    kept, excluded = teachers, dict[str, float]()
    while True:
        trust = make_ensemble(kept, settings, setup).trust
        if trust is None or float(trust.min()) >= MIN_TRUST:
            return kept, _notes(excluded)
        if len(excluded) == most:
            sentence = "the teachers contradict each other too much to identify the wrong ones"
            return teachers, {"warning": sentence}
        least = int(trust.argmin())
        excluded[kept.members[least].silo] = round(float(trust[least]), 6)
        kept = kept.subset([m for m in range(len(kept)) if m != least])


def _by_validation(teachers: Teachers, setup: DistillationSetup) -> tuple[Teachers, dict[str, Any]]:
    """Exclude silos whose moments make the pooled discriminant less accurate on labelled examples.

    The test counts examples that the discriminant classifies correctly only with or only without a
    silo's moments. A silo's trust is the p-value of the one-sided sign test on these counts. Silos
    below ``LEVEL``, divided by the number of silos, are excluded; fewer than half of them.
    """
    if setup.basis is None:
        return teachers, {}
    if not len(setup.validation):
        raise FedKDError("trust: validation needs labelled examples, and there are none")
    labels = setup.validation.labels
    batches = torch.split(setup.validation.images, PROJECTION_BATCH)
    points = torch.cat([setup.basis.project(images) for images in batches])
    kept, excluded = teachers, dict[str, float]()
    while len(excluded) < (len(teachers) - 1) // 2:
        moments_by_silo = [(t.silo, t.moments) for t in kept.members if t.moments is not None]
        if len(moments_by_silo) < 2:
            break
        trust = _trust_by_labels([moments for _, moments in moments_by_silo], points, labels)
        least = min(range(len(moments_by_silo)), key=trust.__getitem__)
        if trust[least] >= LEVEL / len(moments_by_silo):
            break
        silo, _ = moments_by_silo[least]
        excluded[silo] = round(trust[least], 6)
        kept = kept.subset([m for m, t in enumerate(kept.members) if t.silo != silo])
    return kept, _notes(excluded)


def _trust_by_labels(
    silo_moments: Sequence[Moments], points: Tensor, labels: Tensor
) -> list[float]:
    """Return the p-value of the sign test for each of at least two silos."""
    merged = merge_moments(silo_moments)
    if merged is None:
        raise ValueError("no silo has moments")
    correct_with_all = _is_correct(merged, points, labels)
    trust = []
    for rest in leave_one_out(silo_moments):
        without = _is_correct(rest, points, labels)
        trust.append(sign_test(without & ~correct_with_all, correct_with_all & ~without))
    return trust


def _is_correct(merged: Moments, points: Tensor, labels: Tensor) -> Tensor:
    """Return which points ``[N, d]`` the discriminant classifies correctly, bool ``[N]``."""
    weight, bias = linear_layer(merged)
    return (points @ weight.T + bias).argmax(1) == labels


def sign_test(for_: Tensor, against: Tensor) -> float:
    """Return the one-sided p-value of the exact McNemar (1947) test.

    It is the probability that a fair coin gives at least as many examples ``for_``, bool ``[N]``,
    disjoint from those ``against``.
    """
    from scipy.stats import binomtest

    heads, tosses = int(for_.sum()), int(for_.sum() + against.sum())
    return float(binomtest(heads, tosses, alternative="greater").pvalue) if tosses else 1.0


def _notes(excluded: dict[str, float]) -> dict[str, Any]:
    return {"doubted": excluded} if excluded else {}
