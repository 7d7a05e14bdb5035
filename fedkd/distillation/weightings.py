"""How much each teacher counts on each sample.

A weighting maps the :class:`Evidence` to weights ``[M, N]`` that are not negative and sum to one
over the M teachers, at temperature one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd.study import Consolidation


@dataclass(frozen=True)
class Evidence:
    """What the server knows of M teachers on N transfer samples.

    Attributes:
        logits: ``[M, N, C]``.
        num_examples: size of each silo, ``[M]``.
        log_density: log p_m(x_n) in nats, float64 ``[M, N]``; NaN in the row of a silo that has
            none. None where no densities were asked for.
        log_background: log N(x_n; 0, I) in the basis, float64 ``[N]``, likewise.
    """

    logits: Tensor
    num_examples: Tensor
    log_density: Tensor | None = None
    log_background: Tensor | None = None


def equal(evidence: Evidence, settings: Consolidation) -> Tensor:  # noqa: ARG001 -- one signature for all
    """1/M: the one that is not adaptive."""
    teachers, samples, _ = evidence.logits.shape
    return torch.full((teachers, samples), 1 / teachers, dtype=torch.float64)


def confidence(evidence: Evidence, settings: Consolidation) -> Tensor:
    """Softmax over teachers of -H(p_mn) / tau, H the entropy of the prediction in nats."""
    log_probs = torch.log_softmax(evidence.logits.double(), dim=2)
    negentropy = (log_probs.exp() * log_probs).sum(2)
    return torch.softmax(negentropy / settings.tau, dim=0)


def familiarity(evidence: Evidence, settings: Consolidation) -> Tensor:
    """Softmax over teachers of (log p_m(x_n) + log n_m) / scale: whose data looks like this?

    A mixture-of-experts posterior p(m | x), in the spirit of FedAUX 2102.02514 and FedGO
    2502.06349. A teacher without a density gets its equal share, and so do all teachers on the
    part of a sample that the background component claims.
    """
    if evidence.log_density is None:
        return equal(evidence, settings)
    known = ~torch.isnan(evidence.log_density).any(dim=1)
    share = torch.zeros_like(evidence.log_density)
    if known.any():
        score = evidence.log_density[known] + evidence.num_examples[known].double().log()[:, None]
        share[known] = torch.softmax(score / settings.familiarity.effective_scale, dim=0)
    weights = share * known.double().mean()
    weights[~known] = 1 / len(known)
    if settings.familiarity.background and evidence.log_background is not None:
        foreign = foreign_share(evidence, settings)
        weights = weights * (1 - foreign) + foreign / len(known)
    return weights


def foreign_share(evidence: Evidence, settings: Consolidation) -> Tensor:
    """Return how much of each sample a background N(0, I) of weight sum n_m claims, ``[N]``.

    Near 0.2 on transfer sets like the silos' data, near 1 on foreign ones.
    """
    if evidence.log_density is None or evidence.log_background is None:
        raise ValueError("the foreign share needs densities and the background's")
    known = ~torch.isnan(evidence.log_density).any(dim=1)
    score = evidence.log_density[known] + evidence.num_examples[known].double().log()[:, None]
    background = evidence.log_background + math.log(float(evidence.num_examples.sum()))
    both = torch.cat([score, background[None]]) / settings.familiarity.effective_scale
    return torch.softmax(both, dim=0)[-1]


def pool(logits: Tensor, weights: Tensor, *, temperature: float, pooling: str) -> Tensor:
    """Combine teachers into one target distribution.

    Args:
        logits: ``[M, N, C]``.
        weights: ``[M, N]``, summing to one over M.
        temperature: T, applied to the teachers' logits.
        pooling: ``probs`` for sum_m w_m softmax(t_m / T), ``logits`` for
            softmax(sum_m w_m t_m / T).

    Returns:
        float32 probabilities ``[N, C]``.
    """
    scaled = logits.double() / temperature
    if pooling == "logits":
        return torch.softmax((weights[:, :, None] * scaled).sum(0), dim=1).float()
    return (weights[:, :, None] * torch.softmax(scaled, dim=2)).sum(0).float()
