"""Many teachers become one: weigh them and pool what they say."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd.config import Consolidation, Subset
from fedkd.distillation.weighting.trust import agreement, cap, knowledge, trust
from fedkd.distillation.weighting.weightings import Evidence, entropy, foreign_share, pool
from fedkd.errors import UserError
from fedkd.registry import WEIGHTINGS
from fedkd.util.seeding import torch_generator


@dataclass(frozen=True)
class Ensemble:
    """The teachers' joint opinion of the transfer set.

    Attributes:
        target: probabilities at the study's temperature, float32 ``[N, K]``.
        logits: every teacher's own, ``[M, N, K]``.
        weights: of each teacher on each sample, float64 ``[M, N]``.
        foreign: mean share of the samples that no silo knows, or None without densities.
        agreement: share of samples on which each teacher's class is the target's, ``[M]``.
        trust: how far each teacher is believed, ``[M]``; None where nobody asks or can tell.
    """

    target: Tensor
    logits: Tensor
    weights: Tensor
    foreign: float | None
    agreement: Tensor
    trust: Tensor | None = None


def combine(evidence: Evidence, settings: Consolidation) -> Ensemble:
    """Weigh the teachers and pool their predictions.

    Raises:
        UserError: a weighting of the user's own gave what is no weighting.
    """
    weights = WEIGHTINGS.call(settings.weighting, evidence, settings)
    if settings.weighting not in WEIGHTINGS:
        weights = _checked(weights, evidence, settings.weighting)
    votes = evidence.logits.argmax(2)
    if settings.max_weight is not None:
        weights = cap(weights, settings.max_weight)
    believed = None
    if settings.trust == "agreement":
        believed = _believed(evidence, votes, weights)
    target = pool(
        evidence.logits,
        weights,
        temperature=settings.temperature,
        pooling=settings.pooling,
        trim=settings.trim,
    )
    foreign = None
    if evidence.log_density is not None and evidence.log_background is not None:
        known = ~torch.isnan(evidence.log_density).any(dim=1)
        foreign = float(foreign_share(evidence, settings).mean()) if known.any() else None
    return Ensemble(
        target,
        evidence.logits,
        weights.mean(2) if weights.dim() == 3 else weights,
        foreign,
        agreement(votes, target.argmax(1)),
        believed,
    )


def _believed(evidence: Evidence, votes: Tensor, weights: Tensor) -> Tensor | None:
    """Return how far each teacher is believed; None where no density says who knows what."""
    density, background = evidence.log_density, evidence.log_background
    if density is None or background is None:
        return None
    return trust(votes, knowledge(density, background, weights))


def choose_subset(target: Tensor, subset: Subset, seed: int) -> Tensor:
    """Return the indices of the images to distil on, ascending, int64 ``[subset.size]``.

    Args:
        target: the ensemble's probabilities ``[N, K]``.
        subset: how many, and whether at random or by the ensemble's entropy.
        seed: of the study's repetition.
    """
    if subset.size >= len(target):
        return torch.arange(len(target))
    if subset.by == "random":
        chosen = torch.randperm(len(target), generator=torch_generator(seed, "subset"))
    else:
        chosen = entropy(target.double()).argsort(descending=True, stable=True)
    return chosen[: subset.size].sort().values


def _checked(weights: object, evidence: Evidence, name: str) -> Tensor:
    """Return what a function of the user's own gave as float64, if it is a weighting."""
    teachers, samples, classes = evidence.logits.shape
    shapes = ((teachers, samples), (teachers, samples, classes))
    if (
        not isinstance(weights, Tensor)
        or weights.is_complex()
        or tuple(weights.shape) not in shapes
    ):
        raise UserError(
            f"weighting {name} must give a real tensor [{teachers}, {samples}] or "
            f"[{teachers}, {samples}, {classes}]"
        )
    weights = weights.detach().double()
    whole = torch.isclose(weights.sum(0), torch.ones((), dtype=torch.float64), atol=1e-6)
    if not bool(torch.isfinite(weights).all() and (weights >= 0).all() and whole.all()):
        raise UserError(
            f"weighting {name} must give weights that are not negative and sum to one over teachers"
        )
    return weights
