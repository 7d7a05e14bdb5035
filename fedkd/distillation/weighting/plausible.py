"""Exclude teachers with implausible weights or predictions, before averaging and distillation.

Finite but extreme weights pass the checks of format, and one such model ruins an average. Each
teacher is evaluated on its own and on the server's data, unlike in
:mod:`fedkd.distillation.weighting.exclusion`, where teachers are compared with each other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedkd.config import Consolidation
from fedkd.data.images import Images
from fedkd.distillation.teachers import Teacher, Teachers
from fedkd.errors import FedKDError
from fedkd.models.state import State

MAX_LOGIT = 1e4
MAX_RMS, MAX_RATIO = 10.0, 100.0
CONSTANT = 0.999
"""Share of examples with the same predicted class above which predictions are constant."""
SAME = 1e-5
"""Relative difference of logits below which they do not depend on the example."""
MAX_MARGIN = 30.0
"""Lead of the first class's logit on every example that no training by cross-entropy reaches: its
gradient is exp(-30) there. A bias that was set by hand does."""
LEVEL = 0.001
"""Probability, per federation, of excluding a teacher whose accuracy is above the bound."""
MAX_IMAGES = 500
"""Maximum number of examples on which a model is evaluated."""


def uses_models(settings: Consolidation) -> bool:
    """Whether a consolidation uses the teachers' models or predictions."""
    models_start = settings.student not in ("fresh", "lda-head")
    models_are_targets = settings.teachers in ("models", "both") and settings.all_epochs > 0
    return models_start or models_are_targets


def exclude_implausible(
    teachers: Teachers, *, transfer: Images | None, validation: Images
) -> tuple[Teachers, dict[str, str]]:
    """Exclude teachers with implausible, constant or chance-level predictions.

    - Logits that are not finite or exceed ``MAX_LOGIT``.
    - Weights whose root mean square is above both ``MAX_RMS`` and ``MAX_RATIO`` times the median.
    - The same class for (almost) all examples, if this holds for fewer than half of the teachers. A
      model whose logits vary between examples is kept if the class is the largest of its silo, as
      after training on few classes. Without class counts it is kept unless the class leads by more
      than ``MAX_MARGIN`` on every example.
    - Accuracy significantly at or below chance, by an exact binomial test on the validation
      examples of the silo's larger classes, if this holds for fewer than half of the teachers.
      Without class counts only accuracy far below chance counts.

    Args:
        teachers: at least one.
        transfer: examples on which teachers without models have predicted, or None.
        validation: labelled examples, preferred as they are like the silos'; may be empty.

    Returns:
        The kept teachers, and the reason for each excluded one, by name of its silo.

    Raises:
        FedKDError: no teacher is left.
    """
    labelled = teachers.have_models and len(validation) > 0
    data = validation if labelled else transfer
    if data is None or not len(data):
        return teachers, {}
    if teachers.have_models and len(data) > MAX_IMAGES:
        data = data.take(torch.linspace(0, len(data) - 1, MAX_IMAGES).long())
    logits = teachers.predict(data)
    reasons = {
        m: f"its logits exceed {MAX_LOGIT:g}"
        for m in range(len(teachers))
        if not bool((logits[m].abs() <= MAX_LOGIT).all())
    }
    reasons = (
        dict.fromkeys(_with_huge_weights(teachers), "its weights are implausibly large") | reasons
    )
    votes = logits.argmax(2)
    constant = [m for m, t in enumerate(teachers.members) if _is_constant(logits[m], t)]
    reasons = _add(reasons, constant, "it predicts the same class for all examples", len(teachers))
    if labelled:
        level = LEVEL / len(teachers)
        chance = [
            m
            for m, teacher in enumerate(teachers.members)
            if _is_at_chance(votes[m], teacher, data.labels, logits.shape[2], level)
        ]
        reasons = _add(reasons, chance, "it is no better than chance", len(teachers))
    names = {teachers.members[m].silo: reason for m, reason in sorted(reasons.items())}
    if len(reasons) == len(teachers):
        listed = "; ".join(f"{silo}: {reason}" for silo, reason in list(names.items())[:3])
        raise FedKDError(f"no silo's pre-trained model is plausible ({listed})")
    return teachers.subset([m for m in range(len(teachers)) if m not in reasons]), names


def _add(reasons: dict[int, str], members: list[int], reason: str, total: int) -> dict[int, str]:
    """Add a reason for some teachers if they are fewer than half of all."""
    return dict.fromkeys(members, reason) | reasons if 2 * len(members) < total else reasons


def _with_huge_weights(teachers: Teachers) -> list[int]:
    """Return the indices of teachers with far larger weights than the others."""
    if not teachers.have_models:
        return []
    rms = torch.stack([_root_mean_square(teacher.state or {}) for teacher in teachers.members])
    bound = max(MAX_RMS, MAX_RATIO * float(rms.median()))
    return [int(m) for m in (rms > bound).nonzero()[:, 0]]


def _root_mean_square(state: State) -> Tensor:
    """Return the root mean square of all finite weights, float64."""
    weights = torch.cat([t.flatten().double() for t in state.values() if t.is_floating_point()])
    return weights[torch.isfinite(weights)].square().mean().sqrt()


def _is_constant(logits: Tensor, teacher: Teacher) -> bool:
    """Whether logits ``[N, K]``, or the classes that they predict, hardly depend on the example."""
    votes = logits.argmax(1)
    predicted = int(votes.mode().values)
    if float((votes == predicted).double().mean()) < CONSTANT:
        return False
    spread = float((logits.amax(0) - logits.amin(0)).max())
    if spread <= SAME * float(logits.abs().max()):
        return True
    counts = teacher.class_counts
    if counts:
        return counts[predicted] < max(counts)
    first, second = logits.topk(2, dim=1).values.T
    return float((first - second).min()) > MAX_MARGIN


def _is_at_chance(
    votes: Tensor, teacher: Teacher, labels: Tensor, num_classes: int, level: float
) -> bool:
    """Whether accuracy is significantly below a bound: slightly above chance, or half of it."""
    from scipy.special import bdtr

    chance = 1 / num_classes
    bound = chance / 2
    used = torch.ones_like(labels, dtype=torch.bool)
    if teacher.class_counts:
        counts = torch.tensor(teacher.class_counts)
        used = (counts * num_classes >= counts.sum())[labels]
        bound = chance + min(chance / 2, (1 - chance) / 8)
    hits, total = int((votes == labels)[used].sum()), int(used.sum())
    return total > 0 and bool(bdtr(hits, total, bound) < level)
