"""Weights of the teachers on each sample.

A weighting maps the :class:`Evidence` to weights ``[M, N]`` that are not negative and sum to one
over the M teachers, at temperature one. A user's own weighting has the same form. Weights may also
depend on the class, ``[M, N, K]``; the pooled prediction is then renormalised over K.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd.config import Consolidation
from fedkd.errors import UserError

MEDIAN_TRIM = 0.5 - 1e-6
"""Trim that leaves the median: the mean of the two middle values."""
LEAST_TOTAL = 1e-9


@dataclass(frozen=True)
class Evidence:
    """Data on M teachers and N transfer samples, as available to the server.

    Attributes:
        logits: ``[M, N, K]``.
        num_examples: size of each silo, ``[M]``.
        log_density: log p_m(x_n) in nats, float64 ``[M, N]``; NaN in the row of a silo that has
            none. None without densities.
        log_background: log N(x_n; 0, I) in the basis, float64 ``[N]``. None without densities.
        accuracy: of each teacher on the server's validation data, float64 ``[M]``, or None.
        class_counts: examples of each class in each silo, float64 ``[M, K]``, or None.
    """

    logits: Tensor
    num_examples: Tensor
    log_density: Tensor | None = None
    log_background: Tensor | None = None
    accuracy: Tensor | None = None
    class_counts: Tensor | None = None


def equal(evidence: Evidence, settings: Consolidation) -> Tensor:  # noqa: ARG001 -- one signature for all
    """1/M for every teacher."""
    teachers, samples, _ = evidence.logits.shape
    return torch.full((teachers, samples), 1 / teachers, dtype=torch.float64)


def size(evidence: Evidence, settings: Consolidation) -> Tensor:  # noqa: ARG001 -- one signature for all
    """In proportion to the silo's number of examples, as in FedAvg."""
    share = evidence.num_examples.double() / evidence.num_examples.sum()
    return share[:, None].expand(-1, evidence.logits.shape[1]).clone()


def accuracy(evidence: Evidence, settings: Consolidation) -> Tensor:
    """In proportion to validation accuracy; 0 for teachers at or below chance.

    If all are at or below chance, the weights are equal.
    """
    if evidence.accuracy is None:
        raise UserError("weighting accuracy needs labelled validation data")
    chance = 1 / evidence.logits.shape[2]
    above_chance = torch.where(evidence.accuracy > chance, evidence.accuracy, 0.0)
    if not above_chance.any():
        return equal(evidence, settings)
    return (above_chance / above_chance.sum())[:, None].expand(-1, evidence.logits.shape[1]).clone()


def confidence(evidence: Evidence, settings: Consolidation) -> Tensor:
    """Softmax over teachers of -H(p_mn) / tau, H the entropy of the prediction in nats."""
    log_probs = torch.log_softmax(evidence.logits.double(), dim=2)
    negentropy = (log_probs.exp() * log_probs).sum(2)
    return torch.softmax(negentropy / settings.tau, dim=0)


def class_prior(evidence: Evidence, settings: Consolidation) -> Tensor:  # noqa: ARG001 -- one signature for all
    """Per class, in proportion to the silo's examples of that class, ``[M, N, K]``.

    target_k is proportional to sum_m share_mk p_mnk; a class without examples has equal weights.
    """
    if evidence.class_counts is None:
        raise UserError(
            "weighting class-prior needs the class counts of all silos, and some do not share them"
        )
    counts = evidence.class_counts
    totals = counts.sum(0)
    share = torch.where(totals > 0, counts / totals.clamp_min(1), 1 / len(counts))
    return share[:, None, :].expand(-1, evidence.logits.shape[1], -1).clone()


def consensus(evidence: Evidence, settings: Consolidation) -> Tensor:
    """Softmax over teachers of -JS(p_mn, mean of the others) / tau, JS in nats.

    The quarter of the teachers (rounded down) with the largest mean divergence is dropped first.
    """
    probs = torch.softmax(evidence.logits.double(), dim=2)
    teachers = len(probs)
    if teachers == 1:
        return equal(evidence, settings)
    others = (probs.sum(0) - probs) / (teachers - 1)
    middle = (probs + others) / 2
    divergence = entropy(middle) - (entropy(probs) + entropy(others)) / 2
    dropped = divergence.mean(1).argsort(stable=True)[teachers - teachers // 4 :]
    score = -divergence / settings.tau
    score[dropped] = -math.inf
    return torch.softmax(score, dim=0)


def entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy over the last dimension, in nats."""
    total: Tensor = torch.special.xlogy(probabilities, probabilities).sum(-1)
    return -total


def familiarity(evidence: Evidence, settings: Consolidation) -> Tensor:
    """Softmax over teachers of (log p_m(x_n) + log n_m) / scale.

    The posterior p(m | x) of a mixture of experts, similar to FedAUX 2102.02514 and FedGO
    2502.06349. A teacher without a density gets weight 1/M. The share of a sample that the
    background component claims is divided equally among all teachers.
    """
    if evidence.log_density is None:
        return equal(evidence, settings)
    has_density = ~torch.isnan(evidence.log_density).any(dim=1)
    share = torch.zeros_like(evidence.log_density)
    if has_density.any():
        score = (
            evidence.log_density[has_density]
            + evidence.num_examples[has_density].double().log()[:, None]
        )
        share[has_density] = torch.softmax(score / settings.familiarity.effective_scale, dim=0)
    weights = share * has_density.double().mean()
    weights[~has_density] = 1 / len(has_density)
    if settings.familiarity.background and evidence.log_background is not None:
        foreign = foreign_share(evidence, settings)
        weights = weights * (1 - foreign) + foreign / len(has_density)
    return weights


def foreign_share(evidence: Evidence, settings: Consolidation) -> Tensor:
    """Return the posterior share of a background N(0, I) with weight sum n_m, ``[N]``.

    Near 0.2 on transfer sets similar to the silos' data, near 1 on foreign ones.
    """
    if evidence.log_density is None or evidence.log_background is None:
        raise ValueError("the foreign share needs densities of the silos and of the background")
    has_density = ~torch.isnan(evidence.log_density).any(dim=1)
    score = (
        evidence.log_density[has_density]
        + evidence.num_examples[has_density].double().log()[:, None]
    )
    background = evidence.log_background + math.log(float(evidence.num_examples.sum()))
    scores = torch.cat([score, background[None]]) / settings.familiarity.effective_scale
    return torch.softmax(scores, dim=0)[-1]


def pool(
    logits: Tensor, weights: Tensor, *, temperature: float, pooling: str, trim: float = 0.2
) -> Tensor:
    """Combine teachers into one target distribution.

    Args:
        logits: ``[M, N, K]``.
        weights: ``[M, N]`` or ``[M, N, K]``, summing to one over M.
        temperature: T, applied to the teachers' logits, or to the pooled mixture.
        pooling: ``probs`` for sum_m w_m softmax(t_m / T), ``logits`` for
            softmax(sum_m w_m t_m / T), ``mixture`` for softmax(log(sum_m w_m softmax(t_m)) / T);
            ``median`` and ``trimmed-mean`` take the weighted median or trimmed mean of each
            class's probabilities, renormalised over K.
        trim: weight that ``trimmed-mean`` removes at either end.

    Returns:
        float32 probabilities ``[N, K]``.
    """
    scaled = logits.double()
    if pooling != "mixture":
        scaled = scaled / temperature
    each = weights if weights.dim() == 3 else weights[:, :, None]
    if pooling == "logits":
        return torch.softmax((each * scaled).sum(0), dim=1).float()
    probs = torch.softmax(scaled, dim=2)
    pooled = (each * probs).sum(0)
    if pooling in ("median", "trimmed-mean"):
        share = MEDIAN_TRIM if pooling == "median" else trim
        middle = _trimmed(probs, each.expand_as(probs), share)
        total = middle.sum(1, keepdim=True)
        # If no class has half of the weight, the medians of all classes are zero.
        pooled = torch.where(total > LEAST_TOTAL, middle / total.clamp_min(LEAST_TOTAL), pooled)
    if weights.dim() == 3:
        pooled = pooled / pooled.sum(1, keepdim=True)
    if pooling == "mixture":
        # After pooling: the temperature changes neither weights nor the order of classes.
        pooled = torch.softmax(pooled.log() / temperature, dim=1)
    return pooled.float()


def _trimmed(values: Tensor, weights: Tensor, trim: float) -> Tensor:
    """Return the weighted mean of ``[M, N, K]`` over M, without weight ``trim`` at either end."""
    ordered, order = values.sort(dim=0)
    upper = weights.gather(0, order).cumsum(0)
    lower = torch.cat([torch.zeros_like(upper[:1]), upper[:-1]])
    kept = (upper.clamp(trim, 1 - trim) - lower.clamp(trim, 1 - trim)).clamp_min(0)
    mean: Tensor = (kept * ordered).sum(0) / (1 - 2 * trim)
    return mean
