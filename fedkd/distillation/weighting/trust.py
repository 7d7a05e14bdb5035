"""Bearing a few bad teachers: how far each is believed, and the most that any may weigh.

A federation under label skew is no crowd of equals: most teachers are wrong about most images, and
the one that knows an image may stand alone. So a teacher is not judged by how often it is in the
minority, but by whether those contradict it that know the same images. Who knows which,
the densities tell; without them an honest teacher cannot be told from a bad one.
"""

from __future__ import annotations

import torch
from torch import Tensor

PASSES = 20
PRIOR_SHARE = 0.1
"""Benefit of the doubt: agreement on this part of a teacher's equal share of the images."""
HEARD = 4.0
"""Power to which a teacher's trust counts where it judges others."""
MARGIN = 3.0
"""In nats: a silo knows what is e^3 times likelier under its own density than under N(0, I)."""
BELIEVED, MOST_EXCLUDED = 0.6, 0.1
"""Who is trusted less is left out; so many at most, as a share of all teachers."""
# The figures are ours, chosen on the ensemble of digits, seeds 10 to 13, that nothing is judged on.


def agreement(votes: Tensor, verdict: Tensor) -> Tensor:
    """Return each teacher's share of images on which it says what the ensemble says, ``[M]``.

    Args:
        votes: classes ``[M, N]``.
        verdict: the ensemble's classes ``[N]``.
    """
    return (votes == verdict).double().mean(1)


def knowledge(log_density: Tensor, log_background: Tensor, weights: Tensor) -> Tensor:
    """Return how far each teacher knows each image, float64 ``[M, N]`` in [0, 1].

    Of itself: is the image likelier under its data than under all data, the background N(0, I)?
    And beside the others: the root of its weight, against that of who weighs most there. Weights
    alone would not do: of an image that nobody knows they make a quarrel among strangers.

    Args:
        log_density: log p_m(x_n), ``[M, N]``; a row of NaN knows nothing.
        log_background: log N(x_n; 0, I), ``[N]``.
        weights: ``[M, N]``.
    """
    of_itself = torch.sigmoid(log_density - log_background - MARGIN)
    beside = (weights / weights.amax(0)).sqrt()
    return torch.nan_to_num(of_itself, nan=0.0) * beside


def trust(votes: Tensor, known: Tensor) -> Tensor:
    """Return how far each teacher is believed, float64 ``[M]`` in (0, 1].

    Two teachers meet on an image as far as both know it. A teacher is believed as far as those
    whom it meets say the same, each heard by its own trust; some agreement is granted in advance,
    so that who meets nobody is believed. As in Dawid and Skene (1979) this is iterated, so that a
    liar is found out by all and drags nobody down.

    Args:
        votes: classes ``[M, N]``.
        known: how far each teacher knows each image, float64 ``[M, N]`` in [0, 1].
    """
    teachers, samples = votes.shape
    prior = PRIOR_SHARE * samples / teachers
    met = known * (known.sum(0) - known).clamp(0, 1)
    believed = torch.ones(teachers, dtype=torch.float64)
    for _ in range(PASSES):
        kept = believed[:, None] ** HEARD * known
        alike = kept.new_zeros(int(votes.max()) + 1, samples).scatter_add_(0, votes, kept)
        alike = (alike.gather(0, votes) - kept).clamp_min(0)
        others = (kept.sum(0) - kept).clamp_min(torch.finfo(torch.float64).tiny)
        agreed = met * (alike / others).clamp_max(1)
        believed = (agreed.sum(1) + prior) / (met.sum(1) + prior)
    return believed


def cap(weights: Tensor, most: float) -> Tensor:
    """Scale teachers down until the mean weight of none exceeds ``most``, or 1/M if that is more.

    Each is scaled by one factor on all images, and what it loses goes to the others in proportion
    to their weights. A factor shifts a log-density: who claims to know all images equally well is
    brought back to ``most`` on each, and the others weigh against each other as before.

    Args:
        weights: float64 ``[M, N]`` or ``[M, N, K]``, summing to one over teachers.
        most: in (0, 1].
    """
    teachers = len(weights)
    most = max(most, 1 / teachers)
    logs = weights.clamp_min(torch.finfo(torch.float64).tiny).log()
    shift = torch.zeros(teachers, dtype=torch.float64)
    for _ in range(1000):
        shaped = shift.reshape(-1, *[1] * (weights.dim() - 1))
        weights = torch.softmax(logs + shaped, dim=0)
        means = weights.flatten(1).mean(1)
        over = means > most * (1 + 1e-9)
        if not bool(over.any()):
            break
        shift = shift - torch.where(over, (means / most).log(), 0.0)
    return weights
