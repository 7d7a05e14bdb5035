"""The ensemble: weights of the teachers, and their pooled predictions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd.config import Consolidation, Subset
from fedkd.distillation.weighting.trust import agreement, cap, coverage, trust
from fedkd.distillation.weighting.weightings import Evidence, entropy, foreign_share, pool
from fedkd.errors import UserError
from fedkd.registry import WEIGHTINGS
from fedkd.util.seeding import torch_generator


@dataclass(frozen=True)
class Ensemble:
    """The teachers' pooled predictions on the transfer set.

    Attributes:
        target: probabilities at the study's temperature, float32 ``[N, K]``.
        logits: of each teacher, ``[M, N, K]``.
        weights: of each teacher on each sample, float64 ``[M, N]``.
        foreign: mean share of the samples that the background claims, or None without densities.
        agreement: share of samples on which each teacher's class is the target's, ``[M]``.
        trust: of each teacher, ``[M]``; None unless ``trust: agreement`` and densities are known.
    """

    target: Tensor
    logits: Tensor
    weights: Tensor
    foreign: float | None
    agreement: Tensor
    trust: Tensor | None = None


def combine(evidence: Evidence, settings: Consolidation) -> Ensemble:
    """Compute the teachers' weights and pool their predictions.

    Raises:
        UserError: a user's own weighting returned invalid weights.
    """
    weights = WEIGHTINGS.call(settings.weighting, evidence, settings)
    if settings.weighting not in WEIGHTINGS:
        weights = _validate(weights, evidence, settings.weighting)
    predicted = evidence.logits.argmax(2)
    if settings.max_weight is not None:
        weights = cap(weights, settings.max_weight)
    density, background = evidence.log_density, evidence.log_background
    trusts = foreign = None
    if density is not None and background is not None:
        if settings.trust == "agreement":
            trusts = trust(predicted, coverage(density, background, weights))
        if not torch.isnan(density).any(dim=1).all():
            foreign = float(foreign_share(evidence, settings).mean())
    target = pool(
        evidence.logits,
        weights,
        temperature=settings.temperature,
        pooling=settings.pooling,
        trim=settings.trim,
    )
    return Ensemble(
        target,
        evidence.logits,
        weights.mean(2) if weights.dim() == 3 else weights,
        foreign,
        agreement(predicted, target.argmax(1)),
        trusts,
    )


def choose_subset(target: Tensor, subset: Subset, seed: int) -> Tensor:
    """Return the indices of the examples to distil on, ascending, int64 ``[subset.size]``.

    They are chosen at random, or by the entropy of the ensemble's probabilities ``[N, K]``.
    """
    if subset.size >= len(target):
        return torch.arange(len(target))
    if subset.by == "random":
        chosen = torch.randperm(len(target), generator=torch_generator(seed, "subset"))
    else:
        chosen = entropy(target.double()).argsort(descending=True, stable=True)
    return chosen[: subset.size].sort().values


def _validate(weights: object, evidence: Evidence, name: str) -> Tensor:
    """Return the weights of a user's own function as float64, or refuse them."""
    teachers, samples, classes = evidence.logits.shape
    shapes = ((teachers, samples), (teachers, samples, classes))
    if (
        not isinstance(weights, Tensor)
        or weights.is_complex()
        or tuple(weights.shape) not in shapes
    ):
        raise UserError(
            f"weighting {name} must return a real tensor [{teachers}, {samples}] or "
            f"[{teachers}, {samples}, {classes}]"
        )
    weights = weights.detach().double()
    sums_to_one = torch.isclose(weights.sum(0), torch.ones((), dtype=torch.float64), atol=1e-6)
    if not bool(torch.isfinite(weights).all() and (weights >= 0).all() and sums_to_one.all()):
        raise UserError(
            f"weighting {name} must return weights that are not negative and sum to one over "
            "teachers"
        )
    return weights
